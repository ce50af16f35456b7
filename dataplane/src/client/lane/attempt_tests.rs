//! Attempts against a server that is slow to answer: nothing that it has begun is lost when the
//! lane is no longer wanted.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Config, Lanes, LocalPorts, Ports};
use qmux_proto::control::{Heartbeat, Message, NoMoreFlows, RegisterAck, RegisterOutcome};
use qmux_proto::{OpenHeader, Protocol};

use crate::buffer::StreamBuf;
use crate::client::{ClientContext, ClientCore, ClientMail, ClientShared};
use crate::core::event::Event;
use crate::core::mailbox::{Mailbox, Mailboxes};
use crate::core::{Cluster, CoreContext};
use crate::flow::watch::TcpFlows;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::endpoint::tests::{run, setup, until};
use crate::quic::endpoint::{Endpoint, EndpointOwner};
use crate::quic::lane::{CONTROL_STREAM, Lane, LaneEvents, StreamRead};
use crate::ready::Readiness;

const LONG: Duration = Duration::from_secs(20);

/// A server that answers a registration when it is told to, and opens a flow with the answer.
#[derive(Default)]
struct SlowServer {
    /// Set when a Register message has come.
    asked: Event,
    /// Set when it may be answered.
    answer: Rc<Event>,
    lane: RefCell<Option<Rc<Lane>>>,
    /// What came back on the flow.
    echoed: RefCell<Vec<u8>>,
    /// Set when the client has said that it takes no further flow.
    said_goodbye: Event,
}

/// The events of a lane of such a server.
struct SlowLane(Rc<SlowServer>);

impl LaneEvents for SlowLane {
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64) {
        assert_eq!(stream, CONTROL_STREAM);
        monoio::spawn(serve(Rc::clone(&self.0), Rc::clone(lane)));
    }
    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
    fn datagrams_done(&self, _lane: &Rc<Lane>) {}
    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
}

struct Owner(Rc<SlowServer>);

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        lane.handle_events(Rc::new(SlowLane(Rc::clone(&self.0))));
        *self.0.lane.borrow_mut() = Some(Rc::clone(lane));
    }
    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
        false
    }
}

async fn serve(this: Rc<SlowServer>, lane: Rc<Lane>) {
    let mut reader = ControlReader::new(Rc::clone(&lane));
    let event = reader.next(Instant::now() + LONG).await;
    assert!(
        matches!(event, ControlEvent::Message(Message::Register(_))),
        "{event:?}"
    );
    lane.admit();
    this.asked.set();
    this.answer.wait().await;
    lane.send_control(&Message::RegisterAck(RegisterAck {
        outcome: RegisterOutcome::Accepted,
        server_instance_id: [1; 16],
        server_cores: 1,
        lane_core: 0,
    }));
    monoio::spawn(visit(Rc::clone(&this), Rc::clone(&lane)));
    loop {
        match reader.next(Instant::now() + LONG).await {
            ControlEvent::Message(Message::GoAway(_)) => {
                lane.send_control(&Message::NoMoreFlows(NoMoreFlows {
                    flows_opened: lane.streams_opened(),
                }));
                this.said_goodbye.set();
            }
            ControlEvent::Message(Message::Heartbeat(beat)) => {
                lane.send_control(&Message::Heartbeat(Heartbeat {
                    sequence: beat.sequence,
                    acknowledged: beat.sequence,
                }));
            }
            ControlEvent::Message(_) => {}
            ControlEvent::Deadline | ControlEvent::Ended => return,
        }
    }
}

/// Handles a flow: a visitor that sends something and waits for the echo.
async fn visit(this: Rc<SlowServer>, lane: Rc<Lane>) {
    let Some(stream) = lane.open_stream() else {
        return;
    };
    let mut bytes = Vec::new();
    OpenHeader {
        flow_id: 1,
        protocol: Protocol::Tcp,
        service: String::new(),
        visitor: "192.0.2.1:1".parse().expect("literal"),
        traffic: "192.0.2.2:2".parse().expect("literal"),
        opened_at_us: 0,
    }
    .encode(&mut bytes);
    bytes.extend_from_slice(b"hello");
    let waiters = lane.attach(stream);
    // This fails where the lane is closed, which the test sees by the echo.
    let _sent = lane.write(stream, StreamBuf::copied(&bytes), false, &waiters);
    let mut buffer = [0; 64];
    loop {
        match lane.read(stream, &mut buffer, &waiters) {
            StreamRead::Bytes(read, fin) => {
                this.echoed.borrow_mut().extend_from_slice(&buffer[..read]);
                if fin || this.echoed.borrow().len() >= 5 {
                    break;
                }
            }
            StreamRead::Blocked => waiters.readable.wait().await,
            StreamRead::Reset(_) => break,
        }
    }
    while !lane.finish(stream, &waiters).unwrap_or(true) {
        waiters.writable.wait().await;
    }
}

/// A service that echoes what its first visitor sends.
fn echo_service() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let Ok((mut socket, _)) = listener.accept() else {
            return;
        };
        let mut bytes = [0; 64];
        while let Ok(read @ 1..) = socket.read(&mut bytes) {
            if socket.write_all(&bytes[..read]).is_err() {
                return;
            }
        }
    });
    port
}

/// A client whose one lane waits for the answer to its registration.
async fn registering(mut config: Config) -> (Rc<SlowServer>, Rc<ClientCore>, Rc<Endpoint>) {
    let server = Rc::new(SlowServer::default());
    let mut accepting = setup(&config, true);
    accepting.handshake_timeout = LONG;
    let address = accepting.socket.local_addr();
    let endpoint = Endpoint::start(accepting, Some(Rc::new(Owner(Rc::clone(&server)))));
    config.server = None;
    let client = config.client.as_mut().expect("a client");
    client.servers[0].host = address.ip().to_string();
    client.servers[0].port = address.port();
    client.services[0].ports = LocalPorts::These(Ports::one(echo_service()));
    client.lanes = Lanes::Auto;
    let client = client.clone();
    let readiness = Arc::new(Readiness::new(1));
    let shared = Arc::new(ClientShared::new(&Arc::new(config), &client, &readiness));
    let (context, _mailboxes) = first_core_of(1);
    let core = ClientCore::start(&context, &shared);
    server.asked.wait().await;
    (server, core, endpoint)
}

/// The context of the first of this many cores, and the mailboxes of all.
pub(super) fn first_core_of(cores: usize) -> (Rc<ClientContext>, Mailboxes<ClientMail>) {
    let (mailboxes, _wakes) = Mailboxes::new(cores).expect("socket pairs");
    let cluster = Arc::new(Cluster::new(cores));
    let flows = TcpFlows::new(Arc::clone(&cluster.counters[0]));
    let core = Rc::new(CoreContext::new(0, cluster, Instant::now()));
    let context = ClientContext::new(&core, Arc::new(mailboxes.clone()), &flows);
    (context, mailboxes)
}

#[test]
fn a_lane_retired_while_it_registers_serves_what_the_server_has_begun() {
    run(async |config| {
        let (server, core, _endpoint) = registering(config).await;
        let supervisors: Vec<_> = core
            .supervisors
            .borrow()
            .values()
            .map(Rc::downgrade)
            .collect();
        assert_eq!(supervisors.len(), 1);
        // The server's address is gone.
        core.shared.servers.store(Arc::default());
        core.plan();
        assert!(core.supervisors.borrow().is_empty());
        // The server answers only when the client has left the lane to itself.
        until("the supervisor to end", || {
            supervisors.iter().all(|it| it.upgrade().is_none())
        })
        .await;
        server.answer.set();
        until("the echo", || *server.echoed.borrow() == b"hello").await;
        server.said_goodbye.wait().await;
        let lane = server.lane.borrow().clone().expect("a lane");
        until("the lane to be left", || !lane.is_open()).await;
        assert!(core.registering.borrow().is_empty() && core.lanes.borrow().is_empty());
        assert_eq!(core.context.counters.lanes_left.get(), 1);
    });
}

#[test]
fn a_core_with_a_full_mailbox_hears_of_a_new_plan_in_the_end() {
    run(async |config| {
        let client = config.client.clone().expect("a client");
        let readiness = Arc::new(Readiness::new(1));
        let shared = Arc::new(ClientShared::new(&Arc::new(config), &client, &readiness));
        shared.servers.store(Arc::default());
        let (context, mailboxes) = first_core_of(2);
        let other: &Mailbox<ClientMail> = mailboxes.of(1);
        while other.send(ClientMail::ServiceHealth).is_ok() {}
        let core = ClientCore::start(&context, &shared);
        core.tell_all(&ClientMail::Found { server: 1 });
        core.tell_all(&ClientMail::Plan);
        // The same once more: it is told once.
        core.tell_all(&ClientMail::Plan);
        assert_eq!(context.counters.client_mail_dropped.get(), 2);
        let found = RefCell::new(Vec::new());
        let take_all = || {
            while let Some(mail) = other.take() {
                if !matches!(mail, ClientMail::ServiceHealth) {
                    found.borrow_mut().push(mail);
                }
            }
        };
        until("the core to be told", || {
            take_all();
            !core.plans_owed[1].get()
        })
        .await;
        take_all();
        let found = found.take();
        assert!(matches!(found[..], [ClientMail::Plan]), "{found:?}");
        // Nothing is left to be told, so the next message is sent at once.
        core.tell_all(&ClientMail::Plan);
        assert!(matches!(other.take(), Some(ClientMail::Plan)));
    });
}

#[test]
fn a_client_that_stops_waits_for_a_registration_under_way() {
    run(async |config| {
        let (server, core, _endpoint) = registering(config).await;
        core.context.draining.set(true);
        core.drain(LONG);
        assert!(!core.is_settled(), "the server may open a flow there");
        server.answer.set();
        until("the lane to be settled", || core.is_settled()).await;
        // The server was told on the lane that has just registered, and has answered.
        server.said_goodbye.wait().await;
        core.close();
        let lane = server.lane.borrow().clone().expect("a lane");
        until("the lane to be closed", || !lane.is_open()).await;
    });
}

#[test]
fn a_client_that_ends_closes_also_what_registers() {
    run(async |config| {
        let (server, core, _endpoint) = registering(config).await;
        core.close();
        let lane = server.lane.borrow().clone().expect("a lane");
        until("the lane to be closed", || !lane.is_open()).await;
        until("nothing to be left", || {
            core.registering.borrow().is_empty()
        })
        .await;
    });
}
