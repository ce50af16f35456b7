//! Several clients of one listener share its visitors.

use std::io::Write as _;
use std::net::TcpStream;

use crate::support::program::Program;
use crate::support::service::{TcpService, UdpService};
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, QUIC_NOTICES_SOON, ROLE_NOTICES_SOON, Server, ServerSetup, Site, start_client,
};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait;

/// One server, two clients, a service each.
struct Pair {
    clients: [Program; 2],
    services: [TcpService; 2],
    server: Server,
    _site: Site,
}

impl Pair {
    fn start(balancer: &'static str) -> Self {
        let site = Site::new();
        let mut keys = ROLE_NOTICES_SOON.to_vec();
        keys.push(balancer);
        let server = Server::start(
            &site,
            &ServerSetup {
                server: keys,
                quic: QUIC_NOTICES_SOON.to_vec(),
                ..ServerSetup::default()
            },
        );
        let services = [TcpService::echo(), TcpService::echo()];
        let clients = [("first", 0), ("second", 1)].map(|(name, service): (_, usize)| {
            let setup = ClientSetup {
                name,
                quic: QUIC_NOTICES_SOON.to_vec(),
                ..ClientSetup::default()
            };
            start_client(&site, &setup, server.quic(), services[service].address)
        });
        Self {
            clients,
            services,
            server,
            _site: site,
        }
    }

    fn accepted(&self) -> [usize; 2] {
        [self.services[0].accepted(), self.services[1].accepted()]
    }

    /// A visitor that has been served and stays.
    fn stay(&self) -> TcpStream {
        let mut stream = visitor::connect(self.server.traffic());
        stream.write_all(b"x").expect("sent");
        visitor::read_exact(&mut stream, 1);
        stream
    }
}

#[test]
fn least_connections_evens_out_visitors_that_stay() {
    let pair = Pair::start("load_balancer = \"least-connections\"");
    let staying: Vec<TcpStream> = (0..40).map(|_| pair.stay()).collect();
    let [first, second] = pair.accepted();
    assert_eq!(first + second, staying.len());
    assert!(first.abs_diff(second) <= 2, "{first} and {second}");
}

#[test]
fn least_connections_also_spreads_visitors_that_leave() {
    let pair = Pair::start("load_balancer = \"least-connections\"");
    for _ in 0..40 {
        visitor::echo(pair.server.traffic(), b"quick");
    }
    let [first, second] = pair.accepted();
    assert!(first > 0 && second > 0, "{first} and {second}");
}

#[test]
fn round_robin_takes_turns() {
    let pair = Pair::start("load_balancer = \"round-robin\"");
    for _ in 0..40 {
        visitor::echo(pair.server.traffic(), b"quick");
    }
    let [first, second] = pair.accepted();
    assert_eq!(first + second, 40);
    assert!(first.abs_diff(second) <= 2, "{first} and {second}");
}

#[test]
fn udp_visitors_are_shared_too() {
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let services = [UdpService::echo(), UdpService::echo()];
    let _clients = [("first", 0), ("second", 1)].map(|(name, service): (_, usize)| {
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        start_client(&site, &setup, server.quic(), services[service].address)
    });
    let mut visitors: Vec<UdpVisitor> =
        (0..20).map(|_| UdpVisitor::new(server.traffic())).collect();
    for _ in 0..3 {
        for visitor in &mut visitors {
            visitor.echo(b"datagram");
        }
    }
    let [first, second] = [services[0].sources(), services[1].sources()];
    assert_eq!(first + second, 20, "a visitor stays with its client");
    assert!(first.abs_diff(second) <= 2, "{first} and {second}");
}

#[test]
fn a_udp_visitor_goes_to_the_other_client_when_its_own_has_gone() {
    use rustix::process::Signal;
    let site = Site::new();
    let server = Server::start(
        &site,
        &ServerSetup {
            server: ROLE_NOTICES_SOON.to_vec(),
            quic: QUIC_NOTICES_SOON.to_vec(),
            ..ServerSetup::default()
        },
    );
    let services = [UdpService::echo(), UdpService::echo()];
    let mut clients = [("first", 0), ("second", 1)].map(|(name, service): (_, usize)| {
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        start_client(&site, &setup, server.quic(), services[service].address)
    });
    for stops in [true, false] {
        let mut visitor = UdpVisitor::new(server.traffic());
        let before = services[0].received();
        visitor.echo(b"served by one");
        let own = usize::from(services[0].received() == before);
        if stops {
            clients[own].signal(Signal::TERM);
            assert_eq!(clients[own].wait_for_exit().code(), Some(0));
        } else {
            clients[own].kill();
        }
        wait::until_true("it is served by the other", || {
            visitor.echo_works(b"served by the other")
        });
        clients[own].restart();
        let ready = clients[own].wait_until_ready();
        ready.expect("it registers again");
    }
}

#[test]
fn the_other_client_takes_over_when_one_dies() {
    let mut pair = Pair::start("load_balancer = \"round-robin\"");
    pair.clients[0].kill();
    // Visitors may still be sent to the dead one until the server has noticed.
    wait::until_true("20 visitors in a row are served", || {
        (0..20).all(|_| visitor::echo_works(pair.server.traffic()))
    });
}

#[test]
fn a_client_whose_service_closes_at_once_does_not_take_most_visitors() {
    does_not_take_most_visitors(&TcpService::start(drop));
}

#[test]
fn a_client_whose_service_resets_at_once_does_not_take_most_visitors() {
    does_not_take_most_visitors(&TcpService::start(visitor::reset));
}

fn does_not_take_most_visitors(hole: &TcpService) {
    if subject::only_wire("what counts against a client") {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let good = TcpService::echo();
    let _clients = [("hole", hole.address), ("good", good.address)].map(|(name, service)| {
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        start_client(&site, &setup, server.quic(), service)
    });
    let mut staying = Vec::new();
    for _ in 0..60 {
        let mut stream = visitor::connect(server.traffic());
        let mut answer = [0];
        // The one that closes at once may reset what is sent to it.
        if stream.write_all(b"x").is_ok()
            && std::io::Read::read(&mut stream, &mut answer).is_ok_and(|read| read > 0)
        {
            staying.push(stream);
        }
    }
    assert!(staying.len() >= 40, "{} of 60 were served", staying.len());
}

#[test]
fn a_service_that_takes_everything_and_answers_nothing_gets_its_part_of_the_visitors() {
    if subject::only_wire("what counts against a client") {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    // One collects what its visitors say, as log servers do, and ends when they have.
    let collector = TcpService::start(|mut stream| {
        let said = visitor::read_to_end(&mut stream);
        assert_eq!(said, Ending::Clean(b"what there is to say".to_vec()));
    });
    let echo = TcpService::echo();
    let _clients = [("collector", collector.address), ("echo", echo.address)].map(|of| {
        let (name, service) = of;
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        start_client(&site, &setup, server.quic(), service)
    });
    for _ in 0..20 {
        let mut stream = visitor::connect(server.traffic());
        stream.write_all(b"what there is to say").expect("sent");
        visitor::finish(&stream);
        let answer = visitor::read_to_end(&mut stream);
        assert!(matches!(answer, Ending::Clean(_)), "{answer:?}");
    }
    let (collected, echoed) = (collector.accepted(), echo.accepted());
    assert!(
        collected >= 8,
        "{collected} were collected, {echoed} echoed"
    );
}
