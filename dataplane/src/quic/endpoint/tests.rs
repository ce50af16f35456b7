//! Two endpoints on loopback: lanes come, are counted, and leave nothing behind.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Config, certs};
use qmux_proto::LaneError;
use qmux_proto::control::{Heartbeat, Message};

use super::{Endpoint, EndpointOwner, EndpointSetup};
use crate::core::counters::CoreCounters;
use crate::quic::end::LaneEnd;
use crate::quic::lane::{Lane, LaneEvents};
use crate::quic::reset::ResetKey;
use crate::quic::roaming::Way;
use crate::quic::{settings, tls};
use crate::sys::udp::{Purpose, UdpSocket};

/// Holds its lane, as the real handlers do.
pub(super) struct Holder(#[expect(dead_code, reason = "it is held, not used")] pub(super) Rc<Lane>);

impl LaneEvents for Holder {
    fn stream_opened(&self, _lane: &Rc<Lane>, _stream: u64) {}
    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
    fn datagrams_done(&self, _lane: &Rc<Lane>) {}
    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
}

#[derive(Default)]
pub(super) struct Owner {
    accepted: RefCell<Vec<Weak<Lane>>>,
}

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        lane.handle_events(Rc::new(Holder(Rc::clone(lane))));
        self.accepted.borrow_mut().push(Rc::downgrade(lane));
    }

    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<std::net::IpAddr>) -> bool {
        false
    }
}

fn config(directory: &Path) -> Config {
    let request = certs::CertsRequest {
        server_names: vec!["localhost".into()],
        days: 1,
    };
    let generated = certs::generate(&request).expect("certificates");
    certs::write(&generated, directory, false).expect("written");
    let text = r#"
[server]
[[server.listeners]]
quic_addr = "127.0.0.1:1"
traffic_addr = "127.0.0.1:2"
protocol = "tcp"
[server.auth]
method = "mtls"
ca_cert_file = "ca.crt"
[server.tls]
server_cert_file = "server.crt"
server_key_file = "server.key"
[client]
[[client.servers]]
address = "127.0.0.1:1"
server_name = "localhost"
[client.local]
host = "127.0.0.1"
port = 3
[client.tls]
ca_cert_file = "ca.crt"
client_cert_file = "client.crt"
client_key_file = "client.key"
"#;
    Config::parse(text, &directory.join("dp.toml")).expect("a config")
}

pub(crate) fn setup(config: &Config, accepts: bool) -> EndpointSetup {
    let tls = if accepts {
        tls::server(config.server.as_ref().expect("server")).expect("tls")
    } else {
        tls::client(config.client.as_ref().expect("client")).expect("tls")
    };
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
    EndpointSetup {
        socket: UdpSocket::adopt(socket, Purpose::Quic).expect("adopt"),
        core: 0,
        group: 1,
        config: settings::transport(&config.quic, tls).expect("transport"),
        packet_bytes_max: settings::packet_bytes_max(&config.quic),
        accepts,
        // A busy machine takes its time, and only to wait for the end of this has anybody to wait
        // for it.
        handshake_timeout: PATIENCE,
        reset_key: None,
        counters: Arc::<CoreCounters>::default(),
    }
}

/// Runs a test that has a runtime; fails if it does not end.
pub(crate) fn run<T>(test: impl AsyncFnOnce(Config) -> T) -> T {
    let directory = tempfile::tempdir().expect("directory");
    let config = config(directory.path());
    monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
        .enable_timer()
        .build()
        .expect("runtime")
        .block_on(async { crate::core::time::timeout(2 * PATIENCE, test(config)).await })
        .expect("the test ends")
}

/// How long anything may take before a test counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives handshakes less time, for tests in which they are given up.
pub(super) fn that_gives_up_soon(setup: EndpointSetup) -> EndpointSetup {
    EndpointSetup {
        handshake_timeout: Duration::from_secs(1),
        ..setup
    }
}

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        crate::core::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A lane with both of its ends, not registered.
pub(crate) struct Pair {
    pub(crate) client_lane: Rc<Lane>,
    pub(crate) server_lane: Rc<Lane>,
    server: Rc<Endpoint>,
    client: Rc<Endpoint>,
}

impl Pair {
    pub(crate) async fn connected(config: &Config) -> Pair {
        let owner = Rc::<Owner>::default();
        let accepting = setup(config, true);
        let address = accepting.socket.local_addr();
        let server = Endpoint::start(accepting, Some(Rc::clone(&owner) as _));
        let client = Endpoint::start(setup(config, false), None);
        let client_lane = client.dial(address, "localhost", 0, None).expect("dial");
        client_lane.handle_events(Rc::new(Holder(Rc::clone(&client_lane))));
        client_lane.established().await.expect("established");
        let server_lane = owner.accepted.borrow()[0].upgrade().expect("it lives");
        server_lane.established().await.expect("established");
        Pair {
            client_lane,
            server_lane,
            server,
            client,
        }
    }

    pub(super) fn client_endpoint(&self) -> &Rc<Endpoint> {
        &self.client
    }

    pub(super) fn server_endpoint(&self) -> &Rc<Endpoint> {
        &self.server
    }
}

/// Number of lanes that are not registered.
pub(super) fn places(endpoint: &Endpoint) -> usize {
    let admission = endpoint.admission.as_ref();
    admission.map_or(0, |admission| admission.borrow().places())
}

/// Takes as many places for lanes of others, each of another network.
pub(super) fn crowd(endpoint: &Endpoint, others: u64) {
    for other in 0..others {
        let [.., high, low] = other.to_be_bytes();
        let ip = [10, high, low, 1].into();
        let admission = endpoint.admission.as_ref().expect("it accepts");
        let mut admission = admission.borrow_mut();
        admission.take(u64::MAX - other, ip, Instant::now());
    }
}

/// Gives these places back.
fn everybody_leaves(endpoint: &Endpoint, others: u64) {
    for other in 0..others {
        let admission = endpoint.admission.as_ref().expect("it accepts");
        admission.borrow_mut().give_back(u64::MAX - other);
    }
}

/// An Initial of version 1 with an 8-byte id that nothing decrypts (RFC 9000 section 17.2.2).
fn junk(number: u32) -> [u8; 1_200] {
    let mut packet = [0x5a; 1_200];
    packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
    packet[6..10].copy_from_slice(&number.to_be_bytes());
    packet[14..18].copy_from_slice(&[0, 0, 0x44, 0x9e]);
    packet
}

#[test]
fn a_lane_that_ended_is_freed_on_both_sides() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.handle_events(Rc::new(Holder(Rc::clone(&lane))));
        lane.established().await.expect("established");
        let accepted = owner.accepted.borrow()[0].clone();
        until("the server's side", || {
            accepted.upgrade().is_some_and(|lane| lane.is_established())
        })
        .await;
        assert_eq!((places(&client), places(&server)), (0, 1));
        accepted.upgrade().expect("alive").admit();
        assert_eq!(places(&server), 0);
        let dialed = Rc::downgrade(&lane);
        lane.close(LaneError::Shutdown, "");
        assert_eq!(lane.ended().await, LaneEnd::ClosedByUs(LaneError::Shutdown));
        drop(lane);
        until("both lanes to be freed", || {
            dialed.upgrade().is_none() && accepted.upgrade().is_none()
        })
        .await;
        assert!(server.lanes().is_empty() && server.by_cid.borrow().is_empty());
    });
}

#[test]
fn a_first_packet_that_is_smaller_than_clients_send_is_not_looked_into() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let to = server.socket.local_addr();
        sender.send_to(&junk(1)[..1_199], to).expect("sent");
        sender.send_to(&junk(2), to).expect("sent");
        let counters = &server.counters;
        until("the second one", || counters.initials_invalid.get() > 0).await;
        assert_eq!(counters.initials_invalid.get(), 1);
        assert_eq!(counters.quic_packets_unknown.get(), 1, "the first one");
    });
}

#[test]
fn junk_that_looks_like_a_first_packet_holds_no_place() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let setting = that_gives_up_soon(setup(&config, true));
        let server = Endpoint::start(setting, Some(Rc::clone(&owner) as _));
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        for number in 0..20 {
            sender
                .send_to(&junk(number), server.socket.local_addr())
                .expect("sent");
        }
        until("the packets", || {
            server.counters.quic_packets_received.get() == 20
        })
        .await;
        until("them to be counted", || {
            server.counters.initials_invalid.get() == 20
        })
        .await;
        assert_eq!(places(&server), 0);
        assert!(server.lanes().is_empty() && server.by_cid.borrow().is_empty());
        assert!(server.by_initial.borrow().is_empty());
        assert!(owner.accepted.borrow().is_empty(), "nobody was told");
    });
}

#[test]
fn above_a_rate_of_first_packets_strangers_must_prove_their_address_and_honest_ones_get_in() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let sent = Cell::new(0);
        let flood = |packets| {
            for _ in 0..packets {
                sent.set(sent.get() + 1);
                sender
                    .send_to(&junk(sent.get()), server.socket.local_addr())
                    .expect("sent");
            }
        };
        // Such a lane is never open for longer than it takes to find out.
        until("a Retry", || {
            flood(50);
            server.counters.retries_sent.get() > 0
        })
        .await;
        let retries = server.counters.retries_sent.get();
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        flood(50);
        lane.established().await.expect("established");
        assert!(server.counters.retries_sent.get() >= retries);
        assert_eq!(places(&server), 1, "the honest client's");
        // What follows from a packet is counted.
        let counters = &server.counters;
        let junk = counters.initials_invalid.get()
            + counters.retries_sent.get()
            + counters.initials_dropped.get();
        assert!(junk <= u64::from(sent.get()) + 20, "{junk}");
    });
}

#[test]
fn what_a_handler_touches_while_a_turn_ends_is_not_forgotten() {
    /// A handler that feeds the other lane while its own is told of a new stream.
    struct Feeder {
        endpoint: Weak<Endpoint>,
        other: Weak<Lane>,
        has_fed: Rc<Cell<bool>>,
    }
    impl LaneEvents for Feeder {
        fn stream_opened(&self, _lane: &Rc<Lane>, _stream: u64) {
            let (endpoint, other) = (self.endpoint.upgrade(), self.other.upgrade());
            let (endpoint, other) = (endpoint.expect("alive"), other.expect("alive"));
            let peer = other.peer_addr().expect("known");
            let way = Way::over_udp(peer, Some(peer.ip()));
            endpoint.feed(&other, &mut [0x41; 50], way);
            self.has_fed.set(true);
        }
        fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
        fn datagrams_done(&self, _lane: &Rc<Lane>) {}
        fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
    }
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let clients = [(); 2].map(|()| Endpoint::start(setup(&config, false), None));
        let mut lanes = Vec::new();
        for client in &clients {
            let address = server.socket.local_addr();
            let lane = client.dial(address, "localhost", 0, None).expect("dial");
            lane.established().await.expect("established");
            lanes.push(lane);
        }
        until("the server's side", || {
            server.lanes().iter().all(|lane| lane.is_established())
        })
        .await;
        let [first, second] =
            [0, 1].map(|at| owner.accepted.borrow()[at].upgrade().expect("alive"));
        let has_fed = Rc::<Cell<bool>>::default();
        first.handle_events_anew(Rc::new(Feeder {
            has_fed: Rc::clone(&has_fed),
            endpoint: Rc::downgrade(&server),
            other: Rc::downgrade(&second),
        }));
        lanes[0].send_control(&Message::Heartbeat(Heartbeat {
            sequence: 1,
            acknowledged: 0,
        }));
        until("the other lane's turn", || {
            has_fed.get() && !second.touched.get()
        })
        .await;
        assert!(server.counters.quic_packets_ignored.get() >= 1);
    });
}

#[test]
fn noise_is_no_sign_of_life_of_a_server() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.handle_events(Rc::new(Holder(Rc::clone(&lane))));
        lane.established().await.expect("established");
        until("the handshake to be over on both sides", || {
            owner.accepted.borrow()[0]
                .upgrade()
                .is_some_and(|lane| lane.counted_opened.get())
        })
        .await;
        let to = SocketAddr::new([127, 0, 0, 1].into(), client.socket.local_addr().port());
        let asked = Instant::now();
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let counters = &client.counters;
        // Whether it comes from elsewhere, or in the server's name.
        let noise = [0x41; 100];
        until("noise to be all that came of late", || {
            lane.asked(asked);
            lane.asked(asked + Duration::from_secs(60));
            let (others, ignored) = (
                counters.quic_packets_from_others.get(),
                counters.quic_packets_ignored.get(),
            );
            let silent = lane.is_silent() && others >= 10 && ignored >= 10;
            if !silent {
                stranger.send_to(&noise, to).expect("sent");
                let forged = server.socket.try_send(&noise, noise.len(), to, None);
                forged.expect("sent");
            }
            silent
        })
        .await;
        let genuine = lane.genuine_packets();
        let ignored = counters.quic_packets_ignored.get();
        for _ in 0..10 {
            stranger.send_to(&noise, to).expect("sent");
            let forged = server.socket.try_send(&noise, noise.len(), to, None);
            forged.expect("sent");
        }
        until("the noise", || {
            counters.quic_packets_ignored.get() >= ignored + 10
        })
        .await;
        if lane.genuine_packets() == genuine {
            assert!(lane.is_silent(), "noise passed for the server's word");
        }
        lane.ping();
        until("the server's answer", || !lane.is_silent()).await;
    });
}

#[test]
fn a_server_says_nothing_of_connection_ids_that_it_did_not_issue() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let key = &config.server.as_ref().expect("server").tls.server_key;
        let with_key = |mut setup: EndpointSetup| {
            let port = setup.socket.local_addr().port();
            setup.reset_key = Some(ResetKey::from_key(key, port).expect("a key"));
            setup
        };
        let start =
            || Endpoint::start(with_key(setup(&config, true)), Some(Rc::clone(&owner) as _));
        let [home, other] = [start(), start()];
        let client = Endpoint::start(setup(&config, false), None);
        let address = home.socket.local_addr();
        let lane = client.dial(address, "localhost", 0, None).expect("dial");
        lane.established().await.expect("established");
        // What somebody on the path sees of the lane.
        let mut seen = [0x41; 100];
        let id = lane.conn.borrow().destination_id().to_vec();
        seen[1..=id.len()].copy_from_slice(&id);
        let stranger = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        stranger
            .send_to(&seen, other.socket.local_addr())
            .expect("sent");
        until("it to arrive", || {
            other.counters.quic_packets_foreign.get() == 1
        })
        .await;
        assert_eq!(other.counters.stateless_resets_sent.get(), 0);
        assert!(lane.is_open());
        // This is the process that comes after the lane's own at its address.
        home.forget(&owner.accepted.borrow()[0].upgrade().expect("alive"));
        lane.ping();
        assert_eq!(lane.ended().await, LaneEnd::StatelessReset);
        assert!(home.counters.stateless_resets_sent.get() >= 1);
    });
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_handshake_is_given_up() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let setting = that_gives_up_soon(setup(&config, true));
        let server = Endpoint::start(setting, Some(Rc::clone(&owner) as _));
        // The first flight of a real client, sent by a socket that never answers.
        let mut dialing = setup(&config, false);
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let scid = [7; qmux_proto::CID_LEN];
        let mut conn = quiche::connect(
            Some("localhost"),
            &quiche::ConnectionId::from_ref(&scid),
            silent.local_addr().expect("bound"),
            server.socket.local_addr(),
            &mut dialing.config,
        )
        .expect("connect");
        let mut packet = [0; 1_500];
        let (length, _) = conn.send(&mut packet).expect("a first packet");
        silent
            .send_to(&packet[..length], server.socket.local_addr())
            .expect("sent");
        until("the handshake to begin", || places(&server) == 1).await;
        until("the handshake to be given up", || places(&server) == 0).await;
        assert!(owner.accepted.borrow()[0].upgrade().is_none());
        assert_eq!(server.counters.handshakes_failed.get(), 1);
    });
}

#[test]
fn a_report_that_nobody_listens_ends_a_handshake_and_no_lane_that_is_up() {
    run(async |config| {
        let pair = Pair::connected(&config).await;
        let lane = &pair.client_lane;
        let refused = std::io::ErrorKind::ConnectionRefused;
        assert!(!lane.nobody_listens(refused), "anybody can forge it");
        assert!(lane.is_open() && !lane.given_up.get());
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let to = silent.local_addr().expect("bound");
        let dialed = pair.client_endpoint().dial(to, "localhost", 0, None);
        let dialed = dialed.expect("dial");
        assert!(dialed.nobody_listens(refused));
        assert_eq!(dialed.ended().await, LaneEnd::Unreachable(refused));
    });
}

#[test]
fn many_unadmitted_lanes_make_new_clients_prove_their_address() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        crowd(&server, 512);
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.established().await.expect("established after a Retry");
        // There is one for each packet of the client's first flight.
        assert!(server.counters.retries_sent.get() >= 1);
    });
}

#[test]
fn a_client_that_finds_no_place_gets_one_when_its_first_packet_is_repeated() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let (mut accepting, mut dialing) = (setup(&config, true), setup(&config, false));
        accepting.handshake_timeout = Duration::from_secs(20);
        dialing.handshake_timeout = Duration::from_secs(20);
        let server = Endpoint::start(accepting, Some(Rc::clone(&owner) as _));
        crowd(&server, 1_024);
        let client = Endpoint::start(dialing, None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        until("the refusal", || {
            server.counters.handshakes_refused.get() >= 1
        })
        .await;
        let logged = server.crowded_logged_at.get();
        assert!(logged.is_some() && server.lanes().is_empty());
        // The handshakes of the others are over.
        everybody_leaves(&server, 1_024);
        lane.established().await.expect("established");
        assert_eq!(server.crowded_logged_at.get(), logged, "logged once");
    });
}

#[test]
fn datagrams_are_measured_by_what_the_path_is_known_to_carry() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.handle_events(Rc::new(Holder(Rc::clone(&lane))));
        lane.established().await.expect("established");
        // The size of the probe under way is not known to pass, whatever quiche says.
        let known = lane.packet_bytes_max();
        assert!(lane.datagram_room() < known, "{known}");
        until("the path to be measured", || {
            lane.packet_bytes_max() == settings::PACKET_BYTES_MAX
        })
        .await;
        assert!(lane.datagram_room() > settings::PACKET_BYTES_MAX - 100);
        assert!(lane.distrust_packet_size());
        lane.note_path();
        assert!(
            lane.datagram_room() < 1_200,
            "small until it is measured again"
        );
        until("the path to be measured again", || {
            lane.packet_bytes_max() == settings::PACKET_BYTES_MAX
        })
        .await;
    });
}
