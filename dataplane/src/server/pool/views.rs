//! Services and clients as operators see them: plain values, read when somebody asks.

use std::net::SocketAddr;
use std::time::Instant;

use qmux_config::ListenerProtocol;

use super::registry::{InstanceId, PoolTotals};

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

/// One client as one service has it.
#[derive(Debug, Clone)]
pub(crate) struct ClientRow {
    /// Where it comes in: numbers of clients are unique there.
    pub(crate) door: usize,
    /// Tells clients of a door apart.
    pub(crate) number: u64,
    /// Its identity.
    pub(crate) name: String,
    /// Which run of its program it is.
    pub(crate) instance_id: InstanceId,
    /// Where its first lane came from.
    pub(crate) address: Option<SocketAddr>,
    /// Lanes that it has.
    pub(crate) lanes: usize,
    /// Round trip time as a lane last told it; 0 if none has.
    pub(crate) rtt_us: u64,
    /// Packets to it that were lost.
    pub(crate) lost_packets: u64,
    /// When its first lane came.
    pub(crate) since: Instant,
    /// Flows of this service.
    pub(crate) flows: usize,
    /// The service's name.
    pub(crate) service: String,
    /// Whether it answers and reaches the service.
    pub(crate) up: bool,
}

/// One client with all that it serves.
#[derive(Debug)]
pub(crate) struct ClientView {
    /// What is the same for all services; of `flows` the sum.
    pub(crate) client: ClientRow,
    /// Each service's name and whether it is up there.
    pub(crate) services: Vec<(String, bool)>,
}

/// Puts together what belongs to one client. They stand in the order in which they came.
pub(crate) fn by_client(rows: impl IntoIterator<Item = ClientRow>) -> Vec<ClientView> {
    let mut rows: Vec<ClientRow> = rows.into_iter().collect();
    rows.sort_by_key(|row| (row.door, row.number));
    let mut views: Vec<ClientView> = Vec::new();
    for row in rows {
        let service = (row.service.clone(), row.up);
        match views.last_mut() {
            Some(last) if (last.client.door, last.client.number) == (row.door, row.number) => {
                last.client.flows += row.flows;
                last.services.push(service);
            }
            _ => views.push(ClientView {
                client: row,
                services: vec![service],
            }),
        }
    }
    views
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_several_services_is_one_client() {
        let row = |door, number, service: &str, flows| ClientRow {
            door,
            number,
            name: format!("client-{door}-{number}"),
            instance_id: [0; 16],
            address: None,
            lanes: 2,
            rtt_us: 0,
            lost_packets: 0,
            since: Instant::now(),
            flows,
            service: service.into(),
            up: service != "ssh",
        };
        let views = by_client([
            row(0, 2, "web", 3),
            row(0, 1, "web", 1),
            row(0, 2, "ssh", 4),
            row(1, 2, "", 5),
        ]);
        let seen: Vec<_> = views
            .iter()
            .map(|it| (it.client.name.as_str(), it.client.flows, it.services.len()))
            .collect();
        let expected = [
            ("client-0-1", 1, 1),
            ("client-0-2", 7, 2),
            ("client-1-2", 5, 1),
        ];
        assert_eq!(seen, expected);
        assert_eq!(views[1].services[1], ("ssh".into(), false));
    }
}
