//! What is left on a core that cannot open everything.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use crossbeam::channel::bounded;
use qmux_config::Config;

use super::*;
use crate::core::mailbox::{Mailboxes, Post};
use crate::core::{Cluster, CoreContext};
use crate::flow::udp::tests::support::{run, std_socket, until};
use crate::flow::watch::TcpFlows;
use crate::quic::tickets::TicketKeys;
use crate::server::shared::plan::{DoorSockets, EntranceSockets};
use crate::server::succession::{SocketUse, Taken};
use crate::sys::bind::tcp_reuseport;

/// A server with three services. The sockets that tests bind stand for these addresses.
fn config() -> (tempfile::TempDir, Arc<Config>) {
    let dir = tempfile::tempdir().expect("a directory");
    let request = qmux_config::certs::CertsRequest {
        server_names: vec!["tunnel.test".into()],
        days: 30,
    };
    let certs = qmux_config::certs::generate(&request).expect("certificates");
    qmux_config::certs::write(&certs, dir.path(), false).expect("written");
    let service = |name: &str, port: u16| {
        format!(
            "[[server.services]]\nname = {name:?}\nprotocol = \"both\"\n\
             traffic_addr = \"127.0.0.1:{port}\"\n"
        )
    };
    let services: String = [("a", 1001), ("b", 1002), ("c", 1003)]
        .map(|(name, port)| service(name, port))
        .concat();
    let text = format!(
        "[server]\nquic_addr = \"127.0.0.1:1000\"\n{services}\
         [server.auth]\nmethod = \"mtls\"\nca_cert_file = \"ca.crt\"\n\
         [server.tls]\nserver_cert_file = \"server.crt\"\nserver_key_file = \"server.key\"\n"
    );
    let config = Config::parse(&text, &dir.path().join("dp.toml")).expect("a config");
    (dir, Arc::new(config))
}

fn nothing() -> CoreChanges {
    CoreChanges {
        doors_opened: Vec::new(),
        doors_closed: Vec::new(),
        opened: Vec::new(),
        closed: Vec::new(),
        told: Arc::default(),
        drain_timeout: Duration::from_secs(60),
        done: None,
    }
}

/// A core that serves nothing yet.
struct World {
    core: Rc<ServerCore>,
    cluster: Arc<Cluster>,
    config: Arc<Config>,
    /// The directory of the certificates.
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let (dir, config) = config();
        let server = config.server.as_ref().expect("a server");
        let (keys, keeper) = TicketKeys::start(&server.tls).expect("keys");
        let log = Arc::new(AccessLog::off());
        let shared = ServerShared::new(&config, server, 1, keys, keeper, &log).expect("shared");
        let cluster = Arc::new(Cluster::new(1));
        let context = Rc::new(CoreContext::new(0, Arc::clone(&cluster), Instant::now()));
        let flows = TcpFlows::new(Arc::clone(&context.counters));
        let (mailboxes, _wakes) = Mailboxes::<ServerMail>::new(1).expect("a socket pair");
        let post: Arc<dyn Post<ServerMail>> = Arc::new(mailboxes);
        let context = ServerContext::new(&context, post, &flows);
        let core = ServerCore::start(&context, &Arc::new(shared), nothing()).expect("started");
        World {
            core,
            cluster,
            config,
            _dir: dir,
        }
    }

    /// Reloads with the door and its services at these sockets; returns the report of the core.
    fn reload(&self, quic: UdpSocket, services: Vec<EntranceSockets>) -> Result<(), String> {
        let server = self.config.server.as_ref().expect("a server");
        let shared = &self.core.shared;
        let plan = shared.plan(&self.config, server).expect("a plan");
        let sockets = DoorSockets {
            quic: vec![quic],
            tls: vec![None],
            services: services.into_iter().map(|it| vec![it]).collect(),
        };
        let mut changes = shared.follow(&plan, vec![vec![sockets]]).remove(0);
        let (done, told) = bounded(1);
        changes.done = Some(done);
        self.core.mail(ServerMail::Change(Box::new(changes)));
        told.recv().expect("it says so")
    }

    fn accepted(&self) -> u64 {
        self.core.context.counters.visitors_accepted.get()
    }
}

/// A socket that no core can use.
fn unusable() -> UdpSocket {
    let file = File::open("/dev/null").expect("it is everywhere");
    OwnedFd::from(file).into()
}

/// An entrance's sockets, and the one for TCP once more, as `main` has it.
fn entrance(udp: UdpSocket) -> (EntranceSockets, TcpListener, SocketAddr) {
    let tcp = tcp_reuseport("127.0.0.1:0".parse().expect("literal")).expect("a free port");
    let (again, address) = (tcp.try_clone(), tcp.local_addr());
    let sockets = EntranceSockets {
        tcp: Some(tcp),
        udp: Some(udp),
    };
    (
        sockets,
        again.expect("a descriptor"),
        address.expect("bound"),
    )
}

#[test]
fn an_entrance_that_cannot_be_opened_keeps_nobody_waiting_and_costs_no_other_one() {
    run(async {
        let world = World::new();
        let (a, _a, at_a) = entrance(std_socket());
        let (b, _b, at_b) = entrance(unusable());
        let (c, _c, at_c) = entrance(std_socket());
        let why = world
            .reload(std_socket(), vec![a, b, c])
            .expect_err("not all");
        assert!(why.contains("127.0.0.1:1002"), "{why}");
        TcpStream::connect(at_b).expect_err("nobody listens where nobody is accepted");
        let _visitors = [at_a, at_c].map(|at| TcpStream::connect(at).expect("it listens"));
        until("both are accepted", || world.accepted() == 2).await;
        // The cores do this when the process stops.
        world.core.context.draining.set(true);
        world.core.drain(Duration::ZERO);
        until("nobody can come any more", || {
            world.cluster.all_visitors_are_in()
        })
        .await;
    });
}

#[test]
fn the_entrances_of_a_door_that_cannot_be_opened_keep_nobody_waiting() {
    run(async {
        let world = World::new();
        let entrances = [(); 3].map(|()| entrance(std_socket()));
        let at: Vec<_> = entrances.iter().map(|(_, _, at)| *at).collect();
        let (sockets, _again): (Vec<_>, Vec<_>) = entrances
            .into_iter()
            .map(|(sockets, again, _)| (sockets, again))
            .unzip();
        let why = world.reload(unusable(), sockets).expect_err("no door");
        assert!(why.contains("127.0.0.1:1000"), "{why}");
        for at in at {
            TcpStream::connect(at).expect_err("nobody listens where nobody is accepted");
        }
        assert!(world.cluster.all_visitors_are_in());
    });
}

#[test]
fn a_stop_that_overtakes_word_of_the_handover_closes_nothing_of_the_successors() {
    run(async {
        let world = World::new();
        let (a, _a, at_a) = entrance(std_socket());
        let (b, _b, at_b) = entrance(std_socket());
        let (c, _c, _) = entrance(std_socket());
        let opened = world.reload(std_socket(), vec![a, b, c]);
        opened.expect("all are opened");
        let taken = (SocketUse::Tcp, "127.0.0.1:1001".parse().expect("literal"));
        let into = &world.core.shared.handed_over;
        into.set(Taken::from_iter([taken])).expect("the first");
        world.core.context.draining.set(true);
        world.core.drain(Duration::ZERO);
        until("nobody is accepted any more", || {
            world.cluster.all_visitors_are_in()
        })
        .await;
        TcpStream::connect(at_a).expect("the successor has it");
        TcpStream::connect(at_b).expect_err("nobody has taken it");
    });
}
