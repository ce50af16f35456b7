//! The services behind this client, as all its cores see them: the address of each, its health, and
//! its counters.
//!
//! A service is found by the name that a flow brings. Its port is the one at the position of the
//! traffic port that the visitor connected to, so the server's answer is needed to know it
//! ([`answers`]).

pub(crate) mod answers;
pub(crate) mod health;
pub(crate) mod proxy_header;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use qmux_config::{CLIENT_SERVICES_MAX, ListenerProtocol, LocalPorts, LocalService, ProxyProtocol};
use qmux_proto::Protocol;
use qmux_proto::control::{Protocols, SERVICES_MAX, ServiceOffer, TrafficPorts};

use crate::resolve::Name;
use health::ServiceState;

const _: () = assert!(
    CLIENT_SERVICES_MAX <= SERVICES_MAX,
    "every service that the configuration allows can be offered"
);

/// The place in the configuration where the host of the service is named.
const LOCAL_SETTING: &str = "host in [client.local]";
const NAMED_SETTING: &str = "host in [[client.services]]";

/// All services of this client.
#[derive(Debug)]
pub(crate) struct Services {
    all: Vec<Arc<Service>>,
    by_name: HashMap<String, usize>,
}

/// One service of this client.
#[derive(Debug)]
pub(crate) struct Service {
    /// The index among the services of this client.
    pub(super) index: usize,
    /// The configuration of the service.
    pub(crate) local: LocalService,
    /// The host, with the port that health checks connect to; port 0 if there is none.
    pub(crate) host: Arc<Name>,
    /// The health of the service.
    pub(super) state: Arc<ServiceState>,
    /// What was counted for the service.
    pub(crate) counts: Arc<ServiceCounts>,
    /// Flows that the service has now, TCP and UDP.
    flows: Arc<AtomicUsize>,
    /// Whether the service closed its last connection right after one answer.
    closes_behind_answer: AtomicBool,
}

/// What is counted for each service, by all cores together: at most a few times per flow.
#[derive(Debug, Default)]
pub(crate) struct ServiceCounts {
    /// TCP flows that reached the service.
    pub(crate) tcp_flows: Count,
    /// UDP flows opened to the service.
    pub(crate) udp_flows: Count,
    /// TCP flows that did not reach the service.
    pub(crate) dials_failed: Count,
    /// TCP and UDP flows for a traffic port that has no port here.
    pub(crate) flows_without_port: Count,
    /// Health checks that failed.
    pub(crate) checks_failed: Count,
}

/// A counter that all cores may add to.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts a flow of a service until this is dropped.
#[derive(Debug)]
pub(super) struct ServedFlow(Arc<Service>);

impl ServedFlow {
    /// Counts a flow that begins.
    pub(super) fn new(service: &Arc<Service>) -> ServedFlow {
        service.flows.fetch_add(1, Ordering::Relaxed);
        ServedFlow(Arc::clone(service))
    }
}

impl Drop for ServedFlow {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The port of a service for a visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VisitorPort {
    /// The port at the server is known.
    Known(u16),
    /// The server's answer is needed to know the port, and has not come yet.
    NotYet,
    /// There is no such port: the server's range is longer, or lies elsewhere.
    Missing,
}

impl Services {
    /// The services of the first configuration. Services at the same address share its health.
    pub(super) fn new(configured: &[LocalService]) -> Services {
        let none = Services {
            all: Vec::new(),
            by_name: HashMap::new(),
        };
        Services::after(&none, configured)
    }

    /// The services of another configuration. The health of an address, and the counters of a name,
    /// go on.
    pub(super) fn after(before: &Services, configured: &[LocalService]) -> Services {
        let mut hosts: HashMap<(String, u16), Arc<Name>> = HashMap::new();
        for service in &before.all {
            let port = service.local.check_port().unwrap_or_default();
            let place = (service.local.host.clone(), port);
            hosts.insert(place, Arc::clone(&service.host));
        }
        let services = configured.iter().map(|local| {
            let port = local.check_port().unwrap_or_default();
            let setting = if local.name.is_empty() {
                LOCAL_SETTING
            } else {
                NAMED_SETTING
            };
            let place = (local.host.clone(), port);
            let host = hosts
                .entry(place)
                .or_insert_with(|| Name::later(&local.host, port, setting));
            (local.clone(), Arc::clone(host))
        });
        Services::of(services, before)
    }

    fn of(
        services: impl Iterator<Item = (LocalService, Arc<Name>)>,
        before: &Services,
    ) -> Services {
        let now = Instant::now();
        let all: Vec<_> = services
            .enumerate()
            .map(|(index, (local, host))| {
                let earlier = before.named(&local.name);
                // A state goes on only under the same kind of proof: one by TCP would stay for ever
                // at a service that speaks UDP alone, because nobody dials that by TCP.
                let is_there = |it: &&Arc<Service>| {
                    Arc::ptr_eq(&it.host, &host)
                        && it.local.ports == local.ports
                        && is_checked(&it.local) == is_checked(&local)
                };
                let there = earlier.filter(is_there);
                let state = there.map(|it| Arc::clone(&it.state));
                Arc::new(Service {
                    index,
                    state: state.unwrap_or_else(|| Arc::new(ServiceState::new(now))),
                    counts: earlier.map_or_else(Arc::default, |it| Arc::clone(&it.counts)),
                    flows: earlier.map_or_else(Arc::default, |it| Arc::clone(&it.flows)),
                    closes_behind_answer: AtomicBool::new(true),
                    local,
                    host,
                })
            })
            .collect();
        let names = all.iter().map(|it| (it.local.name.clone(), it.index));
        Services {
            by_name: names.collect(),
            all,
        }
    }

    /// For tests: one service without a name, at the addresses of `host`.
    #[cfg(test)]
    pub(crate) fn only(host: &Arc<Name>) -> Arc<Services> {
        let port = LocalPorts::These(qmux_config::Ports::one(53));
        let local = tests::local("", port, ListenerProtocol::Both);
        let none = Services::new(&[]);
        Arc::new(Services::of([(local, Arc::clone(host))].into_iter(), &none))
    }

    /// All services, in the order of the configuration.
    pub(crate) fn all(&self) -> &[Arc<Service>] {
        &self.all
    }

    fn named(&self, name: &str) -> Option<&Arc<Service>> {
        self.all.get(*self.by_name.get(name)?)
    }

    /// The service with this name, if it speaks `protocol`.
    pub(super) fn find(&self, name: &str, protocol: Protocol) -> Option<&Arc<Service>> {
        let service = self.all.get(*self.by_name.get(name)?)?;
        service.speaks(protocol).then_some(service)
    }

    /// The services that Register offers.
    pub(super) fn offers(&self) -> Vec<ServiceOffer> {
        let offers = self.all.iter().map(|service| ServiceOffer {
            name: service.local.name.clone(),
            protocols: Protocols {
                tcp: service.local.protocol.tcp(),
                udp: service.local.protocol.udp(),
            },
        });
        offers.collect()
    }

    /// Whether the names of all hosts have been looked up, with or without success.
    pub(super) fn are_known(&self) -> bool {
        self.all.iter().all(|service| service.host.was_asked())
    }

    /// Whether the name of any host has been looked up.
    pub(super) fn is_any_known(&self) -> bool {
        self.all.iter().any(|service| service.host.was_asked())
    }

    /// The hosts of all services, each once.
    pub(super) fn hosts(&self) -> Vec<Arc<Name>> {
        let mut hosts: Vec<Arc<Name>> = Vec::new();
        for service in &self.all {
            if !hosts.iter().any(|it| Arc::ptr_eq(it, &service.host)) {
                hosts.push(Arc::clone(&service.host));
            }
        }
        hosts
    }
}

impl Service {
    /// Whether the service is likely to close a connection right after its answer, as HTTP without
    /// keep-alive does: it did so the last time.
    pub(super) fn closes_behind_answer(&self) -> bool {
        self.closes_behind_answer.load(Ordering::Relaxed)
    }

    /// Notes, at the end of a connection, whether the service has closed it right after one answer.
    pub(super) fn note_close(&self, behind_answer: bool) {
        if self.closes_behind_answer() != behind_answer {
            self.closes_behind_answer
                .store(behind_answer, Ordering::Relaxed);
        }
    }

    fn speaks(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.local.protocol.tcp(),
            Protocol::Udp => self.local.protocol.udp(),
        }
    }

    /// The service's name as a label of metrics and in sentences.
    pub(crate) fn name(&self) -> &str {
        &self.local.name
    }

    /// The port for a visitor of the traffic port `traffic`, which servers of older versions do not
    /// tell for UDP. `there` are the service's ports at the server, once the server has said them.
    pub(super) fn port_for(
        &self,
        traffic: Option<u16>,
        there: Option<TrafficPorts>,
    ) -> VisitorPort {
        let known = |port: Option<u16>| port.map_or(VisitorPort::Missing, VisitorPort::Known);
        let not_yet = |port: Option<u16>| port.map_or(VisitorPort::NotYet, VisitorPort::Known);
        match (self.local.ports, traffic) {
            (LocalPorts::Same, Some(traffic)) => VisitorPort::Known(traffic),
            (LocalPorts::Same, None) => not_yet(there.map(|there| there.first)),
            (LocalPorts::These(ports), None) => VisitorPort::Known(ports.first()),
            (LocalPorts::These(ports), Some(traffic)) => match there {
                // There is only one, whatever number it has at the server.
                None if ports.count() == 1 => VisitorPort::Known(ports.first()),
                None => VisitorPort::NotYet,
                Some(there) if ports.count() == 1 && there.count == 1 => {
                    VisitorPort::Known(ports.first())
                }
                Some(there) => known(self.local.ports.of_visitor(there.first, traffic)),
            },
        }
    }

    /// Whether a UDP visitor tells of the whole service, because it has one port, here or, if the
    /// port is the visitor's, at the server. Ports of a range may be opened as they are needed.
    pub(super) fn tells_of_all(&self, there: Option<TrafficPorts>) -> bool {
        match self.local.ports {
            LocalPorts::These(ports) => ports.count() == 1,
            LocalPorts::Same => there.is_some_and(|there| there.count == 1),
        }
    }

    /// Whether the health of `port` is that of the whole service: it is the port that health checks
    /// connect to. Other ports of a range may be dead or alive by themselves.
    pub(super) fn stands_for_all(&self, port: u16) -> bool {
        self.local.check_port() == Some(port)
    }

    /// Whether a TCP connection can tell if the service works, without a visitor who says which
    /// port.
    pub(super) fn is_checked(&self) -> bool {
        is_checked(&self.local)
    }

    /// An address of the service's host with the port `port`.
    pub(super) fn at(&self, mut host: SocketAddr, port: u16) -> SocketAddr {
        if !self.stands_for_all(port) {
            host.set_port(port);
        }
        host
    }

    /// The service in a line for people.
    pub(crate) fn summary(&self) -> String {
        let protocol = match self.local.protocol {
            ListenerProtocol::Tcp => "TCP",
            ListenerProtocol::Udp => "UDP",
            ListenerProtocol::Both => "TCP and UDP",
        };
        let header = match self.local.proxy_protocol {
            ProxyProtocol::Off => "",
            ProxyProtocol::V1 => ", PROXY v1",
            ProxyProtocol::V2 => ", PROXY v2",
        };
        format!("{self}, {protocol}{header}")
    }

    /// Flows that the service has now, TCP and UDP.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// The address of the service, as in dp.toml.
    pub(crate) fn place(&self) -> String {
        let LocalService { host, ports, .. } = &self.local;
        if host.contains(':') {
            format!("[{host}]:{ports}")
        } else {
            format!("{host}:{ports}")
        }
    }

    /// Whether the service can be reached by TCP, as far as is known.
    pub(crate) fn is_healthy(&self) -> bool {
        self.state.healthy()
    }

    /// Whether the service works, as far as is known: by TCP if it speaks TCP, and otherwise by
    /// what its UDP visitors have met.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        if self.local.protocol.tcp() {
            self.is_healthy()
        } else {
            !self.state.udp_refusals.count(now)
        }
    }
}

fn is_checked(local: &LocalService) -> bool {
    local.protocol.tcp() && local.check_port().is_some()
}

impl fmt::Display for Service {
    /// Writes the service's name and address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LocalService {
            name, host, ports, ..
        } = &self.local;
        let bracket = host.contains(':');
        let (open, close) = if bracket { ("[", "]") } else { ("", "") };
        let place = match ports {
            LocalPorts::These(ports) => format!("{open}{host}{close}:{ports}"),
            LocalPorts::Same => format!("{open}{host}{close}, the visitor's port"),
        };
        if name.is_empty() {
            f.write_str(&place)
        } else {
            write!(f, "{name} ({place})")
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use qmux_config::{Ports, ProxyProtocolUdp};

    use super::*;

    /// For tests: a service on this host.
    pub(crate) fn local(name: &str, ports: LocalPorts, protocol: ListenerProtocol) -> LocalService {
        LocalService {
            name: name.into(),
            host: "127.0.0.1".into(),
            ports,
            protocol,
            proxy_protocol: ProxyProtocol::Off,
            proxy_protocol_udp: ProxyProtocolUdp::Every,
            health_check_interval: Duration::ZERO,
            health_check_timeout: Duration::from_secs(1),
        }
    }

    fn one_port(port: u16) -> LocalPorts {
        LocalPorts::These(Ports::one(port))
    }

    fn range() -> LocalPorts {
        LocalPorts::These(Ports::range(5000, 5009).expect("a range"))
    }

    #[test]
    fn a_flow_finds_its_service_by_name_and_protocol() {
        let services = Services::new(&[
            local("", one_port(80), ListenerProtocol::Both),
            local("ssh", one_port(22), ListenerProtocol::Tcp),
        ]);
        let found = |name, protocol| services.find(name, protocol).map(|it| it.index);
        assert_eq!(found("", Protocol::Udp), Some(0));
        assert_eq!(found("ssh", Protocol::Tcp), Some(1));
        assert_eq!(found("ssh", Protocol::Udp), None, "it speaks TCP only");
        assert_eq!(found("web", Protocol::Tcp), None);
        let offers = services.offers();
        assert_eq!(offers[1].name, "ssh");
        assert!(offers[1].protocols.tcp && !offers[1].protocols.udp);
    }

    #[test]
    fn the_port_is_the_one_of_the_same_position() {
        let there = |first, count| TrafficPorts::new(first, count);
        let port = |ports, traffic, there| {
            let services = Services::new(&[local("x", ports, ListenerProtocol::Both)]);
            services.all()[0].port_for(traffic, there)
        };
        use VisitorPort::{Known, Missing, NotYet};
        for (ports, traffic, there, expected) in [
            (range(), Some(30_003), there(30_000, 10), Known(5_003)),
            (range(), Some(30_010), there(30_000, 20), Missing),
            (range(), Some(30_003), None, NotYet),
            (range(), None, there(30_000, 10), Known(5_000)),
            (range(), None, None, Known(5_000)),
            (one_port(80), Some(8_080), None, Known(80)),
            (one_port(80), Some(8_080), there(8_080, 1), Known(80)),
            (one_port(80), Some(8_081), there(8_080, 2), Missing),
            (LocalPorts::Same, Some(8_081), None, Known(8_081)),
            (LocalPorts::Same, None, there(8_080, 2), Known(8_080)),
            (LocalPorts::Same, None, None, NotYet),
        ] {
            assert_eq!(port(ports, traffic, there), expected, "{ports} {traffic:?}");
        }
    }

    #[test]
    fn only_the_port_of_the_checks_speaks_for_the_whole_service() {
        let services = Services::new(&[
            local("range", range(), ListenerProtocol::Tcp),
            local("same", LocalPorts::Same, ListenerProtocol::Tcp),
        ]);
        let [range, same] = services.all() else {
            panic!("two")
        };
        assert!(range.stands_for_all(5_000) && !range.stands_for_all(5_001));
        assert!(!same.stands_for_all(0) && !same.stands_for_all(8_080));
        let host = "127.0.0.1:5000".parse().expect("literal");
        assert_eq!(range.at(host, 5_001).port(), 5_001);
    }

    #[test]
    fn a_service_is_called_by_its_name_and_place() {
        let services = Services::new(&[
            local("", one_port(80), ListenerProtocol::Both),
            local("ftp", range(), ListenerProtocol::Tcp),
            local("any", LocalPorts::Same, ListenerProtocol::Tcp),
        ]);
        let titles: Vec<String> = services.all().iter().map(ToString::to_string).collect();
        assert_eq!(
            titles,
            [
                "127.0.0.1:80",
                "ftp (127.0.0.1:5000-5009)",
                "any (127.0.0.1, the visitor's port)"
            ]
        );
    }

    #[test]
    fn services_at_one_place_share_its_name() {
        let services = Services::new(&[
            local("a", one_port(80), ListenerProtocol::Both),
            local("b", one_port(80), ListenerProtocol::Both),
            local("c", one_port(81), ListenerProtocol::Both),
        ]);
        assert_eq!(services.hosts().len(), 2);
    }
}
