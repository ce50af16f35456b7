//! What the machine offers to the programs: where io_uring is forbidden (old kernels, containers),
//! epoll does the same work, and where glibc copies slowly, it is told not to.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::random::Random;
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;

/// monoio's own switch.
const EPOLL: Option<(&str, &str)> = Some(("MONOIO_FORCE_LEGACY_DRIVER", "1"));

#[test]
fn tcp_and_udp_work_on_epoll() {
    if subject::only_wire("tcp_and_udp_work_on_epoll") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let server = ServerSetup {
        cores: 2,
        env: EPOLL,
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        cores: 2,
        env: EPOLL,
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, tcp.address);
    for program in [&tunnel.server.program, &tunnel.client] {
        let warned = |line: &str| line.contains("epoll");
        program.wait_for_line("that it runs on epoll", warned);
    }
    let mut random = Random::new(1);
    for length in [1, 1_000, 100_000, 5_000_000] {
        visitor::echo(tunnel.traffic(), &random.bytes(length));
    }
    let mut datagrams = UdpVisitor::new(tunnel.traffic());
    for size in [0, 1, 1_200, 9_000, 65_507] {
        datagrams.echo(&random.bytes(size));
    }
}

#[test]
fn a_server_on_epoll_and_a_client_on_io_uring_go_together() {
    if subject::only_wire("a_server_on_epoll_and_a_client_on_io_uring_go_together") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let server = ServerSetup {
        env: EPOLL,
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), tcp.address);
    visitor::echo(tunnel.traffic(), &Random::new(2).bytes(1_000_000));
    UdpVisitor::new(tunnel.traffic()).echo(b"datagram");
}

/// Round trips of several visitors at a time.
fn talk_in_turns(tunnel: &Tunnel) {
    let visitors: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = visitor::connect(tunnel.traffic());
            std::thread::spawn(move || {
                for _ in 0..5_000 {
                    visitor::exchange(&mut stream, b"a small message");
                }
            })
        })
        .collect();
    for visitor in visitors {
        visitor.join().expect("all came back");
    }
}

#[test]
fn cores_look_out_for_the_next_message_unless_told_not_to() {
    if subject::only_wire("cores_look_out_for_the_next_message_unless_told_not_to") {
        return;
    }
    let (tcp, _udp) = echo_both();
    for (quic, may) in [(vec![], true), (vec!["busy_poll = false"], false)] {
        let server = ServerSetup {
            quic: quic.clone(),
            ..ServerSetup::default()
        };
        let client = ClientSetup {
            quic,
            ..ClientSetup::default()
        };
        let mut tunnel = Tunnel::with(&server, &client, tcp.address);
        talk_in_turns(&tunnel);
        for program in [&mut tunnel.server.program, &mut tunnel.client] {
            program.signal(Signal::TERM);
            assert_eq!(program.wait_for_exit().code(), Some(0));
            let on_epoll = program.lines().iter().any(|line| line.contains("epoll"));
            let times = counters::total(&counters::of(program), "busy_polls");
            assert_eq!(times > 0, may && !on_epoll, "{times} times");
        }
    }
}

#[test]
fn a_program_that_starts_itself_once_more_for_fast_copies_stays_what_it_was() {
    const USERS: &str = "glibc.malloc.tcache_count=5";
    if subject::only_wire("a_program_that_starts_itself_once_more_for_fast_copies…") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let server = ServerSetup {
        env: Some(("GLIBC_TUNABLES", USERS)),
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), tcp.address);
    visitor::echo(tunnel.traffic(), &Random::new(3).bytes(1_000_000));

    // The harness knows the process by the number that it began with, and `pgrep` by its name.
    let id = tunnel.server.program.id();
    let name = fs::read_to_string(format!("/proc/{id}/comm")).expect("its name");
    assert_eq!(name.trim_end(), "qmux-dp");
    // glibc has put an end behind each tunable that it has read.
    let environment = fs::read_to_string(format!("/proc/{id}/environ")).expect("its environment");
    let has = |variable: &str| environment.split('\0').any(|one| one == variable);
    let ours = environment.matches("x86_rep_movsb_threshold").count();
    assert!(environment.contains(&format!("GLIBC_TUNABLES={USERS}")));
    let again = copies_are_slow();
    assert_eq!(has(&format!("QMUX_DP_STARTED_ANEW={id}")), again);
    assert_eq!(ours, usize::from(again));
}

/// Whether this machine is one of those that need it: AMD's CPUs that call `rep movsb` fast, with a
/// glibc before 2.39.
fn copies_are_slow() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").expect("readable");
    let says = |key: &str, word: &str| {
        let mut lines = cpu.lines().filter(|line| line.starts_with(key));
        lines.any(|line| line.split_whitespace().any(|it| it == word))
    };
    let asked = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let answer = asked.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let version = answer.unwrap_or_default();
    let old = version
        .trim()
        .strip_prefix("glibc 2.")
        .and_then(|minor| minor.parse::<u32>().ok())
        .is_some_and(|minor| minor < 39);
    cfg!(target_arch = "x86_64")
        && says("vendor_id", "AuthenticAMD")
        && says("flags", "erms")
        && old
}
