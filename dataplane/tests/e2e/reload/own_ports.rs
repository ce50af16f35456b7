//! Ports that this process has itself, and that a new configuration wants for visitors.

use super::{door, offering, service_table, without_service};
use crate::support::service::echo_both;
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
