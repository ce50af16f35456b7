//! Rolling restart: two servers behind HAProxy, three clients connected to both, visitors all the
//! time. Each server is stopped and started once, and no visitor fails.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::http;
use crate::support::peers;
use crate::support::ports;
use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, client_launch_to};
use crate::support::visitor;
use crate::support::wait;

/// A drain may take longer than the transfers, which last until both servers have been told to
/// stop.
const DRAIN: &str = "drain_timeout = \"2m\"";

/// Visitors with a small exchange: these threads, each with one visitor per period, make 200
/// visitors per second.
const THREADS: usize = 20;
const PERIOD: Duration = Duration::from_millis(100);

/// Transfers that are under way during the restarts, and what each moves per step.
const TRANSFERS: usize = 4;
const STEP_BYTES: usize = 64 << 10;
const STEP_PAUSE: Duration = Duration::from_millis(20);

/// This many visitors are served before a server is told to stop, while it drains, and after its
/// restart.
const VISITORS_BETWEEN: usize = 100;

fn server(site: &Site, name: &'static str) -> (Server, SocketAddr) {
    let admin = ports::free_address();
    let setup = ServerSetup {
        name,
        admin: Some(admin),
        cores: 2,
        listeners: vec!["tcp"],
        server: vec![DRAIN],
        ..ServerSetup::default()
    };
    (Server::start(site, &setup), admin)
}

#[derive(Default)]
struct Load {
    over: AtomicBool,
    served: AtomicUsize,
    slowest_ms: AtomicUsize,
    transferred: AtomicUsize,
}

impl Load {
    /// One visitor after the other; their failures.
    fn visitors(&self, address: SocketAddr, seed: u64) -> Vec<String> {
        let mut random = Random::new(seed);
        let mut failures = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let began = Instant::now();
            let length = random.between(1..=4_000);
            match small_exchange(address, &random.bytes(length)) {
                Ok(()) => {
                    self.served.fetch_add(1, Ordering::SeqCst);
                    let took = began.elapsed().as_millis() as usize;
                    self.slowest_ms.fetch_max(took, Ordering::SeqCst);
                }
                Err(error) => failures.push(error.to_string()),
            }
            thread::sleep(PERIOD.saturating_sub(began.elapsed()));
        }
        failures
    }

    /// One transfer until `done`, in both directions; panics unless every byte comes back.
    fn transfer(&self, address: SocketAddr, seed: u64, done: &AtomicBool) {
        let mut random = Random::new(seed);
        let mut stream = visitor::connect(address);
        while !done.load(Ordering::SeqCst) {
            visitor::exchange(&mut stream, &random.bytes(STEP_BYTES));
            self.transferred.fetch_add(STEP_BYTES, Ordering::SeqCst);
            thread::sleep(STEP_PAUSE);
        }
        visitor::finish(&stream);
        let ending = visitor::read_to_end(&mut stream);
        assert_eq!(ending, visitor::Ending::Clean(Vec::new()));
    }

    fn wait_for_more_visitors(&self) {
        let before = self.served.load(Ordering::SeqCst);
        wait::until_true("more visitors are served", || {
            self.served.load(Ordering::SeqCst) >= before + VISITORS_BETWEEN
        });
    }
}

fn small_exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<()> {
    let mut stream = visitor::try_connect(address)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer == bytes {
        Ok(())
    } else {
        let (came, sent) = (answer.len(), bytes.len());
        Err(std::io::Error::other(format!(
            "{came} bytes came back for {sent}"
        )))
    }
}

/// Waits until HAProxy sends visitors to the server of this endpoint.
fn wait_for_visitors(admin: SocketAddr) {
    wait::until_true("the restarted server gets visitors", || {
        let metrics = http::get(admin, "/metrics").body;
        http::metric(&metrics, "qmux_dp_visitors_accepted_total") > 0.0
    });
}

#[test]
fn a_rolling_restart_of_two_servers_behind_haproxy_fails_nobody() {
    if subject::only_wire("a_rolling_restart_of_two_servers_behind_haproxy_fails_nobody") {
        return;
    }
    let service = TcpService::echo();
    let site = Site::new();
    let mut servers = [server(&site, "server-0"), server(&site, "server-1")];
    let quic = servers
        .each_ref()
        .map(|(server, _)| server.quic().to_string());
    let clients = ["client-0", "client-1", "client-2"].map(|name| {
        let setup = ClientSetup {
            name,
            ..ClientSetup::default()
        };
        client_launch_to(&site, &setup, &[&quic[0], &quic[1]], service.address).start()
    });
    for (_, admin) in &servers {
        http::wait_for(*admin, "/readyz?clients=3", 200);
    }
    let backends = servers
        .each_ref()
        .map(|(server, admin)| (server.traffic(), *admin));
    let haproxy = peers::haproxy_checking(&site, &backends);
    visitor::wait_until_served(haproxy.address);

    let load = Load::default();
    let stopped = [AtomicBool::new(false), AtomicBool::new(false)];
    let began = Instant::now();
    let mut drains = Vec::new();
    let failures: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|seed| {
                scope.spawn({
                    let load = &load;
                    move || load.visitors(haproxy.address, seed)
                })
            })
            .collect();
        for (index, (server, admin)) in servers.iter_mut().enumerate() {
            let (load, done) = (&load, &stopped[index]);
            // Through HAProxy some of them go to the server that is about to stop.
            let transfers: Vec<_> = (0..TRANSFERS as u64)
                .map(|seed| scope.spawn(move || load.transfer(haproxy.address, seed, done)))
                .collect();
            load.wait_for_more_visitors();
            let told = Instant::now();
            server.program.signal(Signal::TERM);
            // Visitors come while it drains with its transfers; HAProxy has noticed when it
            // refuses.
            http::wait_for(*admin, "/readyz", 503);
            load.wait_for_more_visitors();
            done.store(true, Ordering::SeqCst);
            for transfer in transfers {
                transfer.join().expect("a transfer");
            }
            assert_eq!(server.program.wait_for_exit().code(), Some(0));
            drains.push(told.elapsed());
            server.program.restart();
            server.program.wait_until_ready().expect("it starts again");
            http::wait_for(*admin, "/readyz?clients=3", 200);
            // Whoever restarts the next one waits until the balancer has taken this one back.
            wait_for_visitors(*admin);
            load.wait_for_more_visitors();
        }
        load.over.store(true, Ordering::SeqCst);
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .flat_map(|failures| failures.expect("visitors"))
            .collect()
    });
    let served = load.served.load(Ordering::SeqCst);
    eprintln!(
        "rolling restart: {served} visitors in {:.1} s ({:.0} per second), {} failed; slowest {} ms; \
         {} transfers, {} MB; drains took {:.1?}",
        began.elapsed().as_secs_f64(),
        served as f64 / began.elapsed().as_secs_f64(),
        failures.len(),
        load.slowest_ms.load(Ordering::SeqCst),
        2 * TRANSFERS,
        load.transferred.load(Ordering::SeqCst) / 1_000_000,
        drains,
    );
    for (_, admin) in &servers {
        let metrics = http::get(*admin, "/metrics").body;
        let total = |name: &str| http::metric(&metrics, &format!("qmux_dp_{name}_total"));
        eprintln!(
            "rolling restart: a restarted server has accepted {} visitors, refused {}, reset {} flows",
            total("visitors_accepted"),
            total("visitors_refused"),
            total("tcp_flows_reset"),
        );
    }
    assert!(failures.is_empty(), "of {served}: {failures:?}");
    drop(clients);
}
