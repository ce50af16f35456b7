//! What signals do: three stop the program, the others that people and tools send are answered by a
//! line.

use rustix::process::Signal;

use crate::support::http;
use crate::support::ports;
use crate::support::resolver::SilentResolver;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Site, Tunnel, client_config, client_launch_to};
use crate::support::visitor;

/// Those that are answered by a line.
const IGNORED: [(Signal, &str); 3] = [
    (Signal::USR1, "SIGUSR1"),
    (Signal::USR2, "SIGUSR2"),
    (Signal::ALARM, "SIGALRM"),
];

#[test]
fn signals_that_mean_nothing_get_a_line_and_flows_go_on() {
    if subject::only_wire("signals_that_mean_nothing_get_a_line_and_flows_go_on") {
        return;
    }
    let service = TcpService::echo();
    let mut tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::exchange(&mut stream, b"before");
    for program in [&tunnel.server.program, &tunnel.client] {
        for (signal, name) in IGNORED {
            program.signal(signal);
            let said = |line: &str| line.contains("signal ignored") && line.contains(name);
            program.wait_for_line(name, said);
        }
        program.signal(Signal::PIPE);
        program.wait_for_line("what to do instead", |line| line.contains("SIGTERM stops"));
        program.signal(Signal::HUP);
        program.wait_for_line("its end", |line| line.contains("configuration reloaded"));
    }
    visitor::exchange(&mut stream, b"after");
    drop(stream);
    for program in [&mut tunnel.server.program, &mut tunnel.client] {
        program.signal(Signal::QUIT);
        assert_eq!(program.wait_for_exit().code(), Some(0), "as by SIGTERM");
    }
}

#[test]
fn many_signals_are_answered_by_few_lines() {
    if subject::only_wire("many_signals_are_answered_by_few_lines") {
        return;
    }
    let service = TcpService::echo();
    let mut tunnel = Tunnel::to(service.address);
    for _ in 0..1_000 {
        tunnel.server.program.signal(Signal::USR1);
    }
    visitor::echo(tunnel.traffic(), b"served");
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    let mut lines = tunnel.server.program.lines();
    lines.retain(|line| line.contains("signal ignored"));
    // Ten in ten seconds, and the test may last longer on a busy machine.
    assert!((1..=100).contains(&lines.len()), "{} lines", lines.len());
}

#[test]
fn a_resolver_that_does_not_answer_holds_up_neither_the_admin_endpoint_nor_signals() {
    const TEST: &str = "a_resolver_that_does_not_answer";
    if subject::only_wire(TEST) {
        return;
    }
    let site = Site::new();
    let Some(resolver) = SilentResolver::start(&site, TEST) else {
        return;
    };
    let admin = ports::free_address();
    let setup = ClientSetup {
        admin: Some(admin),
        ..ClientSetup::default()
    };
    let service = ports::free_address();
    let launch = client_launch_to(&site, &setup, &["server.tunnel.test:1"], service);
    let config = client_config(&setup, &["server.tunnel.test:1"], service).replace(
        &format!("host = \"{}\"", service.ip()),
        "host = \"service.tunnel.test\"",
    );
    site.write("client.toml", &config);
    let mut client = resolver.asked_by(launch).start();
    http::wait_for(admin, "/healthz", 200);
    assert_eq!(http::get(admin, "/readyz").status, 503);
    client.signal(Signal::HUP);
    client.wait_for_line("the signal", |line| line.contains("configuration reloaded"));
    client.signal(Signal::TERM);
    assert_eq!(client.wait_for_exit().code(), Some(0));
}
