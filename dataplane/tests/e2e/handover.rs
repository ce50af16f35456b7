//! One server process takes the place of another, and nobody is lost.

mod decided;
mod left;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::http;
use crate::support::notify::ServiceManager;
use crate::support::ports;
use crate::support::program::{Launch, Program};
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Listener, Server, ServerSetup, Site, client_config, start_client,
};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::wait;

/// Bytes that a flow of the predecessor carries after the change.
const BULK_BYTES: usize = 3 << 20;

/// Pause of each visitor between two visits: 100 in a second, all together.
const VISIT_PAUSE: Duration = Duration::from_millis(40);
const VISITORS: usize = 4;

fn setup(cores: usize, admin: SocketAddr) -> ServerSetup {
    ServerSetup {
        cores,
        server: vec![
            "handover = \"unix:handover.sock\"",
            "drain_timeout = \"2m\"",
        ],
        admin: Some(admin),
        ..ServerSetup::default()
    }
}

/// Another process of the same server.
fn successor(site: &Site, setup: &ServerSetup, listeners: &[Listener]) -> Program {
    Server::launch(site, setup, listeners).start()
}

/// Visits without end until it is told to stop, with their results.
struct Visits {
    stop: Arc<AtomicBool>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<thread::JoinHandle<(usize, Duration)>>,
}

impl Visits {
    fn begin(address: SocketAddr) -> Self {
        let (stop, failed) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let visitor = |_| {
            let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
            thread::spawn(move || {
                let (mut done, mut longest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    if let Err(error) = visit(address) {
                        failed.lock().expect("list").push(error.to_string());
                    }
                    longest = longest.max(began.elapsed());
                    done += 1;
                    thread::sleep(VISIT_PAUSE);
                }
                (done, longest)
            })
        };
        let threads = (0..VISITORS).map(visitor).collect();
        Self {
            stop,
            failed,
            threads,
        }
    }

    /// Ends them; returns how many there were, of which none has failed.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.threads.into_iter();
        let all: Vec<_> = all.map(|it| it.join().expect("a visitor")).collect();
        let failed = self.failed.lock().expect("list");
        let visits = all.iter().map(|(done, _)| done).sum();
        let longest = all.iter().map(|(_, longest)| *longest).max();
        println!(
            "{visits} visits, the longest {longest:?}, {} failed",
            failed.len()
        );
        assert_eq!(*failed, Vec::<String>::new(), "of {visits} visits");
        visits
    }
}

fn visit(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = visitor::try_connect(address)?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    visitor::finish_if_open(&stream);
    stream.read_to_end(&mut Vec::new())?;
    if &answer == b"hello" {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

#[test]
fn a_successor_takes_over_and_no_visitor_is_refused_and_no_flow_is_cut() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let setup = setup(2, admin);
    let mut server = Server::start(&site, &setup);
    let (tcp, _udp) = echo_both();
    let client = ClientSetup {
        cores: 2,
        ..ClientSetup::default()
    };
    let _client = start_client(&site, &client, server.quic(), tcp.address);
    let traffic = server.traffic();
    visitor::wait_until_served(traffic);
    UdpVisitor::new(traffic).echo(b"before");
    let before = instance(admin);

    let visits = Visits::begin(traffic);
    let mut lasting: Vec<_> = (0..8).map(|_| visitor::connect(traffic)).collect();
    let exchange_all = |flows: &mut Vec<_>| {
        for stream in flows {
            visitor::exchange(stream, b"still here");
        }
    };
    exchange_all(&mut lasting);
    let next = ServerSetup {
        name: "successor",
        ..setup
    };
    let next = successor(&site, &next, &server.listeners);
    next.wait_until_ready().expect("the successor is ready");
    let says = |line: &str| line.contains("handed over");
    server
        .program
        .wait_for_line("that it has handed over", says);
    exchange_all(&mut lasting);
    // Each flow of the predecessor transfers a bulk, by packets that the successor passes on.
    for stream in &mut lasting[..2] {
        visitor::exchange(stream, &vec![7; BULK_BYTES]);
    }
    wait::until_true("the admin endpoint is the successor's", || {
        http::try_get(admin, "/readyz").is_ok_and(|answer| answer.status == 200)
            && instance(admin) != before
    });
    UdpVisitor::new(traffic).echo(b"after");
    visit(traffic).expect("served by the successor");
    assert!(server.program.exited().is_none(), "it has flows");
    let metrics = http::get(admin, "/metrics").body;
    let passed = http::metric(&metrics, "qmux_dp_quic_packets_passed_on_total");
    assert!(
        passed > 0.0,
        "flows of the predecessor go on by the successor's sockets"
    );

    for stream in lasting {
        visitor::finish(&stream);
        let mut stream = stream;
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    }
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    let at_its_end = visits.end();
    assert!(at_its_end > 0);
    visit(traffic).expect("served without the predecessor");
    UdpVisitor::new(traffic).echo(b"without the predecessor");
}

#[test]
fn a_client_over_tls_comes_over_to_the_successor_and_keeps_its_flows() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let setup = setup(2, admin);
    let mut server = Server::start(&site, &setup);
    let (tcp, _udp) = echo_both();
    let client = site.write("client.toml", &over_tls(server.quic(), tcp.address));
    let client = Launch::new("client", subject::client())
        .args(["--config", &client])
        .args(["--cores", "1"])
        .start();
    client.wait_until_ready().expect("the client is ready");
    let traffic = server.traffic();
    visitor::wait_until_served(traffic);
    let visits = Visits::begin(traffic);
    let mut lasting = visitor::connect(traffic);
    visitor::exchange(&mut lasting, b"before");
    let next = ServerSetup {
        name: "successor",
        ..setup
    };
    let next = successor(&site, &next, &server.listeners);
    next.wait_until_ready().expect("the successor is ready");
    let says = |line: &str| line.contains("handed over");
    server
        .program
        .wait_for_line("that it has handed over", says);
    visit(traffic).expect("served by the successor");
    visitor::exchange(&mut lasting, &vec![7; BULK_BYTES]);
    visitor::finish(&lasting);
    let ending = visitor::read_to_end(&mut lasting);
    assert_eq!(ending, Ending::Clean(Vec::new()));
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    visit(traffic).expect("served without the predecessor");
    visits.end();
}

/// The config of a client that never tries QUIC.
fn over_tls(server: SocketAddr, service: SocketAddr) -> String {
    let plain = client_config(&ClientSetup::default(), &[&server.to_string()], service);
    let address = format!("address = \"{server}\"\n");
    plain.replace(&address, &format!("{address}transport = \"tls\"\n"))
}

/// The process that answers at the admin endpoint.
fn instance(admin: SocketAddr) -> String {
    http::try_get(admin, "/status").map_or(String::new(), |answer| {
        let status: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        status["instance"].to_string()
    })
}

#[test]
fn a_successor_with_other_cores_or_a_wrong_config_changes_nothing() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let mut server = Server::start(&site, &setup(1, admin));
    let (tcp, _udp) = echo_both();
    let _client = start_client(&site, &ClientSetup::default(), server.quic(), tcp.address);
    visitor::wait_until_served(server.traffic());
    let mut lasting = visitor::connect(server.traffic());
    visitor::exchange(&mut lasting, b"before");
    let other = ServerSetup {
        name: "other",
        ..setup(2, admin)
    };
    let mut other = successor(&site, &other, &server.listeners);
    assert_eq!(other.wait_for_exit().code(), Some(2));
    let said = other.stderr();
    for words in ["server.handover", "1 cores", "--cores"] {
        assert!(said.contains(words), "{said}");
    }
    let wrong = ServerSetup {
        name: "wrong",
        identity: "missing",
        ..setup(1, admin)
    };
    let mut wrong = successor(&site, &wrong, &server.listeners);
    assert_eq!(wrong.wait_for_exit().code(), Some(2));
    visitor::exchange(&mut lasting, b"after");
    visit(server.traffic()).expect("served");
    assert!(server.program.exited().is_none());
}

#[test]
fn a_signal_starts_a_successor_and_one_after_the_other_takes_over() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let mut server = Server::start(&site, &setup(1, admin));
    let (tcp, _udp) = echo_both();
    let _client = start_client(&site, &ClientSetup::default(), server.quic(), tcp.address);
    let traffic = server.traffic();
    visitor::wait_until_served(traffic);
    let visits = Visits::begin(traffic);
    server.program.signal(Signal::USR2);
    let started = |line: &str| line.contains("a successor was started");
    let line = server
        .program
        .wait_for_line("the start of a successor", started);
    let digits = line.split("pid=").nth(1).expect("its process id");
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    let pid = Pid::from_raw(digits.parse().expect("a number")).expect("a process");
    let stop = Stop(pid);
    // Its log goes on, because the successor's goes there as well.
    let status = wait::until("the first process ends", || server.program.exited());
    assert_eq!(status.code(), Some(0));
    wait::until_true("the successor serves", || {
        http::try_get(admin, "/readyz").is_ok_and(|answer| answer.status == 200)
    });
    visits.end();
    drop(stop);
}

#[test]
fn the_service_manager_hears_of_the_successor_before_that_is_ready_and_of_no_stop() {
    if subject::only_wire("handover") {
        return;
    }
    let manager = ServiceManager::start();
    let (site, admin) = (Site::new(), ports::free_address());
    let (listeners, setup) = ([Listener::free(false)], setup(1, admin));
    let mut first = Server::launch(&site, &setup, &listeners)
        .env("NOTIFY_SOCKET", &manager.socket())
        .start();
    manager.wait_for("the first one's readiness", |line| line == "READY=1");
    first.signal(Signal::USR2);
    let is_of_interest =
        |line: &str| line.starts_with("MAINPID=") || line == "READY=1" || line == "STOPPING=1";
    let main = manager.wait_for("another main process", is_of_interest);
    let pid = main.strip_prefix("MAINPID=").expect("before all else");
    let pid = Pid::from_raw(pid.parse().expect("a number")).expect("a process");
    let _stop = Stop(pid);
    let started = |line: &str| {
        line.contains("a successor was started")
            && line.contains(&format!("pid={}", pid.as_raw_nonzero()))
    };
    first.wait_for_line("the start of that one", started);
    let next = manager.wait_for("the successor's readiness", is_of_interest);
    assert_eq!(next, "READY=1");
    let status = wait::until("the first process ends", || first.exited());
    assert_eq!(status.code(), Some(0));
    let more = manager.lines_within(Duration::from_millis(300));
    assert!(!more.iter().any(|line| line == "STOPPING=1"), "{more:?}");
}

/// Ends a process that the test did not start itself.
struct Stop(Pid);

impl Drop for Stop {
    fn drop(&mut self) {
        let _gone = kill_process(self.0, Signal::KILL);
    }
}
