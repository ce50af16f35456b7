//! What valid texts mean.

use std::num::NonZeroU16;
use std::time::Duration;

use qmux_config::{
    Admin, Bounds, ClientCert, CongestionControl, FileOrText, Lanes, Limits, Listener,
    ListenerProtocol, LoadBalancer, LocalPorts, LocalService, MemoryLimit, Ports, ProxyProtocol,
    ProxyProtocolUdp, Quic, ServerAuth, ServerTarget, Udp,
};

use crate::fixture::{CLIENT, SERVER, accept, dir, edited, path};

fn file(name: &str) -> FileOrText {
    dir().join(name).into()
}

#[test]
fn a_server_is_read_into_its_final_types() {
    let config = accept(SERVER);
    let server = config.server.expect("a server");
    assert_eq!(config.path, path());
    assert_eq!(config.client, None);
    assert_eq!(config.admin, None);
    assert_eq!(server.load_balancer, LoadBalancer::LeastConnections);
    assert_eq!(server.heartbeat_interval, Duration::from_secs(10));
    assert_eq!(server.health_timeout, Duration::from_secs(30));
    assert_eq!(server.drain_timeout, Duration::from_secs(30));
    let listener = Listener {
        quic_addr: "0.0.0.0:8443".parse().expect("an address"),
        traffic_addr: "0.0.0.0:8080".parse().expect("an address"),
        protocol: ListenerProtocol::Both,
        stall_timeout: Duration::from_secs(60),
        bounds: Bounds::default(),
    };
    assert_eq!(server.listeners(), [listener]);
    assert_eq!(server.doors.len(), 1);
    assert!(server.clients.is_empty());
    assert_eq!(
        server.auth,
        ServerAuth::Mtls {
            ca_cert: dir().join("certs/ca.crt").into(),
            crl: None,
        }
    );
    assert_eq!(server.tls.server_cert, file("certs/server.crt"));
    assert_eq!(server.tls.server_key, file("certs/server.key"));
    let day = Duration::from_secs(86_400);
    assert_eq!(
        server.tls.session_ticket_encryption_key_rotation_interval,
        day
    );
    assert_eq!(server.tls.session_ticket_encryption_key_rotation_overlap, 2);
}

#[test]
fn a_client_is_read_into_its_final_types() {
    let client = accept(CLIENT).client.expect("a client");
    assert_eq!(client.client_id, None, "empty: a fresh one at each start");
    assert_eq!(client.lanes, Lanes::Auto);
    assert_eq!(client.drain_timeout, Duration::from_secs(30), "the default");
    assert_eq!(client.probe_interval, Duration::from_millis(500));
    assert_eq!(client.resolve_interval, Duration::from_secs(10));
    assert_eq!(client.state_dir, None);
    let target = ServerTarget {
        address: "server.example.com:8443".to_owned(),
        host: "server.example.com".to_owned(),
        port: 8443,
        server_name: "server.example.com".to_owned(),
        transport: qmux_config::Transport::Auto,
        proxy: qmux_config::Proxy::None,
    };
    assert_eq!(client.servers, [target]);
    assert_eq!(
        client.services,
        [LocalService {
            name: String::new(),
            host: "127.0.0.1".to_owned(),
            ports: LocalPorts::These(Ports::one(3000)),
            protocol: ListenerProtocol::Both,
            proxy_protocol: ProxyProtocol::Off,
            proxy_protocol_udp: ProxyProtocolUdp::Every,
            health_check_interval: Duration::ZERO,
            health_check_timeout: Duration::from_secs(2),
        }]
    );
    assert_eq!(client.auth.token, None);
    let cert = ClientCert {
        cert: file("certs/client.crt"),
        key: file("certs/client.key"),
    };
    assert_eq!(client.tls.client_cert, Some(cert));
    assert_eq!(client.tls.ca_cert, file("certs/ca.crt"));
}

#[test]
fn both_roles_may_share_a_file() {
    let config = accept(&format!("{SERVER}{CLIENT}"));
    assert!(config.server.is_some() && config.client.is_some());
}

#[test]
fn every_common_key_is_read() {
    let text = format!(
        "{CLIENT}[quic]\ncongestion_control = \"cubic\"\ninitial_stream_receive_window = 65536\n\
         max_stream_receive_window = \"1MiB\"\ninitial_connection_receive_window = \"128 KiB\"\n\
         max_connection_receive_window = 0x20_0000\nmax_incoming_streams = 7\n\
         keep_alive_period = \"1s\"\nhandshake_idle_timeout = \"2s\"\nmax_idle_timeout = \"1m30s\"\n\
         allow_0rtt = false\nmax_udp_payload = 1452\nbusy_poll = false\n[udp]\nsession_timeout = \"90s\"\n\
         unanswered_timeout = \"9s\"\n\
         enable_fragmentation = false\n[limits]\nmemory = \"64MiB\"\ndescriptors_reserved = 7\n\
         stall_timeout = \"5s\"\n[admin]\nlisten = \"127.0.0.1:9600\"\n"
    );
    let config = accept(&text);
    let quic = Quic {
        congestion_control: CongestionControl::Cubic,
        initial_stream_receive_window: 64 << 10,
        max_stream_receive_window: 1 << 20,
        initial_connection_receive_window: 128 << 10,
        max_connection_receive_window: 2 << 20,
        max_incoming_streams: 7,
        keep_alive_period: Duration::from_secs(1),
        handshake_idle_timeout: Duration::from_secs(2),
        max_idle_timeout: Duration::from_secs(90),
        allow_0rtt: false,
        max_udp_payload: 1452,
        busy_poll: false,
    };
    assert_eq!(config.quic, quic);
    let udp = Udp {
        session_timeout: Duration::from_secs(90),
        unanswered_timeout: Duration::from_secs(9),
        enable_fragmentation: false,
    };
    assert_eq!(config.udp, udp);
    let limits = Limits {
        memory: MemoryLimit::Bytes(64 << 20),
        descriptors_reserved: 7,
        stall_timeout: Duration::from_secs(5),
    };
    assert_eq!(config.limits, limits);
    let listen = "127.0.0.1:9600".parse().expect("an address");
    let listen = qmux_config::AdminListen::Tcp(listen);
    assert_eq!(config.admin, Some(Admin { listen }));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_token_takes_the_place_of_certificates() {
    let token = "0123456789abcdef";
    let server = edited(
        SERVER,
        "method = \"mtls\"\n",
        &format!("method = \"token\"\ntoken = {token:?}\n"),
    );
    let server = edited(&server, "ca_cert_file = \"certs/ca.crt\"\n", "");
    let Some(server) = accept(&server).server else {
        panic!("a server")
    };
    let ServerAuth::Token { token: Some(read) } = server.auth else {
        panic!("{:?}", server.auth)
    };
    assert_eq!(read.expose(), token.as_bytes());

    let client = edited(CLIENT, "client_cert_file = \"certs/client.crt\"\n", "");
    let client = edited(&client, "client_key_file = \"certs/client.key\"\n", "");
    let client = accept(&format!("{client}[client.auth]\ntoken = {token:?}\n")).client;
    let client = client.expect("a client");
    assert_eq!(client.tls.client_cert, None);
    assert_eq!(
        client.auth.token.expect("a token").expose(),
        token.as_bytes()
    );
}

#[test]
fn what_has_no_effect_is_a_warning() {
    let server = edited(
        SERVER,
        "method = \"mtls\"\n",
        "token = \"0123456789abcdef\"\n",
    );
    let warnings = accept(&server).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].ends_with(r#":11:9: server.auth.token: is not used with method = "mtls""#));
    assert!(!warnings[0].contains("0123456789abcdef"));

    let server = edited(
        SERVER,
        "method = \"mtls\"\n",
        "method = \"token\"\ntoken = \"0123456789abcdef\"\n",
    );
    let warnings = accept(&server).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("server.auth.ca_cert_file: is not used with method = \"token\""));
}

#[test]
fn an_admin_endpoint_for_everybody_is_a_warning() {
    let warnings = accept(&format!("{CLIENT}[admin]\nlisten = \"0.0.0.0:9600\"\n")).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("admin.listen: whoever can reach this address"),
        "{warnings:?}"
    );
}

#[test]
fn lanes_may_be_counted() {
    let client = accept(&edited(CLIENT, "lanes = \"auto\"", "lanes = 256")).client;
    let count = NonZeroU16::new(256).expect("not zero");
    assert_eq!(client.map(|client| client.lanes), Some(Lanes::Count(count)));
}

#[test]
fn a_server_name_defaults_to_the_host() {
    let text = edited(CLIENT, "server_name = \"server.example.com\"\n", "");
    let text = edited(&text, "server.example.com:8443", "[2001:db8::1]:8443");
    let servers = accept(&text)
        .client
        .map(|client| client.servers)
        .unwrap_or_default();
    assert_eq!(servers[0].address, "[2001:db8::1]:8443");
    assert_eq!(servers[0].host, "2001:db8::1");
    assert_eq!(servers[0].server_name, "2001:db8::1");
}

#[test]
fn relative_paths_start_at_the_file_and_absolute_ones_stay() {
    let state = format!("client_id = \"a\"\nstate_dir = {:?}", dir().join("state"));
    let client = accept(&edited(CLIENT, "client_id = \"\"", &state))
        .client
        .expect("a client");
    assert_eq!(client.state_dir, Some(dir().join("state")));
    assert_eq!(client.client_id.as_deref(), Some("a"));
    let client = accept(&edited(CLIENT, "client_id = \"\"", "state_dir = \"state\"")).client;
    assert_eq!(
        client.expect("a client").state_dir,
        Some(dir().join("state"))
    );
}

#[test]
fn a_time_that_is_not_given_follows_the_one_that_is() {
    let server = |heartbeat: &str, health: &str| {
        let text = edited(SERVER, "heartbeat_interval = \"10s\"\n", heartbeat);
        let text = edited(&text, "health_timeout = \"30s\"\n", health);
        let server = accept(&text).server.expect("a server");
        (
            server.heartbeat_interval.as_secs_f64(),
            server.health_timeout.as_secs_f64(),
        )
    };
    assert_eq!(server("", ""), (10.0, 30.0));
    assert_eq!(server("heartbeat_interval = \"1s\"\n", ""), (1.0, 30.0));
    assert_eq!(server("heartbeat_interval = \"1m\"\n", ""), (60.0, 180.0));
    assert_eq!(server("", "health_timeout = \"3s\"\n"), (1.0, 3.0));
    assert_eq!(server("", "health_timeout = \"10m\"\n"), (10.0, 600.0));
}

#[test]
fn a_limit_that_is_not_given_follows_the_one_that_is() {
    let quic = |keys: &str| accept(&format!("{CLIENT}[quic]\n{keys}\n")).quic;
    assert_eq!(
        quic("max_idle_timeout = \"3s\"").keep_alive_period,
        Duration::from_secs(1)
    );
    assert_eq!(
        quic("max_idle_timeout = \"5m\"").keep_alive_period,
        Duration::from_secs(10)
    );
    assert_eq!(
        quic("keep_alive_period = \"1m\"").max_idle_timeout,
        Duration::from_secs(180)
    );
    assert_eq!(
        quic("max_stream_receive_window = \"256KiB\"").initial_stream_receive_window,
        256 << 10
    );
    assert_eq!(
        quic("initial_stream_receive_window = \"100MiB\"").max_stream_receive_window,
        100 << 20
    );
}

#[test]
fn rotation_can_be_turned_off() {
    let text = edited(
        SERVER,
        "rotation_interval = \"24h\"",
        "rotation_interval = \"0s\"",
    );
    let server = accept(&text).server.expect("a server");
    assert_eq!(
        server.tls.session_ticket_encryption_key_rotation_interval,
        Duration::ZERO
    );
}

#[test]
fn probes_may_be_turned_off_and_names_resolved_often() {
    let lines = "lanes = \"auto\"\nprobe_interval = \"0s\"\nresolve_interval = \"100ms\"";
    let client = accept(&edited(CLIENT, "lanes = \"auto\"", lines)).client;
    let client = client.expect("a client");
    assert_eq!(client.probe_interval, Duration::ZERO);
    assert_eq!(client.resolve_interval, Duration::from_millis(100));
}

#[test]
fn a_listener_has_its_own_stall_timeout_or_that_of_the_process() {
    let of_listener = |text: &str| {
        let server = accept(text).server.expect("a server");
        server.listeners()[0].stall_timeout
    };
    let limits = "[limits]\nstall_timeout = \"5s\"\n";
    assert_eq!(
        of_listener(&format!("{SERVER}{limits}")),
        Duration::from_secs(5)
    );
    let own = edited(
        SERVER,
        "protocol = \"both\"\n",
        "protocol = \"both\"\nstall_timeout = \"0s\"\n",
    );
    assert_eq!(of_listener(&format!("{own}{limits}")), Duration::ZERO);
}

#[test]
fn a_udp_flow_that_was_never_answered_ends_no_later_than_one_that_was() {
    let config = accept(&format!("{CLIENT}[udp]\nsession_timeout = \"2s\"\n"));
    assert_eq!(config.udp.unanswered_timeout, Duration::from_secs(2));
}

#[test]
fn zero_turns_off_what_can_be_turned_off_with_a_unit_or_without() {
    for zero in ["0", "\"0\"", "\"0s\""] {
        let text = edited(
            SERVER,
            "protocol = \"both\"\n",
            &format!("protocol = \"both\"\nstall_timeout = {zero}\nidle_timeout = {zero}\n"),
        );
        let text = format!(
            "{text}[udp]\nsession_timeout = \"7s\"\nunanswered_timeout = {zero}\n\
             [limits]\nstall_timeout = {zero}\n"
        );
        let config = accept(&text);
        let service = &config.server.expect("a server").doors[0].services[0];
        assert_eq!(service.stall_timeout, Duration::ZERO);
        assert_eq!(service.bounds.idle_timeout, Duration::ZERO);
        assert_eq!(config.limits.stall_timeout, Duration::ZERO);
        // The timeout of flows with an answer holds for all of them then.
        assert_eq!(config.udp.unanswered_timeout, Duration::from_secs(7));
    }
}

#[test]
fn the_memory_of_flows_is_a_size_or_left_to_the_program() {
    let memory = |value: &str| {
        accept(&format!("{CLIENT}[limits]\nmemory = {value}\n"))
            .limits
            .memory
    };
    assert_eq!(memory("\"auto\""), MemoryLimit::Auto);
    assert_eq!(memory("\"1GiB\""), MemoryLimit::Bytes(1 << 30));
    assert_eq!(memory("16777216"), MemoryLimit::Bytes(16 << 20));
    for zero in ["0", "\"0\"", "\"0B\""] {
        assert_eq!(memory(zero), MemoryLimit::None, "{zero}");
    }
}
