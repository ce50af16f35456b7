//! A server that ends each lane that resumes a session.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::Config;
use qmux_proto::LaneError;
use qmux_proto::control::{Message, RegisterAck, RegisterOutcome};

use super::super::attempt_tests::first_core_of;
use crate::client::{ClientCore, ClientShared};
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::endpoint::resumption_tests::server_with_key;
use crate::quic::endpoint::tests::{run, until};
use crate::quic::endpoint::{Endpoint, EndpointOwner};
use crate::quic::lane::{Lane, LaneEvents};
use crate::ready::Readiness;

const LONG: Duration = Duration::from_secs(20);

/// A server that registers every lane; those that resume a session only until it is told otherwise.
#[derive(Default)]
struct Server {
    ends_them: Cell<bool>,
    ended: Cell<usize>,
    registered: Cell<usize>,
    lane: RefCell<Option<Rc<Lane>>>,
}

struct Owner(Rc<Server>);

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        lane.handle_events(Rc::new(Events(Rc::clone(&self.0))));
        *self.0.lane.borrow_mut() = Some(Rc::clone(lane));
    }
    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
        false
    }
}

struct Events(Rc<Server>);

impl LaneEvents for Events {
    fn stream_opened(&self, lane: &Rc<Lane>, _stream: u64) {
        let Events(server) = self;
        if lane.handshake().resumed && server.ends_them.get() {
            monoio::spawn(end(Rc::clone(server), Rc::clone(lane)));
        } else {
            monoio::spawn(register(Rc::clone(server), Rc::clone(lane)));
        }
    }
    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
    fn datagrams_done(&self, _lane: &Rc<Lane>) {}
    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
}

async fn end(server: Rc<Server>, lane: Rc<Lane>) {
    // The client may not have the keys by which it reads the reason before this.
    if lane.established().await.is_ok() {
        server.ended.set(server.ended.get() + 1);
        lane.close(LaneError::Internal, "");
    }
}

async fn register(server: Rc<Server>, lane: Rc<Lane>) {
    let mut reader = ControlReader::new(Rc::clone(&lane));
    loop {
        match reader.next(Instant::now() + LONG).await {
            ControlEvent::Message(Message::Register(_)) => {
                lane.admit();
                lane.send_control(&Message::RegisterAck(RegisterAck {
                    outcome: RegisterOutcome::Accepted,
                    server_instance_id: [1; 16],
                    server_cores: 1,
                    lane_core: 0,
                }));
                server.registered.set(server.registered.get() + 1);
            }
            ControlEvent::Message(_) => {}
            ControlEvent::Deadline | ControlEvent::Ended => return,
        }
    }
}

fn client_of(mut config: Config, server: SocketAddr) -> Rc<ClientCore> {
    config.server = None;
    let client = config.client.as_mut().expect("a client");
    client.servers[0].host = server.ip().to_string();
    client.servers[0].port = server.port();
    let client = client.clone();
    let readiness = Arc::new(Readiness::new(1));
    let shared = Arc::new(ClientShared::new(&Arc::new(config), &client, &readiness));
    let (context, _mailboxes) = first_core_of(1);
    ClientCore::start(&context, &shared)
}

#[test]
fn a_session_whose_lane_the_server_ends_before_it_is_registered_is_not_offered_again() {
    run(async |config| {
        let server = Rc::<Server>::default();
        let accepting = server_with_key(&config, 1);
        let address = accepting.socket.local_addr();
        let _endpoint = Endpoint::start(accepting, Some(Rc::new(Owner(Rc::clone(&server)))));
        let core = client_of(config, address);
        let kept = || core.context.counters.sessions_kept.get() > 0;
        until("the client has a session", kept).await;
        let registered = server.registered.get();
        server.ends_them.set(true);
        let lane = server.lane.borrow().clone().expect("a lane");
        lane.close(LaneError::Shutdown, "");
        until("the client is back", || {
            server.registered.get() > registered || server.ended.get() > 1
        })
        .await;
        assert_eq!(server.ended.get(), 1, "it is offered once");
        core.close();
    });
}
