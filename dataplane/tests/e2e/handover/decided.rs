//! Who has the sockets when something else happens in the middle of a handover: one of the two, and
//! visitors come in there.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};

use rustix::process::{Signal, geteuid};

use super::{setup, successor, visit};
use crate::support::handover::{Answer, Predecessor, Successor};
use crate::support::ports;
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Listener, Server, ServerSetup, Site, start_client};
use crate::support::{visitor, wait};

/// Handovers for each moment of the stop: each may end either way.
const RACES: usize = 4;

/// When the predecessor is told to stop.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// Together with the successor's message: it was asleep when both came.
    AsItIsAsked,
    /// Just after that message.
    AfterItIsAsked,
    /// When it has answered.
    AfterItsAnswer,
}

#[test]
fn a_stop_in_the_middle_of_a_handover_leaves_the_successor_its_visitors() {
    if subject::only_wire("handover") {
        return;
    }
    let mut handed_over = 0;
    for stop in [
        Stop::AsItIsAsked,
        Stop::AfterItIsAsked,
        Stop::AfterItsAnswer,
    ] {
        for _ in 0..RACES {
            handed_over += usize::from(handed_over_despite(stop));
        }
    }
    assert!(
        handed_over >= RACES,
        "at least those that were done before the stop"
    );
}

/// Whether the successor got the sockets; if so, visitors come to it.
fn handed_over_despite(stop: Stop) -> bool {
    let site = Site::new();
    let mut server = Server::start(&site, &setup(2, ports::free_address()));
    let successor = Successor::come(&site.path().join("handover.sock"), 2);
    let answer = match stop {
        Stop::AsItIsAsked => {
            server.program.signal(Signal::STOP);
            successor.take();
            server.program.signal(Signal::TERM);
            server.program.signal(Signal::CONT);
            successor.answer()
        }
        Stop::AfterItIsAsked => {
            successor.take();
            server.program.signal(Signal::TERM);
            successor.answer()
        }
        Stop::AfterItsAnswer => {
            successor.take();
            let answer = successor.answer();
            server.program.signal(Signal::TERM);
            answer
        }
    };
    assert_eq!(server.program.wait_for_exit().code(), Some(0));
    match answer {
        Answer::Gone => {
            comes_in_at_each(&successor, server.traffic());
            true
        }
        Answer::Kept(why) => {
            assert!(why.contains("it was stopped"), "{stop:?}: {why}");
            false
        }
    }
}

/// Checks that visitors come to every socket that the successor has there.
fn comes_in_at_each(successor: &Successor, traffic: SocketAddr) {
    let mut waiting = successor.listeners(traffic);
    assert_eq!(waiting.len(), 2, "one for each core");
    for listener in &waiting {
        listener.set_nonblocking(true).expect("set");
    }
    let mut visitors = Vec::new();
    while !waiting.is_empty() {
        visitors.push(visitor::connect(traffic));
        waiting.retain(|listener| listener.accept().is_err());
    }
}

#[test]
fn a_successor_that_nobody_could_succeed_changes_nothing() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let mut server = Server::start(&site, &setup(1, admin));
    let (tcp, _udp) = echo_both();
    let _client = start_client(&site, &ClientSetup::default(), server.quic(), tcp.address);
    visitor::wait_until_served(server.traffic());
    symlink("handover.sock", site.path().join("link.sock")).expect("a link");
    let next = ServerSetup {
        name: "successor",
        server: vec!["handover = \"unix:link.sock\""],
        ..setup(1, admin)
    };
    let mut next = successor(&site, &next, &server.listeners);
    assert_eq!(next.wait_for_exit().code(), Some(2));
    let said = next.stderr();
    assert!(
        said.contains("link.sock is there and is no socket"),
        "{said}"
    );
    visit(server.traffic()).expect("served");
    assert!(server.program.exited().is_none(), "it serves on");
}

#[test]
fn a_successor_serves_if_the_one_before_falls_silent_and_listens_on() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let path = site.path().join("handover.sock");
    let silent = Predecessor::listen(&path);
    let listeners = [Listener::free(false)];
    let mut server = successor(&site, &setup(1, admin), &listeners);
    silent.lend_nothing().wait_for_take();
    server.wait_until_ready().expect("it is ready");
    let (tcp, _udp) = echo_both();
    let [Listener { quic, traffic }] = listeners;
    let _client = start_client(&site, &ClientSetup::default(), quic, tcp.address);
    visitor::wait_until_served(traffic);
    // It is the one that is found there now.
    assert_eq!(Successor::come(&path, 1).listeners(traffic).len(), 1);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn a_successor_that_is_late_does_not_serve_beside_the_one_before() {
    if subject::only_wire("handover") {
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    let predecessor = Predecessor::listen(&site.path().join("handover.sock"));
    let mut late = successor(&site, &setup(1, admin), &[Listener::free(false)]);
    let lending = predecessor.lend_nothing();
    lending.keep("it was asleep");
    drop(lending);
    assert_eq!(late.wait_for_exit().code(), Some(1));
    let said = late.stderr();
    assert!(said.contains("keeps its sockets: it was asleep"), "{said}");
}

#[test]
fn a_server_takes_no_sockets_of_another_user_who_listens_at_its_path() {
    if subject::only_wire("handover") {
        return;
    }
    if !geteuid().is_root() {
        eprintln!("only root can play another user");
        return;
    }
    let (site, admin) = (Site::new(), ports::free_address());
    // Everybody may write to the directory, as in /tmp.
    let dir = tempfile::TempDir::with_prefix("handover-").expect("directory");
    let everybody = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(dir.path(), everybody).expect("set");
    let path = dir.path().join("handover.sock");
    let mut stranger = listen_as_another(&path);
    let line = format!("handover = \"unix:{}\"", path.display());
    let setup = ServerSetup {
        server: vec![&*line.leak()],
        ..setup(1, admin)
    };
    let mut server = successor(&site, &setup, &[Listener::free(false)]);
    assert_eq!(server.wait_for_exit().code(), Some(2));
    let said = server.stderr();
    for words in ["server.handover", "user with id 65534", "handover.sock"] {
        assert!(said.contains(words), "{said}");
    }
    stranger.kill().expect("killed");
    stranger.wait().expect("ended");
}

/// A process of user 65534 that listens at `path` and answers nobody.
fn listen_as_another(path: &std::path::Path) -> std::process::Child {
    let script = "import os, socket, sys\n\
                  os.setgroups([]); os.setgid(65534); os.setuid(65534)\n\
                  s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
                  s.bind(sys.argv[1]); s.listen(8); os.chmod(sys.argv[1], 0o777)\n\
                  sys.stdin.read()\n";
    let child = Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3");
    let listens = || {
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        (mode & 0o777 == 0o777).then_some(())
    };
    wait::until("the other user listens", listens);
    child
}
