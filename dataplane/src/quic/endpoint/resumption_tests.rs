//! Lanes that resume an earlier session: early data that is accepted, declined, and replayed.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Config, TicketKey};
use qmux_proto::control::{Heartbeat, Message};

use super::tests::{crowd, places, run, setup, that_gives_up_soon, until};
use super::{Endpoint, EndpointOwner, EndpointSetup};
use crate::core::counters::CoreCounters;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::handshake::{EarlyData, Handshake};
use crate::quic::lane::{Lane, LaneEvents};
use crate::quic::tickets::TicketKeys;
use crate::quic::{settings, tls};

/// The first message of the client.
const FIRST: Heartbeat = Heartbeat {
    sequence: 7,
    acknowledged: 3,
};

/// One lane, and whether its peer has opened a stream.
struct Peer {
    lane: Rc<Lane>,
    opened: Cell<bool>,
}

impl Peer {
    fn new(lane: &Rc<Lane>) -> Rc<Peer> {
        Rc::new(Peer {
            lane: Rc::clone(lane),
            opened: Cell::new(false),
        })
    }
}

struct Events(Rc<Peer>);

impl LaneEvents for Events {
    fn stream_opened(&self, _lane: &Rc<Lane>, stream: u64) {
        assert_eq!(stream, 0, "the control stream alone");
        self.0.opened.set(true);
    }
    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
    fn datagrams_done(&self, _lane: &Rc<Lane>) {}
    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
}

/// The owner of a server, which keeps its lanes.
#[derive(Default)]
struct Owner(RefCell<Vec<Rc<Peer>>>);

impl Owner {
    fn newest(&self) -> Option<Rc<Peer>> {
        self.0.borrow().last().cloned()
    }
}

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        let peer = Peer::new(lane);
        lane.handle_events(Rc::new(Events(Rc::clone(&peer))));
        self.0.borrow_mut().push(peer);
    }

    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
        false
    }
}

/// A server whose tickets are sealed with a key made of `seed`.
pub(crate) fn server_with_key(config: &Config, seed: u8) -> EndpointSetup {
    let server = config.server.as_ref().expect("server");
    let file = server
        .tls
        .server_key
        .file()
        .expect("a file")
        .with_file_name(format!("{seed}.ticket"));
    let key = TicketKey::new(vec![seed; TicketKey::BYTES]).expect("a key");
    std::fs::write(&file, key.to_line()).expect("written");
    let mut keys = server.tls.clone();
    keys.session_ticket_encryption_key = Some(file.into());
    let (keys, _keeper) = TicketKeys::start(&keys).expect("keys");
    let counters = Arc::<CoreCounters>::default();
    let mut context = tls::server(server).expect("tls");
    keys.serve(&mut context, &counters);
    EndpointSetup {
        config: settings::transport(&config.quic, context).expect("transport"),
        counters,
        ..setup(config, true)
    }
}

fn start(setup: EndpointSetup) -> (Rc<Endpoint>, Rc<Owner>) {
    let owner = Rc::new(Owner::default());
    let server = Endpoint::start(setup, Some(Rc::clone(&owner) as _));
    (server, owner)
}

fn dial(client: &Rc<Endpoint>, server: &Endpoint, session: Option<&[u8]>) -> Rc<Lane> {
    let lane = client
        .dial(server.socket.local_addr(), "localhost", 0, session)
        .expect("dial");
    lane.handle_events(Rc::new(Events(Peer::new(&lane))));
    if session.is_some() {
        lane.send_control(&Message::Heartbeat(FIRST));
    }
    lane
}

/// A session from a full handshake with `server`.
async fn session(config: &Config, server: &Endpoint) -> Vec<u8> {
    let client = Endpoint::start(setup(config, false), None);
    let lane = dial(&client, server, None);
    lane.established().await.expect("established");
    until("a ticket", || lane.session().is_some()).await;
    let full = Handshake {
        resumed: false,
        early_data: EarlyData::None,
    };
    assert_eq!(lane.handshake(), full);
    lane.session().expect("a session")
}

/// The first message that the newest lane of the server received.
async fn received(owner: &Owner) -> Message {
    let opened = || owner.newest().is_some_and(|peer| peer.opened.get());
    until("the control stream", opened).await;
    let lane = Rc::clone(&owner.newest().expect("a lane").lane);
    let deadline = Instant::now() + Duration::from_secs(20);
    match ControlReader::new(lane).next(deadline).await {
        ControlEvent::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn early_data_is_taken_by_a_server_that_knows_the_key() {
    run(async |config| {
        let (first, _) = start(server_with_key(&config, 1));
        let session = session(&config, &first).await;
        let (second, owner) = start(server_with_key(&config, 1));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = dial(&client, &second, Some(&session));
        lane.established().await.expect("established");
        let taken = Handshake {
            resumed: true,
            early_data: EarlyData::Accepted,
        };
        assert_eq!(lane.handshake(), taken);
        assert_eq!(received(&owner).await, Message::Heartbeat(FIRST));
        lane.with_tls(|ssl| tls::check_resumed_peer(ssl, false))
            .expect("the server is good");
        let accepted = Rc::clone(&owner.newest().expect("a lane").lane);
        until("the server's side", || accepted.is_established()).await;
        assert_eq!(accepted.handshake(), taken);
        accepted
            .with_tls(|ssl| tls::check_resumed_peer(ssl, true))
            .expect("the client is good");
        until("it to be counted", || {
            second.counters.early_data_accepted.get() == 1
        })
        .await;
        assert_eq!(second.counters.tickets_refused.get(), 0);
        assert!(second.counters.tickets_issued.get() > 0);
    });
}

#[test]
fn declined_early_data_arrives_after_the_handshake() {
    run(async |config| {
        let (first, _) = start(server_with_key(&config, 1));
        let session = session(&config, &first).await;
        let (second, owner) = start(server_with_key(&config, 2));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = dial(&client, &second, Some(&session));
        lane.established().await.expect("established");
        let declined = Handshake {
            resumed: false,
            early_data: EarlyData::Rejected,
        };
        assert_eq!(lane.handshake(), declined);
        assert_eq!(received(&owner).await, Message::Heartbeat(FIRST));
        assert_eq!(second.counters.tickets_refused.get(), 1);
        until("it to be counted", || {
            client.counters.early_data_rejected.get() == 1
        })
        .await;
    });
}

#[test]
fn early_data_survives_a_retry() {
    run(async |config| {
        let (first, _) = start(server_with_key(&config, 1));
        let session = session(&config, &first).await;
        let (second, owner) = start(server_with_key(&config, 1));
        crowd(&second, 512);
        let client = Endpoint::start(setup(&config, false), None);
        let lane = dial(&client, &second, Some(&session));
        lane.established().await.expect("established after a Retry");
        assert!(second.counters.retries_sent.get() >= 1);
        assert!(lane.handshake().resumed);
        assert_eq!(received(&owner).await, Message::Heartbeat(FIRST));
    });
}

#[test]
fn a_session_of_a_client_with_a_certificate_of_another_ca_is_not_resumed() {
    run(async |config| {
        let (first, _) = start(server_with_key(&config, 1));
        let session = session(&config, &first).await;
        // The keys are the same, but not the CAs, so the client's certificate is asked for again.
        let ca = config
            .client
            .as_ref()
            .expect("client")
            .tls
            .ca_cert
            .file()
            .expect("a file");
        let text = std::fs::read_to_string(ca).expect("read") + "\n# not the same file any more\n";
        std::fs::write(ca, text).expect("written");
        let (second, owner) = start(server_with_key(&config, 1));
        let client = Endpoint::start(setup(&config, false), None);
        let lane = dial(&client, &second, Some(&session));
        lane.established().await.expect("established");
        assert!(!lane.handshake().resumed);
        assert_eq!(received(&owner).await, Message::Heartbeat(FIRST));
    });
}

/// Whoever has recorded the first packets of a client may send them again, but cannot end the
/// handshake.
#[test]
fn replayed_early_data_does_not_complete_a_handshake() {
    run(async |config| {
        let (first, _) = start(server_with_key(&config, 1));
        let session = session(&config, &first).await;
        let (second, owner) = start(that_gives_up_soon(server_with_key(&config, 1)));
        let mut dialing = setup(&config, false);
        let recorder = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let mut conn = quiche::connect(
            Some("localhost"),
            &quiche::ConnectionId::from_ref(&[7; qmux_proto::CID_LEN]),
            recorder.local_addr().expect("bound"),
            second.socket.local_addr(),
            &mut dialing.config,
        )
        .expect("connect");
        conn.set_session(&session).expect("a session");
        let mut message = Vec::new();
        Message::Heartbeat(FIRST).encode(&mut message);
        conn.stream_send(0, &message, false).expect("room");
        let mut packets = Vec::new();
        let mut packet = [0; 1_500];
        while let Ok((length, _)) = conn.send(&mut packet) {
            packets.push(packet[..length].to_vec());
        }
        assert!(conn.is_in_early_data(), "there is early data in it");
        for packet in &packets {
            recorder
                .send_to(packet, second.socket.local_addr())
                .expect("sent");
        }
        assert_eq!(
            received(&owner).await,
            Message::Heartbeat(FIRST),
            "it can be read"
        );
        let lane = Rc::clone(&owner.newest().expect("a lane").lane);
        assert!(!lane.is_established(), "and grants nothing");
        drop(lane);
        until("the lane to be given up", || places(&second) == 0).await;
        assert_eq!(second.counters.lanes_opened.get(), 0);
        assert_eq!(second.counters.handshakes_failed.get(), 1);
    });
}

/// Prints what a handshake costs, both sides in one thread, checks of certificates included.
#[test]
#[ignore = "measures: cargo test --workspace --bin qmux-dp what_a_handshake_costs -- --ignored --nocapture"]
fn what_a_handshake_costs() {
    const HANDSHAKES: u32 = 100;
    run(async |config| {
        let (server, owner) = start(server_with_key(&config, 1));
        let session = session(&config, &server).await;
        let client = Endpoint::start(setup(&config, false), None);
        for (kind, session) in [
            ("full", None),
            ("resumed with early data", Some(&session[..])),
        ] {
            let mut spent = Duration::ZERO;
            for _ in 0..HANDSHAKES {
                let began = Instant::now();
                let lane = dial(&client, &server, session);
                lane.established().await.expect("established");
                if session.is_some() {
                    let check = |ssl: &mut _| tls::check_resumed_peer(ssl, false);
                    lane.with_tls(check).expect("good");
                }
                let accepted = Rc::clone(&owner.newest().expect("a lane").lane);
                accepted.established().await.expect("established");
                if session.is_some() {
                    let check = |ssl: &mut _| tls::check_resumed_peer(ssl, true);
                    accepted.with_tls(check).expect("good");
                }
                spent += began.elapsed();
                accepted.admit();
                lane.close(qmux_proto::LaneError::Shutdown, "");
                accepted.ended().await;
                owner.0.borrow_mut().clear();
            }
            let each = spent / HANDSHAKES;
            println!("{kind}: {each:?} for both sides together");
        }
    });
}
