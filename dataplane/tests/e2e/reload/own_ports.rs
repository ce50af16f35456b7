//! Ports that this process has itself, and that a new configuration wants for visitors.

use super::{ConfigFile, door, offering, service_table, without_service};
use crate::support::door::{Door, DoorSetup, published};
use crate::support::ports;
use crate::support::service::{TcpService, echo_both};
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::visitor;

#[test]
fn a_service_that_has_just_been_removed_gets_its_port_back_at_once() {
    if subject::only_wire("reload::own_ports") {
        return;
    }
    let site = Site::new();
    let (server, config) = door(&site, &["web", "dns"], "");
    let (tcp, _udp) = echo_both();
    let _client = offering("client", &["web", "dns"], tcp.address).start(&site, server.quic[0]);
    visitor::wait_until_served(server.traffic("web"));
    let with = config.text();
    let without = without_service(&with, "web");
    for _ in 0..3 {
        config.write(&without);
        config.taken_up();
        config.write(&with);
        config.taken_up();
        visitor::wait_until_served(server.traffic("web"));
    }
}

#[test]
fn a_service_at_the_port_of_its_own_door_is_refused_with_the_true_reason() {
    if subject::only_wire("reload::own_ports") {
        return;
    }
    let site = Site::new();
    let (server, config) = door(&site, &["web"], "");
    let before = config.text();
    let table = service_table("new", server.quic[0], "tcp");
    config.append(&table);
    let answer = config.reload();
    assert_eq!(answer.status, 422, "{}", answer.body);
    for part in ["tls_fallback", "restart", &server.quic[0].to_string()] {
        assert!(answer.body.contains(part), "{}", answer.body);
    }
    config.write(&before);
    config.taken_up();
}

#[test]
fn an_address_beside_that_of_a_door_is_refused_with_the_key_that_needs_a_restart() {
    if subject::only_wire("reload::own_ports") {
        return;
    }
    let site = Site::new();
    let (server, config) = door(&site, &["web"], "");
    let echo = TcpService::echo();
    let _client = offering("client", &["web"], echo.address).start(&site, server.quic[0]);
    visitor::wait_until_served(server.traffic("web"));
    let before = config.text();
    let own = server.quic[0];
    let list = |addresses: &str| before.replace(&format!("[\"{own}\"]"), addresses);
    let more = ports::free_address();
    let any = format!("[\"0.0.0.0:{}\"]", own.port());
    for wider in [format!("[\"{own}\", \"{more}\"]"), any] {
        config.write(&list(&wider));
        let answer = config.reload();
        assert_eq!(answer.status, 422, "{}", answer.body);
        for part in [
            "this process itself",
            "quic_addr",
            "restart",
            &own.to_string(),
        ] {
            assert!(answer.body.contains(part), "no {part:?}: {}", answer.body);
        }
        assert!(!answer.body.contains("another program"), "{}", answer.body);
    }
    config.write(&before);
    config.taken_up();
    visitor::echo(server.traffic("web"), b"served by the door that there was");
}

#[test]
fn the_order_of_a_doors_addresses_does_not_matter() {
    if subject::only_wire("reload::own_ports") {
        return;
    }
    let site = Site::new();
    let setup = DoorSetup {
        services: vec![published("web", "both")],
        addresses: 2,
        ..DoorSetup::default()
    };
    let server = Door::start(&site, &setup);
    let config = ConfigFile::of(&site, "door.toml", server.admin);
    let echo = TcpService::echo();
    let _client = offering("client", &["web"], echo.address).start(&site, server.quic[1]);
    visitor::wait_until_served(server.traffic("web"));
    let mut flow = visitor::connect(server.traffic("web"));
    visitor::exchange(&mut flow, b"before");
    let [one, other] = [server.quic[0], server.quic[1]];
    let list = |first, second| format!("[\"{first}\", \"{second}\"]");
    config.replace(&list(one, other), &list(other, one));
    config.append("[limits]\nstall_timeout = \"50s\"\n");
    config.taken_up();
    visitor::exchange(&mut flow, b"after");
    visitor::echo(server.traffic("web"), b"served all the time");
}
