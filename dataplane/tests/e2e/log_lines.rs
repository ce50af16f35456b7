//! What an operator reads in the log.

use rustix::process::Signal;

use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::visitor;

/// The lines about something, which `about` finds.
fn lines(program: &Program, about: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = program.lines();
    lines.retain(|line| about(line));
    lines
}

fn tunnel(service: &TcpService, log_level: &'static str) -> Tunnel {
    let server = ServerSetup {
        cores: 3,
        log_level: Some(log_level),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: vec!["lanes = 3"],
        log_level: Some(log_level),
        ..ClientSetup::default()
    };
    Tunnel::with(&server, &client, service.address)
}

#[test]
fn a_client_that_comes_and_goes_is_one_line_each_with_its_lanes_counted() {
    if subject::only_wire("a_client_that_comes_and_goes_is_one_line_each") {
        return;
    }
    let service = TcpService::echo();
    let mut tunnel = tunnel(&service, "info");
    let up = |line: &str| line.contains("client up");
    let said = tunnel.server.program.wait_for_line("that it is up", up);
    // Its name is that of its host, not a bare random one.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host's name");
    let name: String = host.trim().chars().take(3).collect();
    assert!(said.contains(&format!("client=\"{name}")), "{said}");
    assert!(
        said.contains("address=127.0.0.1:") && said.contains("lanes="),
        "{said}"
    );
    let up = |line: &str| line.contains("server up");
    tunnel.client.wait_for_line("that its server is up", up);
    visitor::echo(tunnel.traffic(), b"served");
    tunnel.client.signal(Signal::TERM);
    assert_eq!(tunnel.client.wait_for_exit().code(), Some(0));
    let down = |line: &str| line.contains("client down");
    let said = tunnel.server.program.wait_for_line("that it is down", down);
    assert!(said.contains("why=") && said.contains("after_s="), "{said}");
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    for program in [&tunnel.server.program, &tunnel.client] {
        let of_lanes = lines(program, |line| {
            line.contains("lane registered") || line.contains("lane ended")
        });
        assert!(of_lanes.is_empty(), "{of_lanes:?}");
        for word in ["Some(", "None", "LeastConnections", "Both"] {
            let spelled = lines(program, |line| line.contains(word));
            assert!(spelled.is_empty(), "{spelled:?}");
        }
        let first = &program.lines()[0];
        assert!(
            first.contains("version=") && first.contains(".toml"),
            "{first}"
        );
    }
}

#[test]
fn a_visitor_is_two_lines_at_debug_with_its_bytes_counted() {
    if subject::only_wire("a_visitor_is_two_lines_at_debug") {
        return;
    }
    let service = TcpService::echo();
    let tunnel = tunnel(&service, "debug");
    visitor::echo(tunnel.traffic(), &[7; 1_000]);
    for program in [&tunnel.server.program, &tunnel.client] {
        let opened =
            |line: &str| line.contains("flow opened") && line.contains("visitor=127.0.0.1");
        program.wait_for_line("the visitor", opened);
        let ended = |line: &str| {
            line.contains("flow ended")
                && line.contains("completed")
                && line.contains("bytes_in=1000 bytes_out=1000")
        };
        program.wait_for_line("its bytes", ended);
    }
}
