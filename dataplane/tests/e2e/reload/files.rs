//! Files that a configuration names, and that change without anybody saying so.

use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::certs::{Identity, strangers};
use crate::support::ports;
use crate::support::program::Launch;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::visitor;

use super::{ConfigFile, wait_until_refused};

/// A server whose pair is in `pair.crt` and `pair.key`, at first ours.
fn server(site: &Site) -> Server {
    Identity::server().write(site.path(), "pair");
    start(site)
}

fn start(site: &Site) -> Server {
    let setup = ServerSetup {
        identity: "pair",
        listeners: vec!["tcp"],
        cores: 2,
        ..ServerSetup::default()
    };
    Server::start(site, &setup)
}

/// A pair of a CA that is not ours, as the server's next one.
fn other_pair() -> Identity {
    Identity {
        cert_pem: strangers().server_cert_pem.clone(),
        key_pem: strangers().server_key_pem.clone(),
    }
}

/// A client that trusts only the other CA, and is served if the server shows its certificate.
fn serves_with_the_other_ca(site: &Site, server: &Server, service: &TcpService) {
    site.write("other-ca.crt", &strangers().ca_cert_pem);
    let setup = ClientSetup {
        name: "trusts-the-other",
        ca: "other-ca",
        ..ClientSetup::default()
    };
    let _client = start_client(site, &setup, server.listeners[0].quic, service.address);
    visitor::wait_until_served(server.listeners[0].traffic);
}

fn serves_with_our_ca(site: &Site, name: &'static str, server: &Server, service: &TcpService) {
    let setup = ClientSetup {
        name,
        ..ClientSetup::default()
    };
    let _client = start_client(site, &setup, server.listeners[0].quic, service.address);
    visitor::wait_until_served(server.listeners[0].traffic);
}

fn is_used(server: &Server) {
    let says = |line: &str| line.contains("used now");
    server.program.wait_for_line("that it is used", says);
}

#[test]
fn a_pair_that_is_swapped_by_a_link_is_shown_to_new_clients() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    // Kubernetes mounts secrets like this: files are links through one that is swapped.
    for (dir, pair) in [("data-1", Identity::server()), ("data-2", other_pair())] {
        std::fs::create_dir(site.path().join(dir)).expect("a directory");
        pair.write(&site.path().join(dir), "pair");
    }
    let link = |to: &str, name: &str| symlink(Path::new(to), site.path().join(name));
    link("data-1", "data").expect("a link");
    link("data/pair.crt", "pair.crt").expect("a link");
    link("data/pair.key", "pair.key").expect("a link");
    let server = start(&site);
    let service = TcpService::echo();
    serves_with_our_ca(&site, "first", &server, &service);
    link("data-2", "data-new").expect("a link");
    std::fs::rename(site.path().join("data-new"), site.path().join("data")).expect("swapped");
    is_used(&server);
    serves_with_the_other_ca(&site, &server, &service);
}

#[test]
fn an_order_names_the_files_that_have_changed_and_are_in_use() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    Identity::server().write(site.path(), "pair");
    site.write("deny.txt", "192.0.2.0/24\n");
    let (quic, traffic, admin) = (
        ports::free_address(),
        ports::free_address(),
        ports::free_address(),
    );
    site.write("token", "correct horse battery\n");
    let text = format!(
        "[[server.listeners]]\nquic_addr = \"{quic}\"\ntraffic_addr = \"{traffic}\"\n\
         protocol = \"tcp\"\ndeny_file = \"deny.txt\"\n\
         [server.auth]\nmethod = \"token\"\ntoken_file = \"token\"\n\
         [server.tls]\nserver_cert_file = \"pair.crt\"\nserver_key_file = \"pair.key\"\n\
         [admin]\nlisten = \"{admin}\"\n"
    );
    let config = site.write("files.toml", &text);
    let program = Launch::new("server", subject::server())
        .args(["--config", &config, "--cores", "1"])
        .start();
    program.wait_until_ready().expect("ready");
    let file = ConfigFile::of(&site, "files.toml", admin);
    assert!(file.taken_up().contains("no key has changed"));
    other_pair().write(site.path(), "pair");
    site.write("token", "another horse battery\n");
    site.write("deny.txt", "half a net");
    let refused = file.reload();
    assert_eq!(refused.status, 422, "{}", refused.body);
    site.write("deny.txt", "198.51.100.0/24\n");
    let said = file.taken_up();
    for name in ["pair.crt", "pair.key", "token", "deny.txt"] {
        let path = site.path().join(name);
        let line = format!("{}: has changed, and is in use\n", path.display());
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert!(!said.contains("horse"), "{said}");
    assert!(file.taken_up().contains("no key has changed"));
}

#[test]
fn a_pair_that_does_not_fit_is_kept_out_until_it_does() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let server = server(&site);
    let service = TcpService::echo();
    let next = other_pair();
    site.write("pair.key", &next.key_pem);
    let kept_out = |line: &str| line.contains("cannot be used as they are");
    server
        .program
        .wait_for_line("that it does not fit", kept_out);
    serves_with_our_ca(&site, "before", &server, &service);
    // This is half of the certificate, as while it is being written.
    site.write("pair.crt", &next.cert_pem[..next.cert_pem.len() / 2]);
    serves_with_our_ca(&site, "meanwhile", &server, &service);
    site.write("pair.crt", &next.cert_pem);
    is_used(&server);
    serves_with_the_other_ca(&site, &server, &service);
    let lines = server.program.lines();
    assert_eq!(
        lines.iter().filter(|it| kept_out(it)).count(),
        1,
        "said once"
    );
}

#[test]
fn a_list_of_networks_holds_when_its_file_has_changed() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    site.write("deny.txt", "# nobody\n");
    let service = TcpService::echo();
    let (door, file) = super::door(&site, &["a"], "");
    file.replace(
        "protocol = \"both\"",
        "protocol = \"both\"\ndeny_file = \"deny.txt\"",
    );
    file.taken_up();
    let offering = super::offering("client", &["a"], service.address);
    let _client = offering.start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    // Somebody is editing the config and has not finished: nothing of that is taken up with the
    // list.
    file.append("half = \"a change\"\n");
    site.write("deny.txt", "127.0.0.0/8\n");
    wait_until_refused(door.traffic("a"));
}
