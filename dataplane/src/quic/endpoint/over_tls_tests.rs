//! TLS connections of strangers, and of clients of the process before this one.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use crate::quic::credentials::{ClientCredentials, ServerCredentials};
use crate::quic::over_tls;
use crate::sys::tcp::TcpSocket;

use super::tests::{crowd, run, setup, until};
use super::*;
use crate::quic::tls;

/// A process with a predecessor that takes everything that it is passed.
struct Successor {
    passed: Cell<u32>,
    has_predecessor: bool,
}

impl EndpointOwner for Successor {
    fn lane_accepted(&self, _lane: &Rc<Lane>) {}

    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
        false
    }

    fn has_predecessor(&self) -> bool {
        self.has_predecessor
    }

    fn pass_on(&self, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> Option<bool> {
        self.passed.set(self.passed.get() + 1);
        self.has_predecessor.then_some(true)
    }
}

fn server(config: &qmux_config::Config, has_predecessor: bool) -> (Rc<Endpoint>, Rc<Successor>) {
    let owner = Rc::new(Successor {
        passed: Cell::new(0),
        has_predecessor,
    });
    let mut setup = setup(config, true);
    let key = &config.server.as_ref().expect("server").tls.server_key;
    let port = setup.socket.local_addr().port();
    setup.reset_key = Some(ResetKey::from_key(key, port).expect("a key"));
    let endpoint = Endpoint::start(setup, Some(Rc::clone(&owner) as _));
    (endpoint, owner)
}

/// A connection of the server, and the client's end, which reads nothing.
async fn connection(config: &qmux_config::Config) -> (TlsConnection, TlsConnection) {
    let patience = Duration::from_secs(20);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (accepted, _) = listener.accept().expect("accepted");
    let (server, of_client) = (config.server.as_ref(), config.client.as_ref());
    let credentials = ServerCredentials::read(server.expect("server")).expect("files");
    let context = tls::carrier_server(&credentials).expect("a context");
    let accepted = TcpSocket::adopt_carrier(accepted).expect("a socket");
    let accepts =
        monoio::spawn(async move { over_tls::accept(accepted, &context, patience).await });
    let credentials = ClientCredentials::read(of_client.expect("client")).expect("files");
    let context = tls::carrier_client(&credentials).expect("a context");
    let client = TcpSocket::adopt_carrier(client).expect("a socket");
    let client = over_tls::connect(client, &context, "localhost", patience).await;
    (accepts.await.expect("accepted"), client.expect("connected"))
}

/// A packet for a lane that is not here.
fn packet_for(id: [u8; CID_LEN]) -> [u8; 64] {
    let mut packet = [0x41; 64];
    packet[1..=CID_LEN].copy_from_slice(&id);
    packet
}

fn local(endpoint: &Endpoint) -> IpAddr {
    endpoint.socket.local_addr().ip()
}

#[test]
fn a_stranger_that_reads_nothing_is_not_answered_without_end() {
    run(async |config| {
        let (server, _owner) = server(&config, false);
        let (connection, unread) = connection(&config).await;
        let id = server.adopt_tls(connection).expect("adopted");
        let way = server.tls_way(id).expect("open");
        let packet = packet_for(server.new_cid(local(&server)));
        let lost = &server.counters.stateless_answers_lost;
        // More than the kernel takes, whatever its buffers are.
        until("the socket to be full", || {
            for _ in 0..10_000 {
                server.packet(&mut packet.clone(), way, true);
            }
            lost.get() > 0
        })
        .await;
        let waits = server.tls_ways.borrow()[&id].waiting_bytes();
        assert!(waits > 0);
        let before = lost.get();
        for _ in 0..10_000 {
            server.packet(&mut packet.clone(), way, true);
        }
        let counters = &server.counters;
        let suppressed = counters.stateless_resets_suppressed.get();
        assert!(lost.get() > before || suppressed > 0);
        assert!(server.tls_ways.borrow()[&id].waiting_bytes() <= waits);
        drop(unread);
    });
}

#[test]
fn a_tls_connection_for_a_lane_of_the_process_before_is_closed_and_nothing_passed_on() {
    run(async |config| {
        let (server, owner) = server(&config, true);
        let (connection, _client) = connection(&config).await;
        let id = server.adopt_tls(connection).expect("adopted");
        let way = server.tls_way(id).expect("open");
        let mut packet = packet_for(server.new_cid(local(&server)));
        server.packet(&mut packet, way, true);
        assert_eq!(owner.passed.get(), 0);
        assert_eq!(server.counters.tls_connections_for_predecessor.get(), 1);
        until("its end", || server.tls_way(id).is_none()).await;
    });
}

#[test]
fn what_carries_no_id_of_this_server_is_passed_on_to_the_process_before_within_bounds() {
    run(async |config| {
        let (server, owner) = server(&config, true);
        let from = Way::over_udp("127.0.0.1:9".parse().expect("literal"), None);
        let refused = &server.counters.quic_packets_pass_on_refused;
        for _ in 0..2_000_000 {
            let mut garbage = packet_for(rand::random());
            server.packet(&mut garbage, from, true);
            if refused.get() > 0 {
                break;
            }
        }
        let passed = owner.passed.get();
        assert!(refused.get() > 0 && passed > 0, "{passed}");
        let mut genuine = packet_for(server.new_cid(local(&server)));
        server.packet(&mut genuine, from, true);
        assert_eq!(owner.passed.get(), passed + 1);
    });
}

#[test]
fn a_stranger_over_tls_need_not_prove_its_address_once_more() {
    run(async |config| {
        let (server, _owner) = server(&config, false);
        let (accepted, connected) = connection(&config).await;
        server.adopt_tls(accepted).expect("adopted");
        let client = Endpoint::start(setup(&config, false), None);
        let id = client.adopt_tls(connected).expect("adopted");
        // Over UDP everybody would be asked for a proof now.
        crowd(&server, 512);
        let (to, way) = (server.socket.local_addr(), client.tls_way(id));
        let lane = client.dial_along(to, way, "localhost", 0, None);
        let lane = lane.expect("dial");
        lane.established().await.expect("established");
        assert_eq!(server.counters.retries_sent.get(), 0);
    });
}

#[test]
fn lanes_that_are_not_here_are_reset_within_the_bound_of_each_second() {
    run(async |config| {
        let (server, _owner) = server(&config, false);
        let counters = &server.counters;
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let from = Way::over_udp(stranger.local_addr().expect("bound"), None);
        let packet = packet_for(server.new_cid(local(&server)));
        server.packet(&mut packet.clone(), from, true);
        assert_eq!(counters.stateless_resets_sent.get(), 1);
        assert_eq!(counters.stateless_resets_suppressed.get(), 0);
        // That second is not over yet.
        let used_up = (Instant::now() + Duration::from_secs(60), u32::MAX);
        server.resets.set(used_up);
        server.packet(&mut packet.clone(), from, true);
        assert_eq!(counters.stateless_resets_sent.get(), 1);
        assert_eq!(counters.stateless_resets_suppressed.get(), 1);
    });
}

#[test]
fn a_bound_for_each_second_is_one_for_each_second() {
    let start = Instant::now();
    let counted = Cell::new((start, 0));
    for second in 0..3 {
        let now = start + Duration::from_secs(second);
        let passed = (0..10)
            .filter(|_| receive::one_of(&counted, 4, now))
            .count();
        assert_eq!(passed, 4);
    }
}
