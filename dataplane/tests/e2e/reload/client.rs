//! Another configuration for a running client.

use std::net::{SocketAddr, TcpListener};

use crate::support::certs::SERVER_NAME;
use crate::support::door::{Door, DoorSetup, entry_by, published};
use crate::support::http;
use crate::support::ports;
use crate::support::program::Program;
use crate::support::service::{TcpService, UdpService, echo, echo_both};
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor::{self, Ending};
use crate::support::visits::{Visits, summary};
use crate::support::wait;

use super::{ConfigFile, door, offering, wait_until_refused};

/// A client of these services at one place, and its config file.
pub(super) fn client(
    site: &Site,
    name: &'static str,
    services: &[&str],
    local: SocketAddr,
    door: &Door,
) -> (Program, ConfigFile) {
    let launch = offering(name, services, local).launch(site, door.quic[0]);
    let file = ConfigFile::of(site, &format!("{name}.toml"), ports::free_address());
    file.append(&format!("[admin]\nlisten = \"{}\"\n", file.admin));
    let program = launch.start();
    program.wait_for_line("a lane", |line| line.contains("lane registered"));
    (program, file)
}

fn service(name: &str, local: SocketAddr) -> String {
    format!(
        "[[client.services]]\nname = \"{name}\"\nhost = \"{}\"\nport = {}\n",
        local.ip(),
        local.port()
    )
}

/// The entry of a server.
fn server(door: &Door) -> String {
    let quic = door.quic[0];
    format!("[[client.servers]]\naddress = \"{quic}\"\nserver_name = \"{SERVER_NAME}\"\n")
}

#[test]
fn a_service_that_a_client_adds_or_moves_is_served_and_its_flows_go_on() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, _file) = door(&site, &["a", "b"], "");
    let (tcp, _udp) = echo_both();
    let (_client, file) = client(&site, "nas", &["a"], tcp.address, &door);
    visitor::wait_until_served(door.traffic("a"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    let mut datagrams = UdpVisitor::new(door.traffic("a"));
    datagrams.echo(b"before");
    file.append(&service("b", tcp.address));
    let said = file.taken_up();
    assert!(said.contains("client.services[b].port: added"), "{said}");
    visitor::wait_until_served(door.traffic("b"));
    UdpVisitor::new(door.traffic("b")).echo(b"a datagram");
    for _ in 0..20 {
        visitor::echo(door.traffic("a"), b"served all the time");
    }
    visitor::exchange(&mut flow, b"after");
    datagrams.echo(b"after");
    // It moves: who comes from then on gets to the new place.
    let elsewhere = TcpService::says("from elsewhere");
    let before = file.text();
    let table = service("b", tcp.address);
    assert!(before.contains(&table));
    file.replace(&table, &service("b", elsewhere.address));
    file.taken_up();
    wait::until_true("the new place is asked", || {
        elsewhere.accepted() > 0 || {
            let _nobody = visitor::echo_works(door.traffic("b"));
            false
        }
    });
    visitor::exchange(&mut flow, b"and again");
    file.replace(&service("b", elsewhere.address), "");
    file.taken_up();
    wait_until_refused(door.traffic("b"));
    visitor::exchange(&mut flow, b"to the end");
    visitor::echo(door.traffic("a"), b"served");
}

#[test]
fn a_client_whose_configuration_changes_leaves_no_moment_without_a_lane() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, _file) = door(&site, &["a"], "");
    let service_of_a = TcpService::echo();
    let (_client, file) = client(&site, "nas", &["a"], service_of_a.address, &door);
    visitor::wait_until_served(door.traffic("a"));
    let text = file.text();
    let other = service("other", service_of_a.address);
    for round in 0..20 {
        file.write(&if round % 2 == 0 {
            text.clone() + &other
        } else {
            text.clone()
        });
        file.taken_up();
        for _ in 0..5 {
            visitor::echo(door.traffic("a"), b"every visitor is served");
        }
    }
}

#[test]
fn a_server_that_is_added_gets_lanes_and_one_that_is_removed_loses_them() {
    if subject::only_wire("reload") {
        return;
    }
    let (first_site, second_site) = (Site::new(), Site::new());
    let (first, _) = door(&first_site, &["a"], "");
    let (second, _) = door(&second_site, &["a"], "");
    let echo = TcpService::echo();
    let (_client, file) = client(&first_site, "nas", &["a"], echo.address, &first);
    visitor::wait_until_served(first.traffic("a"));
    let mut flow = visitor::connect(first.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    file.append(&server(&second));
    file.taken_up();
    visitor::wait_until_served(second.traffic("a"));
    file.replace(&server(&first), "");
    file.taken_up();
    wait_until_refused(first.traffic("a"));
    visitor::echo(second.traffic("a"), b"the other one is there");
    visitor::exchange(&mut flow, b"it may finish");
    drop(flow);
    file.append(&server(&first));
    file.taken_up();
    visitor::wait_until_served(first.traffic("a"));
}

#[test]
fn flows_of_a_server_that_is_removed_are_reset_when_the_drain_timeout_of_the_client_is_over() {
    if subject::only_wire("reload") {
        return;
    }
    let (first_site, second_site) = (Site::new(), Site::new());
    let (first, _) = door(&first_site, &["a"], "");
    let (second, _) = door(&second_site, &["a"], "");
    let echo = TcpService::echo();
    let (_client, file) = client(&first_site, "nas", &["a"], echo.address, &first);
    file.replace("[client]\n", "[client]\ndrain_timeout = \"1s\"\n");
    file.append(&server(&second));
    file.taken_up();
    for door in [&first, &second] {
        visitor::wait_until_served(door.traffic("a"));
    }
    let [mut ends, mut stays] = [&first, &second].map(|door| {
        let mut flow = visitor::connect(door.traffic("a"));
        visitor::exchange(&mut flow, b"before");
        flow
    });
    file.replace(&server(&first), "");
    file.taken_up();
    assert!(matches!(visitor::read_to_end(&mut ends), Ending::Reset(_)));
    visitor::exchange(&mut stays, b"after");
}

#[test]
fn a_client_goes_on_with_another_token_when_both_sides_have_changed_it() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (old, new) = ("the first secret of nas", "the second secret of nas");
    site.write("token", old);
    let setup = DoorSetup {
        services: vec![published("a", "both")],
        config: entry_by("nas", "token_file = \"token\"", &["a"]),
        auth: "method = \"token\"",
        ..DoorSetup::default()
    };
    let door = Door::start(&site, &setup);
    let at_server = ConfigFile::of(&site, "door.toml", door.admin);
    let echo = TcpService::echo();
    let launch = crate::support::door::Offering {
        token: Some(old),
        ..offering("nas", &["a"], echo.address)
    };
    let launch = launch.launch(&site, door.quic[0]);
    let file = ConfigFile::of(&site, "nas.toml", ports::free_address());
    file.append(&format!("[admin]\nlisten = \"{}\"\n", file.admin));
    file.replace(&format!("token = \"{old}\""), "token_file = \"token\"");
    let _client = launch.start();
    visitor::wait_until_served(door.traffic("a"));
    site.write("token", new);
    let said = file.taken_up();
    assert!(!said.contains("secret of nas"), "{said}");
    for part in ["no lane can be had by its changed configuration", "token"] {
        assert!(said.contains(part), "{said}");
    }
    visitor::echo(door.traffic("a"), b"the lane of before serves");
    at_server.taken_up();
    door.program.wait_for_line("the old proof ends", |line| {
        line.contains("may not serve here any more")
    });
    visitor::wait_until_served(door.traffic("a"));
    assert_eq!(http::get(file.admin, "/readyz").status, 200);
    assert_eq!(
        server_in_status(&file)["outdated_why"],
        serde_json::Value::Null
    );
    // One that the server never gets.
    site.write("token", "a secret that is not that of the server");
    let said = file.taken_up();
    assert!(said.contains("no lane can be had"), "{said}");
    visitor::echo(door.traffic("a"), b"the lane of before serves");
    site.write("token", new);
    let said = file.taken_up();
    assert!(!said.contains("no lane can be had"), "{said}");
    visitor::echo(door.traffic("a"), b"served");
}

/// A door with these services, and a client of `a` that has found out that nobody is at `local`.
fn with_a_service_that_is_down(
    site: &Site,
    services: &[&'static str],
    local: SocketAddr,
) -> (Door, Program, ConfigFile) {
    let (door, _file) = door(site, services, "");
    let (program, file) = client(site, "nas", &["a"], local, &door);
    wait::until_true("the client has found that nobody is there", || {
        !visitor::echo_works(door.traffic("a"))
            && http::get(file.admin, "/readyz?service=a").status == 503
    });
    http::wait_for(door.admin, "/readyz?service=a", 503);
    (door, program, file)
}

fn wait_until_ready_at_both_ends(door: &Door, file: &ConfigFile) {
    for admin in [file.admin, door.admin] {
        http::wait_for(admin, "/readyz?service=a", 200);
    }
}

#[test]
fn a_service_that_is_down_when_its_keys_change_is_found_when_it_is_back() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let local = ports::free_address();
    let (door, _client, file) = with_a_service_that_is_down(&site, &["a"], local);
    let port = format!("port = {}\n", local.port());
    let patient = format!("{port}health_check_timeout = \"3s\"\n");
    file.replace(&port, &patient);
    file.taken_up();
    let listener = TcpListener::bind(local).expect("still free");
    let _back = TcpService::start_on(listener, echo);
    wait_until_ready_at_both_ends(&door, &file);
    visitor::echo(door.traffic("a"), b"served again");
}

#[test]
fn a_service_that_becomes_one_for_udp_alone_while_it_is_down_by_tcp_is_not_down_for_ever() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let udp = UdpService::echo();
    let (door, _client, file) = with_a_service_that_is_down(&site, &["a"], udp.address);
    file.replace("protocol = \"both\"", "protocol = \"udp\"");
    file.taken_up();
    wait_until_ready_at_both_ends(&door, &file);
    UdpVisitor::new(door.traffic("a")).echo(b"served");
}

#[test]
fn a_service_that_moves_while_it_is_down_is_up_although_an_old_lane_carries_a_flow() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (tcp, _udp) = echo_both();
    let nowhere = ports::free_address();
    let (door, _client, file) = with_a_service_that_is_down(&site, &["a", "b"], nowhere);
    file.append(&service("b", tcp.address));
    file.taken_up();
    visitor::wait_until_served(door.traffic("b"));
    let mut flow = visitor::connect(door.traffic("b"));
    visitor::exchange(&mut flow, b"before");
    let port = |at: SocketAddr| format!("port = {}\n", at.port());
    file.replace(&port(nowhere), &port(tcp.address));
    file.taken_up();
    wait_until_ready_at_both_ends(&door, &file);
    visitor::echo(door.traffic("a"), b"served at its new place");
    door.program.wait_for_line("the server says so", |line| {
        line.contains("the client reaches its service again") && line.contains("service=\"a\"")
    });
    visitor::exchange(&mut flow, b"after");
}

/// How many lanes this client has registered so far.
pub(super) fn registrations(client: &Program) -> usize {
    let lines = client.lines();
    let registered = lines.iter().filter(|line| line.contains("lane registered"));
    registered.count()
}

#[test]
fn a_server_whose_transport_name_or_address_changes_leaves_no_moment_without_a_lane() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, _file) = door(&site, &["a"], "");
    let service = TcpService::echo();
    let (client, file) = client(&site, "nas", &["a"], service.address, &door);
    visitor::wait_until_served(door.traffic("a"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    let quic = door.quic[0];
    let at = |address: &str, name: &str, transport: &str| {
        format!(
            "[[client.servers]]\naddress = \"{address}\"\nserver_name = \"{name}\"\n\
             transport = \"{transport}\"\n"
        )
    };
    let literal = quic.to_string();
    let named = format!("localhost:{}", quic.port());
    let entries = [
        at(&literal, SERVER_NAME, "tls"),
        at(&literal, "127.0.0.1", "tls"),
        at(&literal, "127.0.0.1", "quic"),
        at(&named, "127.0.0.1", "quic"),
        at(&named, SERVER_NAME, "auto"),
    ];
    let before =
        format!("[[client.servers]]\naddress = \"{literal}\"\nserver_name = \"{SERVER_NAME}\"\n");
    let text = file.text();
    assert!(text.contains(&before), "{text}");
    let visits = Visits::start(door.traffic("a"), 200);
    for entry in entries.iter().cycle().take(3 * entries.len()) {
        let registered = registrations(&client);
        file.write(&text.replace(&before, entry));
        file.taken_up();
        wait::until_true("a lane registers by the new entry", || {
            registrations(&client) > registered
        });
    }
    let visits = visits.finish();
    let failed = visits.iter().filter(|visit| visit.result.is_err()).count();
    assert_eq!(failed, 0, "{}", summary(&visits));
    visitor::exchange(&mut flow, b"after");
}

/// The one server in `/status` of a client.
fn server_in_status(file: &ConfigFile) -> serde_json::Value {
    let status = http::get(file.admin, "/status").body;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let servers = status["client"]["servers"].as_array().expect("a list");
    assert_eq!(servers.len(), 1, "{status}");
    servers[0].clone()
}

#[test]
fn a_server_whose_changed_entry_does_not_serve_is_served_as_before_and_told() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, _file) = door(&site, &["a", "b"], "");
    let service_of_a = TcpService::echo();
    let (client, file) = client(&site, "nas", &["a"], service_of_a.address, &door);
    visitor::wait_until_served(door.traffic("a"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    assert_eq!(
        server_in_status(&file)["outdated_why"],
        serde_json::Value::Null
    );
    let good = file.text();
    let entry = format!("server_name = \"{SERVER_NAME}\"\n");
    let nobody = ports::free_address().to_string();
    let dead_proxy = format!("{entry}transport = \"tls\"\nproxy = \"http://{nobody}\"\n");
    let visits = Visits::start(door.traffic("a"), 200);
    for (changed, why) in [
        (dead_proxy.as_str(), nobody.as_str()),
        ("server_name = \"elsewhere.test\"\n", "certificate"),
    ] {
        assert!(good.contains(&entry), "{good}");
        file.write(&(good.replace(&entry, changed) + &service("b", service_of_a.address)));
        let said = file.taken_up();
        for part in ["no lane can be had by its changed configuration", why] {
            assert!(said.contains(part), "{said}");
        }
        client.wait_for_line("the log says so", |line| {
            line.contains("does not serve") && line.contains(why)
        });
        let seen = server_in_status(&file);
        let told = seen["outdated_why"].as_str().expect("a reason");
        assert!(told.contains(why), "{told}");
        assert_eq!(
            (&seen["state"], &seen["transport"]),
            (&"up".into(), &"quic".into())
        );
        // Visitors may come, but not to the service that is new.
        assert_eq!(http::get(file.admin, "/readyz").status, 200);
        let ready = http::get(file.admin, "/readyz?service=b");
        assert_eq!(ready.status, 503);
        assert!(ready.body.contains(why), "{}", ready.body);
        // It is told again by a reload that changes nothing.
        let said = file.taken_up();
        assert!(said.contains(why), "{said}");
    }
    file.write(&(good + &service("b", service_of_a.address)));
    let said = file.taken_up();
    assert!(!said.contains("no lane can be had"), "{said}");
    assert_eq!(
        server_in_status(&file)["outdated_why"],
        serde_json::Value::Null
    );
    visitor::wait_until_served(door.traffic("b"));
    let visits = visits.finish();
    let failed = visits.iter().filter(|visit| visit.result.is_err()).count();
    assert_eq!(failed, 0, "{}", summary(&visits));
    visitor::exchange(&mut flow, b"after");
}

#[test]
fn a_server_is_down_when_its_lanes_of_before_end_and_the_changed_entry_does_not_serve() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, at_server) = door(&site, &["a"], "");
    let service_of_a = TcpService::echo();
    let (client, file) = client(&site, "nas", &["a"], service_of_a.address, &door);
    visitor::wait_until_served(door.traffic("a"));
    let entry = format!("server_name = \"{SERVER_NAME}\"\n");
    file.replace(&entry, "server_name = \"elsewhere.test\"\n");
    let said = file.taken_up();
    assert!(said.contains("no lane can be had"), "{said}");
    drop((door, at_server));
    client.wait_for_line("there is no lane", |line| line.contains("no lane is left"));
    client.wait_for_line("why", |line| line.contains("cannot connect"));
    assert_eq!(http::get(file.admin, "/readyz").status, 503);
    let seen = server_in_status(&file);
    assert_eq!(seen["outdated_why"], serde_json::Value::Null, "{seen}");
    assert_eq!(seen["state"], "down");
}
