//! Values of the wrong type, form or range.

use qmux_config::CLIENT_ID_BYTES_MAX;

use crate::fixture::{CLIENT, SERVER, accept, edited, problem};

/// Checks each line of `cases`: what stands in `text`, what to put there, and the expected message.
fn check(text: &str, cases: &[(&str, &str, &str)]) {
    for (from, to, expected) in cases {
        let message = problem(&edited(text, from, to));
        assert_eq!(message, format!("dp.toml:{expected}"), "for {to}");
    }
}

#[test]
fn words() {
    check(
        SERVER,
        &[
            (
                "\"least-connections\"",
                "\"least_connections\"",
                "2:17: server.load_balancer: \"least_connections\" is not known (did you mean \"least-connections\"?); it must be \"least-connections\" or \"round-robin\"",
            ),
            (
                "\"least-connections\"",
                "\"random\"",
                "2:17: server.load_balancer: \"random\" is not known; it must be \"least-connections\" or \"round-robin\"",
            ),
            (
                "\"both\"",
                "\"TCP\"",
                "9:12: server.listeners[0].protocol: \"TCP\" is not known (did you mean \"tcp\"?); it must be \"tcp\" or \"udp\" or \"both\"",
            ),
            (
                "\"both\"",
                "[\"tcp\"]",
                "9:12: server.listeners[0].protocol: is an array; it must be \"tcp\" or \"udp\" or \"both\"",
            ),
            (
                "\"mtls\"",
                "\"password\"",
                "11:10: server.auth.method: \"password\" is not known; it must be \"mtls\" or \"token\"",
            ),
        ],
    );
    let message = problem(&format!("{CLIENT}[quic]\ncongestion_control = \"bbr\"\n"));
    assert_eq!(
        message,
        "dp.toml:17:22: quic.congestion_control: \"bbr\" is not known (did you mean \"bbr2\"?); it must be \"bbr2\" or \"cubic\" or \"reno\""
    );
}

#[test]
fn durations() {
    check(
        SERVER,
        &[
            (
                "drain_timeout = \"30s\"",
                "drain_timeout = 30",
                "5:17: server.drain_timeout: a number needs a unit here: \"30s\" would be seconds",
            ),
            (
                "drain_timeout = \"30s\"",
                "drain_timeout = \"30\"",
                "5:17: server.drain_timeout: \"30\" is no duration; it must be a duration with its unit, as in \"10s\", \"1h30m\" or \"500ms\"",
            ),
            (
                "drain_timeout = \"30s\"",
                "drain_timeout = 1.5",
                "5:17: server.drain_timeout: is a decimal number; it must be a duration with its unit, as in \"10s\", \"1h30m\" or \"500ms\"",
            ),
            (
                "drain_timeout = \"30s\"",
                "drain_timeout = \"-1s\"",
                "5:17: server.drain_timeout: \"-1s\" is no duration; it must be a duration with its unit, as in \"10s\", \"1h30m\" or \"500ms\"",
            ),
            (
                "drain_timeout = \"30s\"",
                "drain_timeout = \"8d\"",
                "5:17: server.drain_timeout: 8d is out of range; it must be from \"0s\" to \"1d\"",
            ),
            (
                "heartbeat_interval = \"10s\"",
                "heartbeat_interval = \"0s\"",
                "3:22: server.heartbeat_interval: 0s is out of range; it must be from \"50ms\" to \"1h\"",
            ),
            (
                "\"24h\"",
                "\"30d\"",
                "16:51: server.tls.session_ticket_encryption_key_rotation_interval: 30d is out of range; it must be from \"0s\" to \"7d\"",
            ),
            (
                "\"24h\"",
                "\"10ms\"",
                "16:51: server.tls.session_ticket_encryption_key_rotation_interval: is too short; it must be \"0s\", which turns rotation off, or at least \"1s\"",
            ),
        ],
    );
}

#[test]
fn checks_of_the_service() {
    let message = |keys: &str| {
        problem(&edited(
            CLIENT,
            "port = 3000\n",
            &format!("port = 3000\n{keys}\n"),
        ))
    };
    assert_eq!(
        message("health_check_interval = \"50ms\""),
        "dp.toml:12:25: client.local.health_check_interval: is too short; it must be \"0s\", which turns checks off, or at least \"100ms\""
    );
    assert_eq!(
        message("health_check_interval = 5"),
        "dp.toml:12:25: client.local.health_check_interval: a number needs a unit here: \"5s\" would be seconds"
    );
    assert_eq!(
        message("health_check_timeout = \"0s\""),
        "dp.toml:12:24: client.local.health_check_timeout: 0s is out of range; it must be from \"10ms\" to \"1m\""
    );
    assert!(message("health_check = \"1s\"").contains("did you mean \"health_check_"));
}

#[test]
fn addresses() {
    check(
        SERVER,
        &[
            (
                "\"0.0.0.0:8443\"",
                "\":8443\"",
                "7:13: server.listeners[0].quic_addr: \":8443\" has no IP address; it must be \"0.0.0.0:8443\" or \"[::]:8443\" for every address of the host, or one of its addresses",
            ),
            (
                "\"0.0.0.0:8443\"",
                "\"localhost:8443\"",
                "7:13: server.listeners[0].quic_addr: \"localhost\" is a name, not an IP address; it must be an IP address and a port, as in \"0.0.0.0:8443\" or \"[::]:8443\"",
            ),
            (
                "\"0.0.0.0:8443\"",
                "\"0.0.0.0:0\"",
                "7:13: server.listeners[0].quic_addr: port 0 would let the system pick a port that nobody knows, and another one for every core; it must be from 1 to 65535",
            ),
            (
                "\"0.0.0.0:8443\"",
                "\"0.0.0.0:84430\"",
                "7:13: server.listeners[0].quic_addr: \"84430\" is no port; it must be a number from 1 to 65535",
            ),
            (
                "\"0.0.0.0:8443\"",
                "8443",
                "7:13: server.listeners[0].quic_addr: is an integer; it must be an IP address and a port, as in \"0.0.0.0:8443\" or \"[::]:8443\"",
            ),
            (
                "\"0.0.0.0:8080\"",
                "\"\"",
                "8:16: server.listeners[0].traffic_addr: is empty; it must be an IP address and a port, as in \"0.0.0.0:8443\" or \"[::]:8443\"",
            ),
        ],
    );
    check(
        CLIENT,
        &[
            (
                "\"server.example.com:8443\"",
                "\"server.example.com\"",
                "7:11: client.servers[0].address: \"server.example.com\" has no port; it must be a host and a port, as in \"server.example.com:8443\"",
            ),
            (
                "\"server.example.com:8443\"",
                "\"ser ver:8443\"",
                "7:11: client.servers[0].address: \"ser ver\" is no host; it must be a host and a port, as in \"server.example.com:8443\"",
            ),
            (
                "name = \"server.example.com\"",
                "name = \"server:8443\"",
                "8:15: client.servers[0].server_name: \"server:8443\" is no name; it must be a host name or an IP address from the server's certificate",
            ),
            (
                "\"127.0.0.1\"",
                "\"127.0.0.1:3000\"",
                "10:8: client.local.host: \"127.0.0.1:3000\" is no host; it must be a host name or an IP address, as in \"127.0.0.1\"",
            ),
            (
                "3000",
                "65536",
                "11:8: client.local.port: is out of range; it must be a whole number from 1 to 65535",
            ),
            (
                "3000",
                "0",
                "11:8: client.local.port: is out of range; it must be a whole number from 1 to 65535",
            ),
            (
                "3000",
                "\"3000\"",
                "11:8: client.local.port: is a string; it must be a whole number from 1 to 65535",
            ),
        ],
    );
}

#[test]
fn lanes_and_ids() {
    let lanes = "it must be \"auto\" or a number from 1 to 256";
    for (value, expected) in [
        ("0", "is out of range"),
        ("257", "is out of range"),
        ("-1", "is out of range"),
        ("99999999999999999999", "is out of range"),
        ("\"many\"", "\"many\" is not known"),
        ("true", "is a boolean"),
    ] {
        let message = problem(&edited(CLIENT, "\"auto\"", value));
        assert_eq!(
            message,
            format!("dp.toml:3:9: client.lanes: {expected}; {lanes}")
        );
    }
    let message = problem(&edited(
        CLIENT,
        "client_id = \"\"",
        "client_id = \"a\\u0007b\"",
    ));
    assert!(message.starts_with("dp.toml:2:13: client.client_id: must be at most 253 bytes"));
}

#[test]
fn sizes_counts_and_booleans() {
    let quic = |keys: &str| problem(&format!("{CLIENT}[quic]\n{keys}\n"));
    for (keys, expected) in [
        (
            "max_stream_receive_window = \"16 parsecs\"",
            "17:29: quic.max_stream_receive_window: \"16 parsecs\" is no size; it must be a number of bytes or a size with its unit, as in \"16MiB\"",
        ),
        (
            "max_stream_receive_window = -1",
            "17:29: quic.max_stream_receive_window: -1 is no size; it must be a number of bytes or a size with its unit, as in \"16MiB\"",
        ),
        (
            "max_stream_receive_window = 1",
            "17:29: quic.max_stream_receive_window: 1B is out of range; it must be from \"16KiB\" to \"1GiB\"",
        ),
        (
            "max_stream_receive_window = \"2GiB\"",
            "17:29: quic.max_stream_receive_window: 2GiB is out of range; it must be from \"16KiB\" to \"1GiB\"",
        ),
        (
            "max_stream_receive_window = true",
            "17:29: quic.max_stream_receive_window: is a boolean; it must be a number of bytes or a size with its unit, as in \"16MiB\"",
        ),
        (
            "max_incoming_streams = 0",
            "17:24: quic.max_incoming_streams: is out of range; it must be a whole number from 1 to 1048576",
        ),
        (
            "max_udp_payload = 1199",
            "17:19: quic.max_udp_payload: is out of range; it must be a whole number from 1200 to 16383",
        ),
        (
            "max_udp_payload = 16384",
            "17:19: quic.max_udp_payload: is out of range; it must be a whole number from 1200 to 16383",
        ),
        (
            "allow_0rtt = \"yes\"",
            "17:14: quic.allow_0rtt: is a string; it must be true or false",
        ),
    ] {
        assert_eq!(quic(keys), format!("dp.toml:{expected}"));
    }
    let overlap = problem(&edited(SERVER, "overlap = 2", "overlap = 17"));
    assert!(overlap.ends_with("overlap: is out of range; it must be a whole number from 0 to 16"));
}

#[test]
fn a_short_token_is_refused_and_not_repeated() {
    let text = edited(
        SERVER,
        "method = \"mtls\"",
        "method = \"token\"\ntoken = \"hunter2hunter2!\"",
    );
    let errors = crate::fixture::refuse(&text).to_string();
    assert!(
        errors.contains(":12:9: server.auth.token: has 15 bytes; it must be at least 16 bytes"),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");
    let text = edited(SERVER, "method = \"mtls\"", "method = \"token\"");
    assert!(problem(&text).contains("server.auth.token: is missing; it must be at least 16 bytes"));
}

#[test]
fn sections_of_the_wrong_type() {
    for (text, expected) in [
        (
            format!("{CLIENT}[[quic]]\n"),
            "dp.toml:16:1: quic: is an array; it must be a table, as in [quic]",
        ),
        (
            format!("udp = 3\n{CLIENT}"),
            "dp.toml:1:7: udp: is an integer; it must be a table, as in [udp]",
        ),
        (
            edited(CLIENT, "[[client.servers]]", "[client.servers]"),
            "dp.toml:6:1: client.servers: is a table; it must be an array of tables, each starting with [[client.servers]]",
        ),
    ] {
        assert_eq!(problem(&text), expected);
    }
}

#[test]
fn times_of_a_client() {
    let lanes = "lanes = \"auto\"\n";
    let with = |line: &str| problem(&edited(CLIENT, lanes, &format!("{lanes}{line}\n")));
    assert_eq!(
        with("probe_interval = \"10ms\""),
        "dp.toml:4:18: client.probe_interval: is too short; it must be \"0s\", which turns probes off, or at least \"50ms\""
    );
    assert_eq!(
        with("probe_interval = \"2h\""),
        "dp.toml:4:18: client.probe_interval: 2h is out of range; it must be from \"0s\" to \"1h\""
    );
    assert_eq!(
        with("resolve_interval = \"0s\""),
        "dp.toml:4:20: client.resolve_interval: 0s is out of range; it must be from \"100ms\" to \"1d\""
    );
}

#[test]
fn a_client_id_may_be_as_long_as_the_wire_format_allows() {
    let id = |length: usize| {
        let line = format!("client_id = \"{}\"", "a".repeat(length));
        edited(CLIENT, "client_id = \"\"", &line)
    };
    let config = accept(&id(CLIENT_ID_BYTES_MAX));
    let client = config.client.expect("a client");
    assert_eq!(
        client.client_id.map(|id| id.len()),
        Some(CLIENT_ID_BYTES_MAX)
    );
    assert!(problem(&id(CLIENT_ID_BYTES_MAX + 1)).contains("must be at most 253 bytes"));
}

#[test]
fn a_handover_is_by_a_unix_socket() {
    let with = |value: &str| {
        let line = format!("drain_timeout = \"30s\"\nhandover = {value}");
        edited(SERVER, "drain_timeout = \"30s\"", &line)
    };
    let server = accept(&with("\"unix:/run/handover.sock\""))
        .server
        .expect("a server");
    assert_eq!(
        server.handover.as_deref(),
        Some(std::path::Path::new("/run/handover.sock"))
    );
    for wrong in [
        "\"127.0.0.1:9601\"",
        "\"/run/handover.sock\"",
        "\"unix:\"",
        "\"\"",
        "true",
    ] {
        let message = problem(&with(wrong));
        assert!(message.contains("server.handover: "), "{message}");
        assert!(message.contains("unix:/run/"), "{message}");
    }
}
