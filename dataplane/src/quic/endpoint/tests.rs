//! Two endpoints on loopback: lanes come, are counted, and leave nothing behind.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Config, certs};
use qmux_proto::LaneError;
use qmux_proto::control::{Heartbeat, Message};

use super::{Endpoint, EndpointOwner, EndpointSetup};
use crate::buffer::Datagram;
use crate::metrics::CoreCounters;
use crate::quic::end::LaneEnd;
use crate::quic::lane::{Lane, LaneEvents};
use crate::quic::{settings, tls};
use crate::sys::udp::{Purpose, UdpSocket};

/// Holds its lane, as the real handlers do.
struct Holder(#[expect(dead_code, reason = "it is held, not used")] Rc<Lane>);

impl LaneEvents for Holder {
    fn stream_opened(&self, _lane: &Rc<Lane>, _stream: u64) {}
    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
    fn datagrams_done(&self, _lane: &Rc<Lane>) {}
    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
}

#[derive(Default)]
struct Owner {
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
        // A busy machine takes its time, and only to wait for the end of this has anybody to wait for it.
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

/// The same for handshakes that are to be given up.
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
        assert_eq!((client.unadmitted.get(), server.unadmitted.get()), (0, 1));
        accepted.upgrade().expect("alive").admit();
        assert_eq!(server.unadmitted.get(), 0);
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
fn junk_that_looks_like_a_first_packet_holds_no_place() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let setting = that_gives_up_soon(setup(&config, true));
        let server = Endpoint::start(setting, Some(Rc::clone(&owner) as _));
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        for number in 0..20u8 {
            // An Initial of version 1 with an 8-byte id that nothing decrypts (RFC 9000 section 17.2.2).
            let mut packet = [number; 1_200];
            packet[..7].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8, number]);
            packet[14..18].copy_from_slice(&[0, 0, 0x44, 0x9e]);
            sender
                .send_to(&packet, server.socket.local_addr())
                .expect("sent");
        }
        until("the packets", || {
            server.counters.quic_packets_received.get() == 20
        })
        .await;
        until("the places to be free", || server.unadmitted.get() == 0).await;
        until("the lanes to be freed", || {
            owner
                .accepted
                .borrow()
                .iter()
                .all(|lane| lane.upgrade().is_none())
        })
        .await;
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
        until("the handshake to begin", || server.unadmitted.get() == 1).await;
        until("the handshake to be given up", || {
            server.unadmitted.get() == 0
        })
        .await;
        assert!(owner.accepted.borrow()[0].upgrade().is_none());
        assert_eq!(server.counters.handshakes_failed.get(), 1);
    });
}

#[test]
fn many_unadmitted_lanes_make_new_clients_prove_their_address() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        server.unadmitted.set(512);
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.established().await.expect("established after a Retry");
        // One for each packet of the client's first flight.
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
        server.unadmitted.set(1_024);
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
        // The others' handshakes are over.
        server.unadmitted.set(0);
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
        // The probe under way is no knowledge, whatever quiche says.
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

#[test]
fn datagrams_in_bulk_are_acknowledged_although_not_at_once() {
    run(async |config| {
        let owner = Rc::new(Owner::default());
        let server = Endpoint::start(setup(&config, true), Some(Rc::clone(&owner) as _));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = client
            .dial(server.socket.local_addr(), "localhost", 0, None)
            .expect("dial");
        lane.handle_events(Rc::new(Holder(Rc::clone(&lane))));
        lane.established().await.expect("established");
        // As a client does: without a control stream a lane never has only datagrams.
        lane.send_control(&Message::Heartbeat(Heartbeat {
            sequence: 1,
            acknowledged: 0,
        }));
        until("the path to be measured", || {
            lane.packet_bytes_max() == settings::PACKET_BYTES_MAX
        })
        .await;
        let accepted = owner.accepted.borrow()[0].upgrade().expect("alive");
        until("the server's side", || accepted.counted_opened.get()).await;
        accepted.admit();
        let deferred = || server.counters.quic_acknowledgements_deferred.get();
        until("a turn of datagrams alone", || {
            for _ in 0..8 {
                let mut datagram = Datagram::with_capacity(1_000);
                datagram.bytes_mut().resize(1_000, 7);
                lane.send_datagram(datagram).expect("sent");
            }
            deferred() > 0
        })
        .await;
        let (acknowledged, sent) = {
            let stats = lane.conn.borrow().stats();
            (stats.acked_bytes, stats.sent_bytes)
        };
        until("the acknowledgement", || {
            accepted.debts_due().is_none() && lane.conn.borrow().stats().acked_bytes > acknowledged
        })
        .await;
        assert!(sent > acknowledged, "something was left to acknowledge");
    });
}
