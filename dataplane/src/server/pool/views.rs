//! Services and clients as operators see them: plain values, read on request.

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
    /// Visitors turned away, TCP and UDP, for whatever reason.
    pub(crate) refused: u64,
}

/// One service.
#[derive(Debug)]
pub(crate) struct ServiceView {
    /// The service's name; empty for the service of a listener.
    pub(crate) name: String,
    /// The traffic address as in dp.toml: an address, or one with a range of ports.
    pub(crate) traffic_addr: String,
    /// The protocols that visitors may speak.
    pub(crate) protocol: ListenerProtocol,
    /// Whether the readiness of the process depends on the service.
    pub(crate) required: bool,
    /// Totals over the service's clients.
    pub(crate) totals: PoolTotals,
    /// What has been counted for the service.
    pub(crate) counts: ServiceCounts,
}

impl ServiceView {
    /// The service's name in messages.
    pub(crate) fn title(&self) -> String {
        if self.name.is_empty() {
            format!("listener {}", self.traffic_addr)
        } else {
            format!("service {:?}", self.name)
        }
    }

    /// Whether the service has clients that answer and reach it.
    pub(crate) fn is_up(&self) -> bool {
        self.totals.reachable > 0
    }
}

/// One client, with all services that it serves.
#[derive(Debug)]
pub(crate) struct ClientView {
    /// The client's name.
    pub(crate) name: String,
    /// The id of the client's instance.
    pub(crate) instance_id: InstanceId,
    /// The address that the client's first lane came from.
    pub(crate) address: Option<SocketAddr>,
    /// Number of the client's lanes.
    pub(crate) lanes: usize,
    /// Number of lanes among them that ride TLS.
    pub(crate) lanes_over_tls: usize,
    /// Round trip time as a lane last measured it; 0 if none has.
    pub(crate) rtt_us: u64,
    /// Packets to the client that were lost.
    pub(crate) lost_packets: u64,
    /// The time at which the client's first lane came.
    pub(crate) since: Instant,
    /// Flows that the client carries, for all of its services.
    pub(crate) flows: usize,
    /// The name of each service of the client, and whether it is up there.
    pub(crate) services: Vec<(String, bool)>,
}

impl ClientView {
    /// The view of a client without its services.
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
