//! Services and clients as operators see them: plain values, read when somebody asks.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use qmux_config::ListenerProtocol;

use super::client::Client;
use super::registry::InstanceId;
use super::service::PoolTotals;

/// What has been counted for one service since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceCounts {
    /// TCP visitors accepted.
    pub(crate) visitors: u64,
    /// UDP flows begun.
    pub(crate) udp_flows: u64,
    /// Bytes from visitors, TCP and UDP.
    pub(crate) bytes_in: u64,
    /// Bytes to visitors, TCP and UDP.
    pub(crate) bytes_out: u64,
    /// Visitors turned away, for whatever reason.
    pub(crate) refused: u64,
}

/// One service.
#[derive(Debug)]
pub(crate) struct ServiceView {
    /// Empty for that of a listener.
    pub(crate) name: String,
    /// As in dp.toml: an address, or one with a range of ports.
    pub(crate) traffic_addr: String,
    /// What visitors may speak.
    pub(crate) protocol: ListenerProtocol,
    /// Readiness depends on it.
    pub(crate) required: bool,
    /// Its clients.
    pub(crate) totals: PoolTotals,
    /// What has been counted.
    pub(crate) counts: ServiceCounts,
}

impl ServiceView {
    /// As messages name it.
    pub(crate) fn title(&self) -> String {
        if self.name.is_empty() {
            format!("listener {}", self.traffic_addr)
        } else {
            format!("service {:?}", self.name)
        }
    }

    /// Clients that answer and reach the service.
    pub(crate) fn is_up(&self) -> bool {
        self.totals.reachable > 0
    }
}

/// One client with all that it serves.
#[derive(Debug)]
pub(crate) struct ClientView {
    /// Its identity.
    pub(crate) name: String,
    /// Which run of its program it is.
    pub(crate) instance_id: InstanceId,
    /// Where its first lane came from.
    pub(crate) address: Option<SocketAddr>,
    /// Lanes that it has.
    pub(crate) lanes: usize,
    /// Those of them that ride TLS.
    pub(crate) lanes_over_tls: usize,
    /// Round trip time as a lane last told it; 0 if none has.
    pub(crate) rtt_us: u64,
    /// Packets to it that were lost.
    pub(crate) lost_packets: u64,
    /// When its first lane came.
    pub(crate) since: Instant,
    /// Flows that it carries, of all its services.
    pub(crate) flows: usize,
    /// Each service's name and whether it is up there.
    pub(crate) services: Vec<(String, bool)>,
}

impl ClientView {
    /// Of a client that nothing is known to serve yet.
    pub(crate) fn of(client: &Client) -> ClientView {
        ClientView {
            name: client.client_id.clone(),
            instance_id: client.instance_id,
            address: client.address(),
            lanes: client.lanes_up(),
            lanes_over_tls: client.lanes_over_tls.load(Ordering::Relaxed),
            rtt_us: client.path.rtt_us(),
            lost_packets: client.path.lost_packets(),
            since: client.since(),
            flows: 0,
            services: Vec::new(),
        }
    }
}
