//! A client that gets another certificate: its lanes are made anew by it, wherever the file is.

use rustix::process::Signal;

use crate::support::certs::Identity;
use crate::support::door::{Door, entry};
use crate::support::http;
use crate::support::program::Program;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::visitor;
use crate::support::wait;

use super::ConfigFile;
use super::client::{client, registrations};

/// A server that knows two clients, and the program of the first one.
fn tunnel(site: &Site, service: &TcpService) -> (Door, Program, ConfigFile) {
    let entries = entry("nas", &["a"]) + &entry("other", &["a"]);
    let (door, _file) = super::door(site, &["a"], &entries);
    let (client, file) = client(site, "nas", &["a"], service.address, &door);
    visitor::wait_until_served(door.traffic("a"));
    (door, client, file)
}

/// The names of the clients in the server's `/status`.
fn clients(door: &Door) -> Vec<String> {
    let status = http::get(door.admin, "/status").body;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let clients = status["server"]["clients"].as_array().expect("a list");
    let names = clients.iter().map(|client| client["name"].as_str());
    names.map(|name| name.expect("a name").to_owned()).collect()
}

fn wait_for_client(door: &Door, name: &str) {
    wait::until_true(&format!("{name} alone is there"), || {
        clients(door) == [name]
    });
}

#[test]
fn a_client_registers_anew_with_the_certificate_that_has_replaced_its_own_in_the_same_file() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let service = TcpService::echo();
    let (door, client, file) = tunnel(&site, &service);
    assert_eq!(clients(&door), ["nas"]);
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    Identity::client_named("other").write(site.path(), "nas");
    client.signal(Signal::HUP);
    wait::until_true("it is served under its other name", || {
        clients(&door).contains(&"other".to_owned())
    });
    visitor::echo(door.traffic("a"), b"served meanwhile");
    visitor::exchange(&mut flow, b"on the lane of before");
    drop(flow);
    wait_for_client(&door, "other");
    // Without an order the files are looked at from time to time.
    Identity::client_named("nas").write(site.path(), "nas");
    wait_for_client(&door, "nas");
    let registered = registrations(&client);
    let said = file.taken_up();
    assert!(said.contains("no key has changed"), "{said}");
    let ca = site.path().join("ca.crt");
    let text = std::fs::read_to_string(&ca).expect("the CA");
    std::fs::write(&ca, format!("# The same CA.\n{text}")).expect("written");
    let said = file.taken_up();
    let line = format!("{}: has changed, and is in use\n", ca.display());
    assert!(said.contains(&line), "{line}: {said}");
    assert!(registrations(&client) > registered);
    wait_for_client(&door, "nas");
}

#[test]
fn a_client_whose_replaced_certificate_the_server_refuses_serves_as_before_and_says_so() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let service = TcpService::echo();
    let (door, client, file) = tunnel(&site, &service);
    // This one does not fit the CA of the server.
    Identity::strange_client().write(site.path(), "nas");
    let said = file.taken_up();
    assert!(said.contains("no lane can be had"), "{said}");
    client.wait_for_line("the log says so", |line| line.contains("does not serve"));
    visitor::echo(door.traffic("a"), b"the lane of before serves");
    assert_eq!(clients(&door), ["nas"]);
    Identity::client_named("nas").write(site.path(), "nas");
    let said = file.taken_up();
    assert!(!said.contains("no lane can be had"), "{said}");
    visitor::echo(door.traffic("a"), b"served");
}
