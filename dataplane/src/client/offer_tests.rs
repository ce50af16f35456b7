//! A client with many services before a server that is played by the test.

use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Config, Lanes, ListenerProtocol, LocalPorts, LocalService, Ports};
use qmux_proto::control::{
    Capabilities, HandOvers, Heartbeat, Message, Register, RegisterAck, RegisterOutcome,
    ServiceAnswer, ServiceAnswers, ServiceVerdict, TrafficPorts,
};
use qmux_proto::{FlowError, OpenHeader, Protocol};

use super::servers::server::ServerState;
use super::services::tests::local;
use super::{ClientContext, ClientCore, ClientMail, ClientShared};
use crate::buffer::StreamBuf;
use crate::core::event::Event;
use crate::core::mailbox::Mailboxes;
use crate::core::{Cluster, CoreContext};
use crate::flow::watch::TcpFlows;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::endpoint::tests::{run, setup, until};
use crate::quic::endpoint::{Endpoint, EndpointOwner};
use crate::quic::lane::{CONTROL_STREAM, Lane, LaneEvents, StreamRead};
use crate::ready::Readiness;

const LONG: Duration = Duration::from_secs(20);

/// A server with some cores that accepts each registration, and then does what the test says.
#[derive(Default)]
struct PlayedServer {
    register: RefCell<Option<Register>>,
    registered: Event,
    /// Number of cores; 0 stands for 1.
    cores: Cell<u64>,
    /// Lanes that have registered.
    lanes: Cell<usize>,
    lane: RefCell<Option<Rc<Lane>>>,
    /// The reports about services that it got.
    health: RefCell<Vec<(String, bool)>>,
}

struct PlayedLane(Rc<PlayedServer>);

impl LaneEvents for PlayedLane {
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64) {
        assert_eq!(stream, CONTROL_STREAM);
        monoio::spawn(serve(Rc::clone(&self.0), Rc::clone(lane)));
    }
    fn datagram(&self, _lane: &Rc<Lane>, _data: &[u8]) {}
    fn datagrams_done(&self, _lane: &Rc<Lane>) {}
    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {}
}

struct Owner(Rc<PlayedServer>);

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        lane.handle_events(Rc::new(PlayedLane(Rc::clone(&self.0))));
        *self.0.lane.borrow_mut() = Some(Rc::clone(lane));
    }
    fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
        false
    }
}

async fn serve(this: Rc<PlayedServer>, lane: Rc<Lane>) {
    let mut reader = ControlReader::new(Rc::clone(&lane));
    let ControlEvent::Message(Message::Register(register)) =
        reader.next(Instant::now() + LONG).await
    else {
        panic!("a lane begins with Register");
    };
    *this.register.borrow_mut() = Some(register);
    lane.admit();
    lane.send_control(&Message::RegisterAck(RegisterAck {
        outcome: RegisterOutcome::Accepted,
        server_instance_id: [1; 16],
        server_cores: this.cores.get().max(1),
        lane_core: 0,
    }));
    this.lanes.set(this.lanes.get() + 1);
    this.registered.set();
    loop {
        match reader.next(Instant::now() + LONG).await {
            ControlEvent::Message(Message::ServiceHealth(news)) => {
                let mut health = this.health.borrow_mut();
                health.push((news.service, news.healthy));
            }
            ControlEvent::Message(_) => {}
            ControlEvent::Deadline | ControlEvent::Ended => return,
        }
    }
}

impl PlayedServer {
    fn lane(&self) -> Rc<Lane> {
        self.lane.borrow().clone().expect("a lane")
    }

    fn answer(&self, answers: Vec<ServiceAnswer>) {
        let answers = ServiceAnswers { answers };
        self.lane().send_control(&Message::ServiceAnswers(answers));
    }

    /// Sends a visitor of `service` at the traffic port; returns what the service sends back, or
    /// how the flow ends.
    async fn visit(&self, service: &str, traffic_port: u16) -> Result<Vec<u8>, FlowError> {
        let lane = self.lane();
        let stream = lane.open_stream().expect("room for a stream");
        let mut bytes = Vec::new();
        OpenHeader {
            flow_id: stream,
            protocol: Protocol::Tcp,
            service: service.into(),
            visitor: "192.0.2.1:1".parse().expect("literal"),
            traffic: SocketAddr::from(([192, 0, 2, 2], traffic_port)),
            opened_at_us: 0,
        }
        .encode(&mut bytes);
        bytes.extend_from_slice(b"?");
        let waiters = lane.attach(stream);
        // This fails where the lane is closed, which the test sees by what it reads.
        let _sent = lane.write(stream, StreamBuf::copied(&bytes), true, &waiters);
        let (mut buffer, mut received) = ([0; 256], Vec::new());
        loop {
            match lane.read(stream, &mut buffer, &waiters) {
                StreamRead::Bytes(read, fin) => {
                    received.extend_from_slice(&buffer[..read]);
                    if fin {
                        return Ok(received);
                    }
                }
                StreamRead::Blocked => waiters.readable.wait().await,
                StreamRead::Reset(error) => return Err(error),
            }
        }
    }
}

/// A service that sends `name` and then what the visitor has sent.
fn service(name: &'static str) -> u16 {
    serve_on(TcpListener::bind("127.0.0.1:0").expect("bind"), name)
}

fn serve_on(listener: TcpListener, name: &'static str) -> u16 {
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let mut bytes = name.as_bytes().to_vec();
            // A visitor that has gone is no failure of the service.
            let _read = socket.read_to_end(&mut bytes);
            let _written = socket.write_all(&bytes);
        }
    });
    port
}

/// A port at which nobody listens, for as long as the result lives.
fn dead_port() -> (u16, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("literal");
    socket.bind(&any.into()).expect("bind");
    let bound = socket.local_addr().expect("bound");
    (bound.as_socket().expect("IPv4").port(), socket)
}

fn at(name: &str, port: u16) -> LocalService {
    local(
        name,
        LocalPorts::These(Ports::one(port)),
        ListenerProtocol::Both,
    )
}

fn accepted(name: &str, first: u16, count: u16) -> ServiceAnswer {
    ServiceAnswer {
        name: name.into(),
        verdict: ServiceVerdict::Accepted,
        ports: TrafficPorts::new(first, count),
    }
}

struct World {
    server: Rc<PlayedServer>,
    core: Rc<ClientCore>,
    _endpoint: Rc<Endpoint>,
}

/// A client with these services that has just registered.
async fn registered(config: Config, services: Vec<LocalService>) -> World {
    registered_with(Rc::default(), config, services).await
}

async fn registered_with(
    server: Rc<PlayedServer>,
    mut config: Config,
    services: Vec<LocalService>,
) -> World {
    let mut accepting = setup(&config, true);
    accepting.handshake_timeout = LONG;
    let address = accepting.socket.local_addr();
    let endpoint = Endpoint::start(accepting, Some(Rc::new(Owner(Rc::clone(&server)))));
    config.server = None;
    let client = config.client.as_mut().expect("a client");
    client.servers[0].host = address.ip().to_string();
    client.servers[0].port = address.port();
    client.services = services;
    client.lanes = Lanes::Auto;
    let client = client.clone();
    let readiness = Arc::new(Readiness::new(1));
    let shared = Arc::new(ClientShared::new(&Arc::new(config), &client, &readiness));
    let (mailboxes, _wakes) = Mailboxes::<ClientMail>::new(1).expect("socket pairs");
    let cluster = Arc::new(Cluster::new(1));
    let flows = TcpFlows::new(Arc::clone(&cluster.counters[0]));
    let context = Rc::new(CoreContext::new(0, cluster, Instant::now()));
    let context = ClientContext::new(&context, Arc::new(mailboxes), &flows);
    let core = ClientCore::start(&context, &shared);
    server.registered.wait().await;
    World {
        server,
        core,
        _endpoint: endpoint,
    }
}

impl World {
    fn first_server(&self) -> Arc<ServerState> {
        Arc::clone(&self.core.shared.servers.load()[0])
    }

    async fn until_answered(&self, accepted: usize) {
        until("the answers to arrive", || {
            let servers = self.core.shared.servers.load();
            servers[0].told.accepted() == Some(accepted)
        })
        .await;
    }
}

#[test]
fn a_client_offers_all_its_services_and_each_flow_reaches_the_one_that_it_names() {
    run(async |config| {
        let (web, db) = (service("web"), service("db"));
        let mut services = vec![at("", service("nameless")), at("web", web), at("db", db)];
        services[2].protocol = ListenerProtocol::Tcp;
        let world = registered(config, services).await;
        let server = &world.server;
        let register = server.register.borrow().clone().expect("registered");
        assert!(register.capabilities.contains(Capabilities::NAMED_SERVICES));
        let names: Vec<&str> = register.services.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["", "web", "db"]);
        assert!(register.services[1].protocols.udp && !register.services[2].protocols.udp);
        server.answer(vec![
            accepted("", 80, 1),
            accepted("web", 81, 1),
            accepted("db", 82, 1),
        ]);
        assert_eq!(server.visit("web", 81).await, Ok(b"web?".to_vec()));
        assert_eq!(server.visit("db", 82).await, Ok(b"db?".to_vec()));
        assert_eq!(server.visit("", 80).await, Ok(b"nameless?".to_vec()));
        let unknown = server.visit("stranger", 83).await;
        assert_eq!(
            unknown,
            Err(FlowError::DialFailed),
            "another client may have it"
        );
        let counters = &world.core.context.counters;
        assert_eq!(counters.tcp_flows_unknown_service.get(), 1);
        let counted = |index: usize| {
            let settings = world.core.shared.settings();
            let services = settings.services.all();
            services[index].counts.tcp_flows.get()
        };
        assert_eq!([counted(0), counted(1), counted(2)], [1; 3]);
    });
}

#[test]
fn a_visitor_of_a_range_gets_the_port_of_its_position_even_before_the_answers() {
    run(async |config| {
        // Two ports in a row that are free.
        let (first, listeners) = (0..1_000)
            .find_map(|_| {
                // The system gives connections the higher ones.
                let port = rand::random_range(20_000..32_000);
                let low = TcpListener::bind(("127.0.0.1", port)).ok()?;
                let high = TcpListener::bind(("127.0.0.1", port + 1)).ok()?;
                Some((port, [low, high]))
            })
            .expect("two free ports in a row");
        let [low, high] = listeners;
        serve_on(low, "low");
        serve_on(high, "high");
        let ports = LocalPorts::These(Ports::range(first, first + 1).expect("a range"));
        let services = vec![local("pair", ports, ListenerProtocol::Tcp)];
        let world = registered(config, services).await;
        let server = Rc::clone(&world.server);
        // The visitor comes first: packets may be lost, and streams overtake each other.
        let early = monoio::spawn(async move { server.visit("pair", 30_001).await });
        let counters = &world.core.context.counters;
        until("the flow to wait", || counters.tcp_flows_opened.get() == 1).await;
        world.server.answer(vec![accepted("pair", 30_000, 3)]);
        assert_eq!(early.await, Ok(b"high?".to_vec()));
        let visit = world.server.visit("pair", 30_000).await;
        assert_eq!(visit, Ok(b"low?".to_vec()));
        let beyond = world.server.visit("pair", 30_002).await;
        assert_eq!(beyond, Err(FlowError::DialFailed));
        assert_eq!(counters.tcp_flows_without_port.get(), 1);
        let settings = world.core.shared.settings();
        let pair = &settings.services.all()[0];
        assert_eq!(pair.counts.flows_without_port.get(), 1);
        assert!(pair.is_healthy());
    });
}

#[test]
fn a_dead_service_marks_only_itself_and_comes_back_alone() {
    run(async |config| {
        let (port, holder) = dead_port();
        let services = vec![
            at("", service("nameless")),
            at("dead", port),
            at("web", service("web")),
        ];
        let world = registered(config, services).await;
        let server = &world.server;
        server.answer(vec![
            accepted("", 80, 1),
            accepted("dead", 81, 1),
            accepted("web", 82, 1),
        ]);
        let refused = server.visit("dead", 81).await;
        assert_eq!(refused, Err(FlowError::DialRefused));
        assert_eq!(server.visit("web", 82).await, Ok(b"web?".to_vec()));
        // The mailbox is not run here, so this is the mail that a core gets from itself.
        world.core.service_health_changed();
        until("the server to be told", || {
            *server.health.borrow() == [("dead".to_owned(), false)]
        })
        .await;
        let counted = |index: usize| {
            let settings = world.core.shared.settings();
            let services = settings.services.all();
            services[index].counts.dials_failed.get()
        };
        assert_eq!([counted(0), counted(1), counted(2)], [0, 1, 0]);
        // The service is checked from then on.
        holder.listen(8).expect("listen");
        let dead = Arc::clone(&world.core.shared.settings().services.all()[1]);
        until("the check to find it", || dead.is_healthy()).await;
        world.core.service_health_changed();
        until("the server to be told again", || {
            server.health.borrow()[1..] == [("dead".to_owned(), true)]
        })
        .await;
    });
}

#[test]
fn a_server_hears_nothing_of_services_that_it_does_not_take_until_it_does() {
    run(async |config| {
        let (port, _holder) = dead_port();
        let services = vec![at("web", service("web")), at("dead", port)];
        let world = registered(config, services).await;
        let server = &world.server;
        let refused = ServiceAnswer {
            name: "dead".into(),
            verdict: ServiceVerdict::NotAllowed,
            ports: None,
        };
        server.answer(vec![accepted("web", 80, 1), refused]);
        world.until_answered(1).await;
        let dead = Arc::clone(&world.core.shared.settings().services.all()[1]);
        dead.state.dialled(false, &dead, &world.core.context);
        world.core.service_health_changed();
        // A round trip later nothing has come.
        assert_eq!(server.visit("web", 80).await, Ok(b"web?".to_vec()));
        assert_eq!(*server.health.borrow(), []);
        // The server's config has changed.
        server.answer(vec![accepted("web", 80, 1), accepted("dead", 81, 1)]);
        until("the server to be told", || {
            *server.health.borrow() == [("dead".to_owned(), false)]
        })
        .await;
        assert!(!world.core.shared.serves_nothing());
    });
}

#[test]
fn a_server_of_an_older_version_serves_the_nameless_service_and_no_other() {
    run(async |config| {
        let (port, _holder) = dead_port();
        let services = vec![at("", service("nameless")), at("web", port)];
        let world = registered(config, services).await;
        let server = &world.server;
        assert_eq!(server.visit("", 8_080).await, Ok(b"nameless?".to_vec()));
        let web = Arc::clone(&world.core.shared.settings().services.all()[1]);
        web.state.dialled(false, &web, &world.core.context);
        // The server knows no names, and goes on with what it has always sent.
        server.lane().send_control(&Message::Heartbeat(Heartbeat {
            sequence: 1,
            acknowledged: 0,
        }));
        world.until_answered(1).await;
        world.core.service_health_changed();
        assert_eq!(server.visit("", 8_080).await, Ok(b"nameless?".to_vec()));
        // It would take them for reports about its own service.
        assert_eq!(*server.health.borrow(), []);
    });
}

/// A client of one core at a server of three.
async fn registered_at_three_cores(config: Config) -> World {
    let server = Rc::<PlayedServer>::default();
    server.cores.set(3);
    let services = vec![at("web", service("web"))];
    let world = registered_with(server, config, services).await;
    until("the number of cores to arrive", || {
        world.first_server().cores() == 3
    })
    .await;
    world
}

const BEAT: Message = Message::Heartbeat(Heartbeat {
    sequence: 1,
    acknowledged: 0,
});

#[test]
fn a_server_that_tells_hand_overs_has_as_many_lanes_as_the_client_has_cores_until_it_does() {
    run(async |config| {
        let world = registered_at_three_cores(config).await;
        let server = &world.server;
        let register = server.register.borrow().clone().expect("registered");
        assert!(register.capabilities.contains(Capabilities::HAND_OVERS));
        let tell = |visitors| {
            let said = HandOvers {
                visitors,
                datagrams: 0,
            };
            server.lane().send_control(&Message::HandOvers(said));
        };
        tell(0);
        server.lane().send_control(&BEAT);
        server.answer(vec![accepted("web", 80, 1)]);
        world.until_answered(1).await;
        assert_eq!(server.lanes.get(), 1);
        // The reports come now and then, as from a server, for longer than one burst takes.
        let mut visitors = 0;
        while server.lanes.get() < 2 {
            visitors += 10_000;
            tell(visitors);
            crate::core::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(world.core.context.counters.lanes_grown.get() > 0);
    });
}

#[test]
fn a_server_that_tells_no_hand_overs_has_a_lane_for_each_of_its_cores() {
    run(async |config| {
        let world = registered_at_three_cores(config).await;
        assert_eq!(world.server.lanes.get(), 1, "it may be about to tell them");
        world.server.lane().send_control(&BEAT);
        until("a lane for each core", || world.first_server().lanes() == 3).await;
        assert_eq!(world.core.context.counters.lanes_grown.get(), 2);
    });
}
