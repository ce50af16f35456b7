//! A lane goes from UDP to TLS, and back, with all its flows: what UDP carried yesterday, it may
//! not carry today.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::program::Program;
use crate::support::random::Random;
use crate::support::service::{TcpService, UdpService};
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::two_ways::TwoWays;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::visits::Delivered;
use crate::support::{counters, subject};

const WHY: &str = "only qmux-dp speaks TLS";

/// Bytes of a transfer in the middle of which the network changes.
const TRANSFER_BYTES: usize = 64 << 20;

/// Seed of a transfer's bytes.
const SEED: u64 = 4;

/// A service for two kinds of visitors: those who send `d` get a transfer, others an echo.
fn service() -> TcpService {
    TcpService::start(|mut stream| {
        let mut first = [0];
        if stream.read_exact(&mut first).is_err() {
            return;
        }
        if first == *b"d" {
            visitor::send_random(&mut stream, SEED, TRANSFER_BYTES).expect("the visitor reads");
            visitor::finish(&stream);
            return;
        }
        stream.write_all(&first).expect("the visitor reads");
        let mut bytes = [0; 1_024];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            stream
                .write_all(&bytes[..length])
                .expect("the visitor reads");
        }
    })
}

/// A tunnel through a network that can be changed, with an open download and an open connection of
/// small exchanges.
struct World {
    download: TcpStream,
    typing: TcpStream,
    client: Program,
    server: Server,
    path: TwoWays,
    _service: TcpService,
    _site: Site,
    /// The bytes that are typed.
    random: Random,
    /// The bytes that are downloaded.
    expected: Random,
}

impl World {
    fn new(cores: usize) -> Self {
        Self::with(cores, &ClientSetup::default(), |_| {})
    }

    /// A world with this client, whose network is changed by `network` from the start.
    fn with(cores: usize, client: &ClientSetup, network: impl FnOnce(&TwoWays)) -> Self {
        let (site, service) = (Site::new(), service());
        let server = Server::start(
            &site,
            &ServerSetup {
                cores,
                ..ServerSetup::default()
            },
        );
        let path = TwoWays::to(server.quic());
        network(&path);
        let client = start_client(&site, client, path.address, service.address);
        let mut download = visitor::connect(server.traffic());
        download.write_all(b"d").expect("sent");
        let typing = visitor::connect(server.traffic());
        Self {
            download,
            typing,
            client,
            server,
            path,
            _service: service,
            _site: site,
            random: Random::new(9),
            expected: Random::new(SEED),
        }
    }

    /// Small exchanges, one after the other.
    fn type_a_little(&mut self) {
        for _ in 0..20 {
            visitor::exchange(&mut self.typing, &self.random.bytes(64));
        }
    }

    /// Reads on while the network changes as `change` says.
    fn read_half_way(&mut self, change: impl FnOnce(&TwoWays)) {
        self.read(TRANSFER_BYTES / 2);
        change(&self.path);
    }

    fn read(&mut self, length: usize) {
        visitor::receive_on(&mut self.download, &mut self.expected, length);
    }

    /// All bytes of both connections are there, and they end well.
    fn finish(mut self) -> (Program, Program) {
        self.read(TRANSFER_BYTES / 2);
        visitor::finish(&self.download);
        assert_eq!(
            visitor::read_to_end(&mut self.download),
            Ending::Clean(Vec::new())
        );
        self.type_a_little();
        visitor::finish(&self.typing);
        assert_eq!(
            visitor::read_to_end(&mut self.typing),
            Ending::Clean(Vec::new())
        );
        self.client.signal(Signal::TERM);
        self.client.wait_for_exit();
        self.server.program.signal(Signal::TERM);
        self.server.program.wait_for_exit();
        (self.client, self.server.program)
    }
}

fn goes_over(client: &Program, what: &str) {
    let said = format!("a lane goes over {what} with its flows");
    client.wait_for_line(&said, |line| line.contains(&said));
}

#[test]
fn flows_go_on_over_tls_when_udp_is_dropped_and_over_udp_when_it_passes_again() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut world = World::new(1);
    world.type_a_little();
    world.read_half_way(|path| path.limit_udp(0, 0));
    world.type_a_little();
    goes_over(&world.client, "TLS");
    world.path.pass_udp();
    goes_over(&world.client, "UDP");
    world.type_a_little();
    let (client, server) = world.finish();
    let counters = counters::of(&client);
    assert_eq!(
        counters::total(&counters, "lanes_ended"),
        1 + counters::total(&counters, "quic_probes")
    );
    assert_eq!(
        counters::total(&counters::of(&server), "tcp_flows_reset"),
        0
    );
}

#[test]
fn flows_go_on_when_udp_is_dropped_in_one_direction_only() {
    if subject::only_wire(WHY) {
        return;
    }
    for (forth, back) in [(0, usize::MAX), (usize::MAX, 0)] {
        let mut world = World::new(2);
        world.type_a_little();
        world.read_half_way(|path| path.limit_udp(forth, back));
        world.type_a_little();
        world.finish();
    }
}

#[test]
fn flows_go_on_when_udp_is_dropped_on_the_way_to_a_server_that_keeps_sending() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut world = World::new(1);
    world.type_a_little();
    // As often as a question may stay unanswered before a lane moves.
    let mut talking = visitor::connect(world.server.traffic());
    talking.write_all(b"t").expect("sent");
    let mut answers = talking.try_clone().expect("a copy");
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let talks = thread::spawn(move || {
        while !over.load(Ordering::SeqCst) {
            talking.write_all(b"talk").expect("sent");
            thread::sleep(Duration::from_millis(50));
        }
        visitor::finish(&talking);
    });
    let mut first = [0; 5];
    answers.read_exact(&mut first).expect("it is echoed");
    let listens = thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    world.read_half_way(|path| path.limit_udp(0, usize::MAX));
    world.type_a_little();
    goes_over(&world.client, "TLS");
    is_over.store(true, Ordering::SeqCst);
    talks.join().expect("it goes on");
    listens.join().expect("it ends").expect("all of it");
    let (client, _server) = world.finish();
    let client = counters::of(&client);
    assert_eq!(counters::total(&client, "lanes_unhealthy"), 0);
}

#[test]
fn flows_go_on_when_udp_is_dropped_though_idle_servers_are_not_probed() {
    if subject::only_wire(WHY) {
        return;
    }
    let client = ClientSetup {
        client: vec!["probe_interval = \"0s\""],
        ..ClientSetup::default()
    };
    let mut world = World::with(1, &client, |_| {});
    world.type_a_little();
    world.read_half_way(|path| path.limit_udp(0, 0));
    world.type_a_little();
    goes_over(&world.client, "TLS");
    world.finish();
}

/// It holds for each of the lanes: one lane to a server probes it, and the others must find out,
/// too.
#[test]
fn flows_go_on_when_udp_of_one_lane_of_several_is_dropped() {
    if subject::only_wire(WHY) {
        return;
    }
    let client = ClientSetup {
        client: vec!["lanes = 3"],
        log_level: Some("debug"),
        ..ClientSetup::default()
    };
    let (site, service) = (Site::new(), TcpService::echo());
    let server = Server::start(&site, &ServerSetup::default());
    let path = TwoWays::to(server.quic());
    let client = start_client(&site, &client, path.address, service.address);
    client.wait_for_lines("its lanes", 3, |line| line.contains("lane registered"));
    let mut random = Random::new(7);
    let mut visitors: Vec<_> = (0..9).map(|_| visitor::connect(server.traffic())).collect();
    let mut type_a_little = || {
        for visitor in &mut visitors {
            visitor::exchange(visitor, &random.bytes(64));
        }
    };
    type_a_little();
    let senders = path.senders();
    assert_eq!(senders.len(), 3);
    for sender in senders {
        path.cut_off(sender);
        type_a_little();
    }
    client.wait_for_lines("all go over TLS", 3, |line| {
        line.contains("a lane goes over TLS with its flows")
    });
}

#[test]
fn flows_go_on_over_another_tls_connection_when_a_firewall_forgets_the_one_that_carries_them() {
    if subject::only_wire(WHY) {
        return;
    }
    for (transport, server) in [("auto", vec![]), ("tls", vec!["transport = \"tls\""])] {
        let client = ClientSetup {
            server,
            ..ClientSetup::default()
        };
        let mut world = World::with(1, &client, |path| path.limit_udp(0, 0));
        world.type_a_little();
        world.read_half_way(TwoWays::forget_tcp);
        world.type_a_little();
        world.path.forget_tcp();
        world.type_a_little();
        let (client, server) = world.finish();
        let client = counters::of(&client);
        let moved = counters::total(&client, "lanes_moved_to_other_tls");
        assert!(moved >= 2, "{transport}: {moved}");
        let reset = counters::total(&counters::of(&server), "tcp_flows_reset");
        assert_eq!(reset, 0, "{transport}");
    }
}

#[test]
fn flows_go_on_when_large_udp_packets_are_dropped_from_one_moment_to_the_next() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut world = World::new(1);
    world.type_a_little();
    world.read_half_way(|path| path.limit_udp(1_300, 1_300));
    world.type_a_little();
    world.finish();
}

#[test]
fn flows_outlive_the_tls_connection_that_carries_them() {
    if subject::only_wire(WHY) {
        return;
    }
    let mut world = World::new(1);
    world.type_a_little();
    world.read_half_way(|path| path.limit_udp(0, 0));
    goes_over(&world.client, "TLS");
    for _ in 0..3 {
        world.type_a_little();
        world.path.cut_tcp(true);
    }
    world.type_a_little();
    assert!(world.path.connections() > 1);
    world.finish();
}

#[test]
fn udp_flows_and_new_visitors_are_served_when_udp_is_dropped() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let path = TwoWays::to(server.quic());
    let udp = UdpService::echo();
    let setup = ClientSetup::default();
    let client = start_client(&site, &setup, path.address, udp.address);
    let mut visitor = UdpVisitor::new(server.traffic());
    visitor.echo(b"before");
    path.limit_udp(0, 0);
    visitor.echo(b"behind the firewall");
    goes_over(&client, "TLS");
    visitor.echo(&Random::new(5).bytes(20_000));
    assert_eq!(udp.sources(), 1, "it is one flow");
    drop(client);

    path.pass_udp();
    let delivered = Delivered::default();
    let tcp = delivered.service();
    let client = start_client(&site, &setup, path.address, tcp.address);
    path.limit_udp(0, 0);
    for number in 0..50_u64 {
        visitor::echo(server.traffic(), &number.to_be_bytes());
    }
    goes_over(&client, "TLS");
    assert_eq!(delivered.repeated(), 0);
}
