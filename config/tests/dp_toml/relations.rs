//! Values that are right alone and wrong together.

use crate::fixture::{CLIENT, SERVER, accept, edited, problem, problems};

const SECOND_LISTENER: &str = "[[server.listeners]]\nquic_addr = \"0.0.0.0:9443\"\n\
    traffic_addr = \"0.0.0.0:9080\"\nprotocol = \"tcp\"\n";

fn two_listeners(from: &str, to: &str) -> String {
    let text = edited(
        SERVER,
        "[server.auth]",
        &format!("{SECOND_LISTENER}[server.auth]"),
    );
    edited(&text, from, to)
}

#[test]
fn health_must_outlast_a_heartbeat() {
    let message = problem(&edited(
        SERVER,
        "health_timeout = \"30s\"",
        "health_timeout = \"10s\"",
    ));
    let expected = "dp.toml:4:18: server.health_timeout: 10s is not above heartbeat_interval (10s): \
         every peer would be unhealthy between two heartbeats; it must be longer, three times is \
         usual";
    assert_eq!(message, expected);
    let message = problem(&edited(
        CLIENT,
        "health_timeout = \"30s\"",
        "health_timeout = \"9s\"",
    ));
    assert!(message.starts_with("dp.toml:5:18: client.health_timeout: 9s is not above"));
}

#[test]
fn windows_and_idle_times_must_be_in_order() {
    let quic = |keys: &str| problem(&format!("{CLIENT}[quic]\n{keys}\n"));
    assert_eq!(
        quic("initial_stream_receive_window = \"4MiB\"\nmax_stream_receive_window = \"2MiB\""),
        "dp.toml:17:33: quic.initial_stream_receive_window: 4MiB is above \
         max_stream_receive_window (2MiB); it must be at most that, or max_stream_receive_window \
         larger"
    );
    assert!(
        quic("initial_connection_receive_window = \"65MiB\"\nmax_connection_receive_window = \"64MiB\"")
            .contains("65MiB is above max_connection_receive_window (64MiB)")
    );
    assert_eq!(
        quic("keep_alive_period = \"30s\"\nmax_idle_timeout = \"30s\""),
        "dp.toml:17:21: quic.keep_alive_period: 30s is not below max_idle_timeout (30s): \
         connections would end between two PINGs; it must be shorter, a third is usual"
    );
}

#[test]
fn quic_and_udp_visitors_cannot_share_a_port() {
    let text = edited(SERVER, "0.0.0.0:8080", "0.0.0.0:8443");
    assert_eq!(
        problem(&text),
        "dp.toml:8:16: server.listeners[0].traffic_addr: UDP 0.0.0.0:8443 is already taken by \
         server.listeners[0].quic_addr (0.0.0.0:8443, line 7); it must be another address or port"
    );
    accept(&edited(&text, "\"both\"", "\"tcp\""));
}

#[test]
fn listeners_cannot_share_an_address() {
    for (from, to, expected) in [
        (
            "0.0.0.0:9443",
            "0.0.0.0:8443",
            "dp.toml:11:13: server.listeners[1].quic_addr: UDP 0.0.0.0:8443 is already taken by server.listeners[0].quic_addr (0.0.0.0:8443, line 7)",
        ),
        (
            "0.0.0.0:9080",
            "0.0.0.0:8080",
            "dp.toml:12:16: server.listeners[1].traffic_addr: TCP 0.0.0.0:8080 is already taken by server.listeners[0].traffic_addr (0.0.0.0:8080, line 8)",
        ),
        (
            "0.0.0.0:9080",
            "127.0.0.1:8080",
            "TCP 127.0.0.1:8080 is already taken by server.listeners[0].traffic_addr (0.0.0.0:8080, line 8)",
        ),
        (
            "0.0.0.0:9080",
            "[::]:8080",
            "TCP [::]:8080 is already taken by server.listeners[0].traffic_addr (0.0.0.0:8080, line 8)",
        ),
        (
            "0.0.0.0:9443",
            "0.0.0.0:8080",
            "UDP 0.0.0.0:8080 is already taken by server.listeners[0].traffic_addr",
        ),
    ] {
        let message = problem(&two_listeners(from, to));
        assert!(message.contains(expected), "{message}");
    }
    accept(&two_listeners("0.0.0.0:9080", "0.0.0.0:9443"));
}

#[test]
fn the_admin_endpoint_needs_a_port_of_its_own() {
    let message = problem(&format!("{SERVER}[admin]\nlisten = \"127.0.0.1:8080\"\n"));
    assert!(
        message.contains("admin.listen: TCP 127.0.0.1:8080 is already taken by"),
        "{message}"
    );
    accept(&format!("{SERVER}[admin]\nlisten = \"127.0.0.1:8443\"\n"));
}

#[test]
fn a_server_may_appear_once() {
    let again = "[[client.servers]]\naddress = \"SERVER.example.com:8443\"\n[client.local]";
    let message = problem(&edited(CLIENT, "[client.local]", again));
    assert_eq!(
        message,
        "dp.toml:10:11: client.servers[1].address: is the server of line 7 again; each server may \
         appear once"
    );
}

#[test]
fn a_list_has_an_end() {
    let many: String = (0..64)
        .map(|index| {
            format!(
                "[[server.listeners]]\nquic_addr = \"127.0.0.1:{}\"\ntraffic_addr = \
                 \"127.0.0.1:{}\"\nprotocol = \"tcp\"\n",
                10_000 + index,
                20_000 + index
            )
        })
        .collect();
    let message = problem(&edited(
        SERVER,
        "[server.auth]",
        &format!("{many}[server.auth]"),
    ));
    assert!(message.contains("server.listeners[64]: is one too many; there may be 64 listeners"));
}

#[test]
fn an_empty_list_is_refused() {
    let text = edited(
        CLIENT,
        "[[client.servers]]\naddress = \"server.example.com:8443\"\nserver_name = \"server.example.com\"\n",
        "servers = []\n",
    );
    assert_eq!(
        problem(&text),
        "dp.toml:6:11: client.servers: is empty; it must be at least one [[client.servers]]"
    );
}

#[test]
fn every_problem_is_reported_in_the_order_of_the_lines() {
    let mut text = SERVER.to_owned();
    for (from, to) in [
        ("heartbeat_interval = \"10s\"", "heartbeat = \"10s\""),
        ("drain_timeout = \"30s\"", "drain_timeout = 30"),
        ("0.0.0.0:8080", "0.0.0.0"),
        ("certs/ca.crt", "certs/none.crt"),
        ("overlap = 2", "overlap = -1"),
    ] {
        text = edited(&text, from, to);
    }
    let text = format!("{text}[udp]\nenable_fragmentation = 1\n");
    let lines: Vec<String> = problems(&text)
        .iter()
        .filter_map(|line| line.split(':').nth(1))
        .map(str::to_owned)
        .collect();
    assert_eq!(lines, ["3", "5", "8", "12", "17", "19"]);
}
