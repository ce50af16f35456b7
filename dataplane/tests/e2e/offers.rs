//! A client that offers more services than its server takes.

use crate::support::counters;
use crate::support::http;
use crate::support::ports;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{
    ClientSetup, Server, ServerSetup, Site, Tunnel, client_config, launch,
};
use crate::support::visitor;

/// A service with a name beside the nameless one. Nobody goes to its port.
const NAMED: [&str; 4] = [
    "[[client.services]]",
    "name = \"web\"",
    "host = \"127.0.0.1\"",
    "port = \"5000-5009\"",
];

#[test]
fn a_listener_serves_the_nameless_service_and_the_client_says_once_what_becomes_of_others() {
    if subject::only_wire("what a client logs") {
        return;
    }
    let service = TcpService::echo();
    let server = ServerSetup {
        cores: 2,
        server: vec!["heartbeat_interval = \"500ms\""],
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        client: vec!["lanes = 4", "heartbeat_interval = \"500ms\""],
        local: NAMED.to_vec(),
        admin: Some(ports::free_address()),
        log_level: Some("info"),
        ..ClientSetup::default()
    };
    let admin = client.admin.expect("it has one");
    let mut tunnel = Tunnel::with(&server, &client, service.address);
    visitor::echo(tunnel.traffic(), b"served");
    // Which one depends on the server's version.
    let refused = |line: &str| {
        let known = ["does not know", "older version"];
        line.contains("the service \\\"web\\\"") && known.iter().any(|it| line.contains(it))
            || line.contains("the service \"web\"") && known.iter().any(|it| line.contains(it))
    };
    let said = tunnel.client.wait_for_line("what becomes of it", refused);
    assert!(said.contains("WARN"), "{said}");
    assert!(said.contains(&tunnel.server.quic().to_string()), "{said}");
    let offered = |line: &str| line.contains("offered to servers") && line.contains("5000-5009");
    tunnel.client.wait_for_line("what it offers", offered);
    visitor::echo(tunnel.traffic(), b"served");
    let text = http::get(admin, "/metrics").body;
    for line in [
        "qmux_dp_client_service_tcp_flows_total{service=\"\"} 2",
        "qmux_dp_client_service_tcp_flows_total{service=\"web\"} 0",
        "qmux_dp_client_service_healthy{service=\"web\"} 1.0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
    // All lanes have heard by the end.
    tunnel.client.signal(rustix::process::Signal::TERM);
    assert_eq!(tunnel.client.wait_for_exit().code(), Some(0));
    let lines = tunnel.client.lines();
    let times = lines.iter().filter(|line| refused(line)).count();
    assert_eq!(times, 1, "{lines:#?}");
    assert_eq!(
        counters::total(&counters::of(&tunnel.client), "tcp_flows_unknown_service"),
        0
    );
}

#[test]
fn as_many_services_as_may_be_are_offered_and_each_refusal_is_said() {
    if subject::only_wire("what a client logs") {
        return;
    }
    const NAMED_MAX: usize = 63;
    let names: Vec<String> = (0..NAMED_MAX)
        .map(|index| format!("{index:0>64}"))
        .collect();
    let tables: String = names
        .iter()
        .map(|name| {
            format!("[[client.services]]\nname = \"{name}\"\nhost = \"127.0.0.1\"\nport = 5000\n")
        })
        .collect();
    let service = TcpService::echo();
    let server = ServerSetup {
        server: vec!["heartbeat_interval = \"500ms\""],
        ..ServerSetup::default()
    };
    let site = Site::new();
    let server = Server::start(&site, &server);
    let quic = server.quic();
    let (setup, local) = (ClientSetup::default(), service.address);
    let text = client_config(&setup, &[&quic.to_string()], local);
    let config = site.write(
        "client.toml",
        &text.replace("[client.auth]", &format!("{tables}[client.auth]")),
    );
    let client = launch("client", subject::client(), &config, 1, None, None).start();
    client.wait_until_ready().expect("the client is ready");
    for name in &names {
        let refused = |line: &str| line.contains("WARN") && line.contains(name.as_str());
        client.wait_for_line("what becomes of a service", refused);
    }
    visitor::echo(server.traffic(), b"served");
}
