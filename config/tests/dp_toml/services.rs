//! Services with names, on both sides.

use std::time::Duration;

use qmux_config::{
    Bounds, Config, ListenerProtocol, LoadBalancer, LocalPorts, Ports, ProxyProtocol,
    ProxyProtocolUdp, Server,
};

use crate::fixture::{CLIENT, SERVER, accept, dir, edited, problem, problems};

/// The text that stands for `[[server.listeners]]` in the other texts.
const LISTENER: &str = "[[server.listeners]]\nquic_addr = \"0.0.0.0:8443\"\n\
    traffic_addr = \"0.0.0.0:8080\"\nprotocol = \"both\"\n";
const DOOR: &str = "quic_addr = \"0.0.0.0:8443\"\n";
const WEB: &str = "[[server.services]]\nname = \"web\"\ntraffic_addr = \"0.0.0.0:80\"\n";
const SSH: &str = "[[server.services]]\nname = \"ssh\"\n\
    traffic_addr = \"0.0.0.0:30000-30099\"\nprotocol = \"tcp\"\n";
const LOCAL: &str = "[client.local]\nhost = \"127.0.0.1\"\nport = 3000\n";

/// A server with `services` behind one door, and no listener.
fn with_services(services: &str) -> String {
    edited(SERVER, LISTENER, &format!("{DOOR}{services}"))
}

fn server(text: &str) -> Server {
    accept(text).server.expect("a server")
}

/// A client with `services` and without `[client.local]`.
fn with_local_services(services: &str) -> String {
    edited(CLIENT, LOCAL, services)
}

fn local_service(port: &str) -> String {
    let service =
        format!("[[client.services]]\nname = \"web\"\nhost = \"localhost\"\nport = {port}\n");
    with_local_services(&service)
}

#[test]
fn services_share_one_door_and_take_what_they_do_not_say_from_the_server() {
    let text = with_services(&format!(
        "{WEB}{SSH}load_balancer = \"round-robin\"\nstall_timeout = \"5s\"\nrequired = true\n"
    ));
    let server = server(&text);
    let [door] = &server.doors[..] else {
        panic!("one door: {:?}", server.doors)
    };
    assert_eq!(door.quic_addrs, ["0.0.0.0:8443".parse().expect("literal")]);
    let [web, ssh] = &door.services[..] else {
        panic!("two services")
    };
    assert_eq!((web.name.as_str(), ssh.name.as_str()), ("web", "ssh"));
    assert_eq!(web.traffic.to_string(), "0.0.0.0:80");
    assert_eq!(ssh.traffic.to_string(), "0.0.0.0:30000-30099");
    assert_eq!(web.protocol, ListenerProtocol::Both);
    assert_eq!(ssh.protocol, ListenerProtocol::Tcp);
    assert_eq!(web.load_balancer, LoadBalancer::LeastConnections);
    assert_eq!(ssh.load_balancer, LoadBalancer::RoundRobin);
    assert_eq!(web.stall_timeout, Duration::from_secs(60));
    assert_eq!(ssh.stall_timeout, Duration::from_secs(5));
    assert!(!web.required && ssh.required);
    assert!(server.listeners().is_empty());
    // The door, with UDP and with TCP for TLS; two sockets for web, a hundred for ssh.
    assert_eq!(server.sockets(1), 104);
    assert_eq!(server.sockets(4), 416);
}

#[test]
fn a_door_may_have_several_addresses() {
    let text = with_services(WEB);
    let text = edited(
        &text,
        "quic_addr = \"0.0.0.0:8443\"",
        "quic_addr = [\"127.0.0.1:8443\", \"[::1]:8443\"]",
    );
    let addresses = &server(&text).doors[0].quic_addrs;
    assert_eq!(addresses.len(), 2);
    let text = edited(&text, "[::1]:8443", "0.0.0.0:8443");
    assert_eq!(
        problem(&text),
        "dp.toml:6:32: server.quic_addr: UDP 0.0.0.0:8443 is already taken by server.quic_addr \
         (127.0.0.1:8443, line 6); it must be another address or port"
    );
}

#[test]
fn both_forms_may_stand_in_one_file() {
    let text = edited(
        &edited(
            SERVER,
            "drain_timeout = \"30s\"\n",
            "quic_addr = \"0.0.0.0:9443\"\n",
        ),
        "[server.auth]",
        &format!("{WEB}[server.auth]"),
    );
    let server = server(&text);
    let names: Vec<Vec<&str>> = server
        .doors
        .iter()
        .map(|door| door.services.iter().map(|it| it.name.as_str()).collect())
        .collect();
    assert_eq!(names, [["web"], [""]]);
    assert_eq!(server.listeners().len(), 1);

    let service = "[[client.services]]\nname = \"web\"\nhost = \"::1\"\nport = \"same\"\n";
    let client = accept(&format!("{CLIENT}{service}"))
        .client
        .expect("a client");
    let names: Vec<&str> = client.services.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["", "web"]);
}

#[test]
fn services_and_their_door_need_each_other() {
    let without_door = edited(SERVER, LISTENER, WEB);
    assert_eq!(
        problem(&without_door),
        "dp.toml:1:1: server.quic_addr: is missing; it must be an IP address and a port, as in \
         \"0.0.0.0:8443\" or \"[::]:8443\", or a list of them"
            .replace(" or \"[::]:8443\"", "")
    );
    let without_service = edited(
        SERVER,
        "drain_timeout = \"30s\"\n",
        "quic_addr = \"0.0.0.0:9443\"\n",
    );
    assert!(problem(&without_service).starts_with(
        "dp.toml:5:13: server.quic_addr: has no service behind it; it must stand beside \
             [[server.services]]"
    ),);
}

#[test]
fn names_and_addresses_of_services_do_not_repeat() {
    for (services, expected) in [
        (
            format!("{WEB}{}", WEB.replace(":80\"", ":81\"")),
            "server.services[1].name: \"web\" is the name of line 8 again; it must be another one",
        ),
        (
            format!("{WEB}{}", WEB.replace("web", "www")),
            "server.services[1].traffic_addr: TCP 0.0.0.0:80 is already taken by \
             server.services[0].traffic_addr (0.0.0.0:80, line 9); it must be another address or port",
        ),
        (
            format!("{SSH}{}", WEB.replace(":80\"", ":30099-30100\"")),
            "server.services[1].traffic_addr: TCP 0.0.0.0:30099-30100 is already taken by \
             server.services[0].traffic_addr (0.0.0.0:30000-30099, line 9); it must be another \
             address or port",
        ),
        (
            WEB.replace(":80\"", ":8443\""),
            "server.services[0].traffic_addr: UDP 0.0.0.0:8443 is already taken by \
             server.quic_addr (0.0.0.0:8443, line 6); it must be another address or port",
        ),
    ] {
        let said = problems(&with_services(&services));
        assert!(said[0].ends_with(expected), "{said:#?}\n{expected}");
    }
    // TCP and UDP have ports of their own.
    let udp = WEB
        .replace("web", "dns")
        .replace(":80\"", ":30050\"\nprotocol = \"udp\"");
    accept(&with_services(&format!("{SSH}{udp}")));
}

#[test]
fn a_service_with_a_wrong_value_says_what_it_must_be() {
    for (from, to, expected) in [
        (
            "\"web\"",
            "\"\"",
            "server.services[0].name: \"\" is no name; it must be 1 to 64 of A-Z",
        ),
        ("\"web\"", "\"a b\"", "\"a b\" is no name"),
        (
            "\"web\"",
            "5",
            "server.services[0].name: is an integer; it must be 1 to 64 of",
        ),
        (
            "name = \"web\"\n",
            "",
            "server.services[0].name: is missing; it must be 1 to 64 of",
        ),
        (
            ":80\"",
            ":90-80\"",
            "traffic_addr: \"90-80\" runs backwards",
        ),
        (":80\"", ":65000-65536\"", "\"65536\" is no port"),
        (
            ":80\"",
            ":1-60000\"",
            "has 60000 ports; it must have 4096 at most",
        ),
        (
            ":80\"",
            ":80\"\nprotocol = \"sctp\"",
            "services[0].protocol: \"sctp\" is not known",
        ),
        (
            ":80\"",
            ":80\"\nrequired = 1",
            "services[0].required: is an integer; it must be true",
        ),
        (
            ":80\"",
            ":80\"\nstall_timeout = \"1ms\"",
            "stall_timeout: is too short",
        ),
        (
            ":80\"",
            ":80\"\ndeny = [\"10.0.0.1/8\"]",
            "services[0].deny: \"10.0.0.1/8\" has bits set behind the first 8; it must be \
             \"10.0.0.0/8\"",
        ),
        (
            ":80\"",
            ":80\"\nallow = \"10.0.0.0/8\"",
            "services[0].allow: is a string; it must be an array of networks",
        ),
        (
            ":80\"",
            ":80\"\nallow = [7]",
            "services[0].allow[0]: is an integer; it must be a string",
        ),
        (
            ":80\"",
            ":80\"\ndeny_file = \"none.txt\"",
            "none.txt does not exist; it must be a file with one network in each line",
        ),
        (
            ":80\"",
            ":80\"\nidle_timeout = \"1ms\"",
            "idle_timeout: is too short; it must be \"0s\"",
        ),
        (
            ":80\"",
            ":80\"\nmax_visitors = -1",
            "max_visitors: is out of range; it must be a whole number from 0 to 1048576",
        ),
        (
            ":80\"",
            ":80\"\ntrafic_addr = 1",
            "unknown key; did you mean \"traffic_addr\"?",
        ),
    ] {
        let message = problem(&with_services(&edited(WEB, from, to)));
        assert!(message.contains(expected), "{message}\n{expected}");
    }
}

#[test]
fn a_client_maps_ports_by_number_by_range_or_not_at_all() {
    let range = LocalPorts::These(Ports::range(5000, 5099).expect("a range"));
    let one = LocalPorts::These(Ports::one(3000));
    for (port, ports) in [
        ("3000", one),
        ("\"3000\"", one),
        ("\"5000-5099\"", range),
        ("\"same\"", LocalPorts::Same),
    ] {
        let client = accept(&local_service(port)).client.expect("a client");
        let [service] = &client.services[..] else {
            panic!("one service")
        };
        assert_eq!(service.name, "web");
        assert_eq!(service.ports, ports, "{port}");
        assert_eq!(service.protocol, ListenerProtocol::Both);
    }
    for (port, expected) in [
        (
            "0",
            "client.services[0].port: is out of range; it must be a number from 1 to 65535, a",
        ),
        (
            "\"http\"",
            "\"http\" is no port; it must be a number from 1 to 65535, a range",
        ),
        ("\"5099-5000\"", "runs backwards"),
        (
            "[1]",
            "client.services[0].port: is an array; it must be a number",
        ),
    ] {
        let message = problem(&local_service(port));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_client_has_64_services_and_one_of_each_name() {
    let services = |count: usize| -> String {
        (0..count)
            .map(|index| {
                format!("[[client.services]]\nname = \"s{index}\"\nhost = \"a\"\nport = 1\n")
            })
            .collect()
    };
    accept(&with_local_services(&services(64)));
    let message = problem(&with_local_services(&services(65)));
    assert!(message.contains("client.services[64]: is one too many; a client may serve 64"));
    let message = problem(&format!("{CLIENT}{}", services(64)));
    assert!(
        message.contains("client.services[63]: is one too many"),
        "{message}"
    );
    let twice = services(1).repeat(2);
    let message = problem(&with_local_services(&twice));
    assert!(
        message.contains("client.services[1].name: \"s0\" is the name of line"),
        "{message}"
    );
}

#[test]
fn a_range_that_does_not_fit_the_servers_is_warned_of() {
    let both = |port: &str| -> Config {
        let server = with_services(SSH);
        let client = local_service(port).replace("\"web\"", "\"ssh\"");
        accept(&format!("{server}{client}"))
    };
    for port in ["\"5000-5099\"", "\"same\""] {
        assert_eq!(both(port).warnings, Vec::<String>::new(), "{port}");
    }
    let warnings = both("\"5000-5098\"").warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].ends_with(
            "client.services[0].port: has 99 ports, but the service of this name in [server] has \
             100: visitors of the others would be refused"
        ),
        "{warnings:?}"
    );
}

#[test]
fn a_server_may_have_a_thousand_services_and_a_range_of_a_thousand_ports() {
    let services: String = (0..1_000)
        .map(|index| {
            WEB.replace("web", &format!("s{index}"))
                .replace(":80\"", &format!(":{}\"", 10_000 + index))
        })
        .collect();
    let range = SSH.replace("30000-30099", "30000-30999");
    let server = server(&with_services(&format!("{services}{range}")));
    assert_eq!(server.doors[0].services.len(), 1_001);
    assert_eq!(server.sockets(2), 2 * (2 + 2_000 + 1_000));
}

#[test]
fn services_are_told_of_their_visitors_by_a_proxy_header_if_they_want_one() {
    let service = |lines: &str| accept(&local_service(&format!("1\n{lines}")));
    let keys = |lines: &str| {
        let client = service(lines).client.expect("a client");
        let service = &client.services[0];
        (service.proxy_protocol, service.proxy_protocol_udp)
    };
    let (every, first) = (ProxyProtocolUdp::Every, ProxyProtocolUdp::First);
    assert_eq!(keys(""), (ProxyProtocol::Off, every));
    assert_eq!(
        keys("protocol = \"tcp\"\nproxy_protocol = \"v1\""),
        (ProxyProtocol::V1, every)
    );
    assert_eq!(
        keys("proxy_protocol = \"v2\"\nproxy_protocol_udp = \"first\""),
        (ProxyProtocol::V2, first)
    );
    let local = |lines: &str| {
        let text = edited(CLIENT, LOCAL, &format!("{LOCAL}{lines}"));
        let client = accept(&text).client.expect("a client");
        client.services[0].proxy_protocol
    };
    assert_eq!(local("proxy_protocol = \"v2\"\n"), ProxyProtocol::V2);
    assert_eq!(
        local("protocol = \"tcp\"\nproxy_protocol = \"v1\"\n"),
        ProxyProtocol::V1
    );
    for (lines, expected) in [
        (
            "proxy_protocol_udp = \"first\"",
            "is not used without proxy_protocol = \"v2\"",
        ),
        (
            "protocol = \"tcp\"\nproxy_protocol = \"v2\"\nproxy_protocol_udp = \"first\"",
            "is not used with protocol = \"tcp\": there are no datagrams",
        ),
        (
            "protocol = \"udp\"\nhealth_check_interval = \"1s\"",
            "is not used with protocol = \"udp\": checks are TCP connections",
        ),
    ] {
        let warnings = service(lines).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(expected), "{warnings:?}");
    }
}

#[test]
fn a_proxy_header_that_cannot_be_is_refused() {
    for (lines, expected) in [
        (
            "proxy_protocol = \"v1\"",
            "client.services[0].proxy_protocol: \"v1\" has no form for UDP, and this service speaks \
             \"both\"; it must be \"v2\", or the service must have protocol = \"tcp\"",
        ),
        (
            "protocol = \"udp\"\nproxy_protocol = \"v1\"",
            "and this service speaks \"udp\"",
        ),
        (
            "proxy_protocol = \"v3\"",
            "\"v3\" is not known (did you mean",
        ),
        (
            "proxy_protocol = \"v2\"\nproxy_protocol_udp = \"all\"",
            "client.services[0].proxy_protocol_udp: \"all\" is not known; it must be \"every\" or \
             \"first\"",
        ),
        ("proxy_protocol = true", "proxy_protocol: is a boolean"),
    ] {
        let message = problem(&local_service(&format!("1\n{lines}")));
        assert!(message.contains(expected), "{message}\n{expected}");
    }
    let text = edited(CLIENT, LOCAL, &format!("{LOCAL}proxy_protocol = \"v1\"\n"));
    let message = problem(&text);
    assert!(
        message.contains("client.local.proxy_protocol: \"v1\""),
        "{message}"
    );
}

#[test]
fn lists_of_networks_stand_in_the_file_or_in_files_of_their_own() {
    let file = |name: &str, text: &str| {
        std::fs::write(dir().join(name), text).expect("written");
    };
    file(
        "allowed.txt",
        "# the office\n\n192.0.2.0/24 # all of it\r\n2001:db8::/32\n",
    );
    let text = with_services(&format!(
        "{WEB}allow = [\"10.0.0.0/8\"]\nallow_file = \"allowed.txt\"\n\
         deny = [\"10.1.0.0/16\"]\n{SSH}"
    ));
    let server = server(&text);
    let [web, ssh] = &server.doors[0].services[..] else {
        panic!("two services")
    };
    for (ip, denied, allowed) in [
        ("10.0.0.1", false, true),
        ("10.1.0.1", true, true),
        ("192.0.2.9", false, true),
        ("2001:db8::9", false, true),
        ("203.0.113.9", false, false),
    ] {
        let ip = ip.parse().expect("literal");
        assert_eq!(web.bounds.denies(ip), denied, "{ip}");
        assert_eq!(web.bounds.does_not_allow(ip), !allowed, "{ip}");
        assert!(!ssh.bounds.denies(ip) && !ssh.bounds.does_not_allow(ip));
    }
    file("wrong.txt", "192.0.2.0/24\nsomewhere\n");
    let wrong = with_services(&format!("{WEB}deny_file = \"wrong.txt\"\n"));
    let message = problem(&wrong);
    assert!(message.contains("deny_file: "), "{message}");
    assert!(
        message.contains("wrong.txt is wrong in line 2: \"somewhere\" is no network"),
        "{message}"
    );
    file("empty.txt", "# nobody yet\n");
    let empty = with_services(&format!("{WEB}allow_file = \"empty.txt\"\n"));
    let message = problem(&empty);
    assert!(
        message.contains("allow_file: names no network"),
        "{message}"
    );
}

#[test]
fn balancers_are_networks_and_everybody_is_warned_of() {
    let text = with_services(&format!("{WEB}accept_proxy_from = [\"10.0.0.0/8\"]\n{SSH}"));
    let config = accept(&text);
    assert_eq!(config.warnings, Vec::<String>::new());
    let server = config.server.expect("a server");
    let [web, ssh] = &server.doors[0].services[..] else {
        panic!("two services")
    };
    let ip = "10.1.2.3".parse().expect("literal");
    assert!(web.bounds.accept_proxy_from.contains(ip));
    assert!(!ssh.bounds.accept_proxy_from.contains(ip));
    for (all, what) in [("0.0.0.0/0", "any address"), ("::/0", "any address")] {
        let text = with_services(&format!("{WEB}accept_proxy_from = [\"{all}\"]\n"));
        let warnings = accept(&text).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains(all) && warnings[0].contains(what),
            "{warnings:?}"
        );
    }
    let wrong = with_services(&format!("{WEB}accept_proxy_from = [\"haproxy\"]\n"));
    let message = problem(&wrong);
    assert!(
        message.contains("accept_proxy_from: \"haproxy\" is no network"),
        "{message}"
    );
}

#[test]
fn a_bandwidth_is_none_or_one_that_carries_a_page() {
    let bandwidth = |value: &str| with_services(&format!("{WEB}bandwidth_per_visitor = {value}\n"));
    for (value, expected) in [
        ("0", 0),
        ("\"0\"", 0),
        ("1000", 1_000),
        ("\"1KB\"", 1_000),
        ("1024", 1_024),
        ("\"1MiB\"", 1 << 20),
    ] {
        let server = server(&bandwidth(value));
        let bounds = &server.doors[0].services[0].bounds;
        assert_eq!(bounds.bandwidth_per_visitor, expected, "{value}");
    }
    // Who asks for this little mostly means another unit.
    let config = accept(&bandwidth("100"));
    let says = "bandwidth_per_visitor: each visitor gets 100 bytes per second only";
    let is_told = config.warnings.iter().any(|it| it.contains(says));
    assert!(is_told, "{:?}", config.warnings);
    for wrong in ["-1", "\"fast\"", "true", "\"2TiB\""] {
        let message = problem(&bandwidth(wrong));
        assert!(message.contains("bandwidth_per_visitor: "), "{message}");
    }
}

#[test]
fn each_service_has_limits_of_its_own_and_none_without_them() {
    let text = with_services(&format!(
        "{WEB}max_visitors = 1\nmax_visitors_per_source = 2\n\
         visitors_per_second_per_source = 3\nmax_udp_flows_per_source = 4\n\
         bandwidth_per_visitor = \"2MiB\"\nidle_timeout = \"5s\"\n{SSH}"
    ));
    let config = accept(&text);
    assert_eq!(config.warnings, Vec::<String>::new());
    let server = config.server.expect("a server");
    let [web, ssh] = &server.doors[0].services[..] else {
        panic!("two services")
    };
    let limited = Bounds {
        max_visitors: 1,
        max_visitors_per_source: 2,
        visitors_per_second_per_source: 3,
        max_udp_flows_per_source: 4,
        bandwidth_per_visitor: 2 << 20,
        idle_timeout: Duration::from_secs(5),
        ..Bounds::default()
    };
    assert_eq!(web.bounds, limited);
    assert_eq!(ssh.bounds, Bounds::default());
    let listener = edited(LISTENER, "both\"\n", "both\"\nmax_visitors = 1\n");
    let bounds = accept(&edited(SERVER, LISTENER, &listener)).server;
    let bounds = bounds.expect("a server").listeners()[0].bounds.clone();
    assert_eq!(bounds.max_visitors, 1);
}

#[test]
fn a_limit_of_a_protocol_that_a_service_does_not_speak_is_a_warning() {
    let text = with_services(&format!("{SSH}max_udp_flows_per_source = 4\n"));
    let warnings = accept(&text).warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let expected = "services[0].max_udp_flows_per_source: has no effect with the protocol";
    assert!(warnings[0].contains(expected), "{warnings:?}");
}
