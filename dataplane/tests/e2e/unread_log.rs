//! A log that nobody can or will read: the tunnel goes on as if somebody did.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::http;
use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Listener, Server, ServerSetup, Site, start_client};
use crate::support::visitor;
use crate::support::wait;

/// Visitors one after the other: each makes some dozen lines of the log at its finest level, and
/// all of them together many more than a pipe holds.
const VISITORS: usize = 200;

/// A server whose standard error is a given one; ended with the test.
struct Victim {
    child: Child,
    listener: Listener,
    admin: std::net::SocketAddr,
}

impl Victim {
    fn start(site: &Site, stderr: Stdio) -> Self {
        let admin = ports::free_address();
        let setup = ServerSetup {
            admin: Some(admin),
            log_level: Some("trace"),
            ..ServerSetup::default()
        };
        let listener = Listener::free(false);
        let launch = Server::launch(site, &setup, &[listener]);
        let child = launch.spawn_with(Stdio::null(), stderr);
        // It serves when it says so there: its log may not be readable.
        http::wait_for(admin, "/readyz?clients=0", 200);
        Self {
            child,
            listener,
            admin,
        }
    }

    fn metric(&self, name: &str) -> f64 {
        http::metric(&http::get(self.admin, "/metrics").body, name)
    }

    /// Sends SIGTERM; returns the exit code.
    fn stop(&mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("it lives");
        let status = wait::until("it ends", || self.child.try_wait().expect("our own child"));
        status.code()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Serves a client, one flow that lasts, and many visitors while the log is as it is.
fn serves_all_the_same(site: &Site, victim: &mut Victim) {
    let service = TcpService::echo();
    let client = ClientSetup::default();
    let _client = start_client(site, &client, victim.listener.quic, service.address);
    visitor::wait_until_served(victim.listener.traffic);
    let mut lasting = visitor::connect(victim.listener.traffic);
    for _ in 0..VISITORS {
        visitor::echo(victim.listener.traffic, b"served");
    }
    visitor::exchange(&mut lasting, b"still open");
}

#[test]
fn flows_go_on_when_the_reader_of_the_log_has_gone() {
    if subject::only_wire("flows_go_on_when_the_reader_of_the_log_has_gone") {
        return;
    }
    let site = Site::new();
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut victim = Victim::start(&site, OwnedFd::from(writer).into());
    drop(reader);
    serves_all_the_same(&site, &mut victim);
    assert!(victim.metric("qmux_dp_log_lines_failed_total") > 0.0);
    assert_eq!(victim.stop(), Some(0));
}

#[test]
fn flows_go_on_when_the_disk_that_holds_the_log_is_full() {
    if subject::only_wire("flows_go_on_when_the_disk_that_holds_the_log_is_full") {
        return;
    }
    let site = Site::new();
    let full = OpenOptions::new().write(true).open("/dev/full");
    let mut victim = Victim::start(&site, full.expect("it is always there").into());
    serves_all_the_same(&site, &mut victim);
    assert!(victim.metric("qmux_dp_log_lines_failed_total") > 0.0);
    assert_eq!(victim.stop(), Some(0));
}

#[test]
fn flows_go_on_when_nobody_reads_the_log_and_it_tells_what_is_missing() {
    if subject::only_wire("flows_go_on_when_nobody_reads_the_log") {
        return;
    }
    let site = Site::new();
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let mut victim = Victim::start(&site, OwnedFd::from(writer).into());
    serves_all_the_same(&site, &mut victim);
    while victim.metric("qmux_dp_log_lines_dropped_total") == 0.0 {
        for _ in 0..VISITORS {
            visitor::echo(victim.listener.traffic, b"served");
        }
    }
    // Now somebody reads, to the end.
    let text = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        text
    });
    assert_eq!(victim.stop(), Some(0));
    let text = text.join().expect("the reader");
    assert!(text.contains("log lines are missing before this one"));
    assert!(text.contains("stopped"), "the last lines are written");
}

#[test]
fn a_process_ends_although_nobody_reads_its_log() {
    if subject::only_wire("a_process_ends_although_nobody_reads_its_log") {
        return;
    }
    let site = Site::new();
    let (_reader, writer) = io::pipe().expect("a pipe");
    let mut victim = Victim::start(&site, OwnedFd::from(writer).into());
    serves_all_the_same(&site, &mut victim);
    assert_eq!(victim.stop(), Some(0));
}

#[test]
fn an_error_at_the_start_has_its_exit_code_wherever_its_text_goes() {
    if subject::only_wire("an_error_at_the_start") {
        return;
    }
    let site = Site::new();
    let config = site.write("bad.toml", "this is no config");
    for output in ["/dev/full", "/dev/null"] {
        for args in [
            vec!["--config", config.as_str()],
            vec!["--log-level", "x=y", "demo"],
        ] {
            let open = || Stdio::from(File::options().write(true).open(output).expect("there"));
            let status = std::process::Command::new(subject::server())
                .args(&args)
                .stdout(open())
                .stderr(open())
                .status()
                .expect("started");
            assert_eq!(status.code(), Some(2), "{args:?} > {output}");
        }
    }
}
