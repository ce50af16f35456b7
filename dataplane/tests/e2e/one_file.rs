//! Certificates, keys and tokens that are not where they usually are, with traffic.

use qmux_config::certs::{Authority, ClientFile, OfferedService};

use crate::support::certs::{SERVER_NAME, ours};
use crate::support::service::echo_both;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, launch, start_client};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::visitor;

const NO_SERVICES: &[OfferedService] = &[];

#[test]
fn a_client_needs_one_file_with_its_certificates_and_its_key_in_it() {
    if subject::only_wire("certificates in the config") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    let authority = Authority::from_pem(&ours().ca_cert_pem, &ours().ca_key_pem).expect("a CA");
    let file = ClientFile {
        name: "nas",
        server: &server.quic().to_string(),
        server_name: SERVER_NAME,
        services: NO_SERVICES,
        ca_cert_pem: authority.cert_pem(),
        issued: &authority.issue_client("nas", 30).expect("a certificate"),
    };
    // What the operator does by hand.
    let text = file.text().expect("a config");
    let text = text.replace("port = 3000", &format!("port = {}", tcp.address.port()));
    let elsewhere = tempfile::tempdir().expect("a directory without certificates");
    let path = elsewhere.path().join("nas.toml");
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("UTF-8");
    let client = launch("nas", subject::client(), path, 1, None, Some("debug")).start();
    if let Err(log) = client.wait_until_ready() {
        panic!("the client ended instead of becoming ready:\n{log}");
    }
    visitor::echo(server.traffic(), b"served");
    UdpVisitor::new(server.traffic()).echo(b"served");
    assert!(
        !client.lines().join("\n").contains("PRIVATE"),
        "a key is in the log"
    );
}

#[test]
fn a_token_may_come_from_the_environment_or_from_a_file() {
    if subject::only_wire("token authentication") {
        return;
    }
    let (tcp, _udp) = echo_both();
    let site = Site::new();
    site.write("token", "correct horse battery\n");
    let setup = ServerSetup {
        auth: Some("method = \"token\"\ntoken = \"${TUNNEL_TOKEN}\""),
        env: Some(("TUNNEL_TOKEN", "correct horse battery")),
        ..ServerSetup::default()
    };
    let server = Server::start(&site, &setup);
    let client = ClientSetup {
        auth: vec!["token_file = \"token\""],
        identity: "",
        ..ClientSetup::default()
    };
    let _client = start_client(&site, &client, server.quic(), tcp.address);
    visitor::echo(server.traffic(), b"served");
}
