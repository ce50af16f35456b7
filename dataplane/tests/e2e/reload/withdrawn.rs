//! Clients that may not serve any more: they are told, drained and disconnected, and nobody else
//! is.

use qmux_proto::control::RegisterOutcome;

use crate::support::certs::{self, Identity};
use crate::support::door::{Door, DoorSetup, Offering, entry, entry_by, published};
use crate::support::http;
use crate::support::program::Program;
use crate::support::quic_probe::{self, Probe, Verdict};
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::Site;
use crate::support::visitor::{self, Ending};

use super::{ConfigFile, offering, wait_until_refused};

/// How long the flows of a client that may not serve any more may go on.
const DRAIN: &str = "[server]\ndrain_timeout = \"2s\"\n";

fn by_certificate(site: &Site, auth: &'static str, clients: &[String]) -> (Door, ConfigFile) {
    let setup = DoorSetup {
        services: vec![published("a", "tcp"), published("b", "tcp")],
        config: clients.concat(),
        auth,
        cores: 2,
        ..DoorSetup::default()
    };
    let door = Door::start(site, &setup);
    let file = ConfigFile::of(site, "door.toml", door.admin);
    file.replace("[server]\n", DRAIN);
    file.taken_up();
    (door, file)
}

fn says_withdrawn(door: &Door, client: &str, why: &str) {
    door.program
        .wait_for_line("why it is disconnected", |line| {
            line.contains("may not serve here any more")
                && line.contains(client)
                && line.contains(why)
        });
}

/// The number of lanes that the client has registered, from its log.
fn lanes_registered(client: &Program) -> usize {
    let lines = client.lines();
    lines
        .iter()
        .filter(|it| it.contains("lane registered"))
        .count()
}

#[test]
fn a_client_whose_certificate_is_revoked_is_drained_and_does_not_come_back() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    site.write("ca.crl", &certs::revoking(&[], certs::ours()));
    let auth = "method = \"mtls\"\nca_cert_file = \"ca.crt\"\ncrl_file = \"ca.crl\"";
    let (door, file) = by_certificate(&site, auth, &[]);
    let service = TcpService::echo();
    let bad = offering("bad", &["a"], service.address).start(&site, door.quic[0]);
    let _good = offering("good", &["b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    visitor::wait_until_served(door.traffic("b"));
    let (mut ends, mut stays) = (
        visitor::connect(door.traffic("a")),
        visitor::connect(door.traffic("b")),
    );
    visitor::exchange(&mut ends, b"before");
    visitor::exchange(&mut stays, b"before");
    let cert_pem = std::fs::read_to_string(site.path().join("bad.crt")).expect("its certificate");
    let key_pem = String::new();
    let revoked = Identity { cert_pem, key_pem };
    site.write("ca.crl", &certs::revoking(&[&revoked], certs::ours()));
    file.taken_up();
    says_withdrawn(&door, "", "revoked");
    visitor::exchange(&mut ends, b"it has a little time");
    assert!(matches!(visitor::read_to_end(&mut ends), Ending::Reset(_)));
    assert!(!visitor::echo_works(door.traffic("a")));
    bad.wait_for_line("why it is refused", |line| line.contains("revoked"));
    visitor::exchange(&mut stays, b"the other one goes on");
    visitor::echo(door.traffic("b"), b"and is served");
}

/// A client that has completed the handshake and keeps its registration for later.
fn spare_connection(site: &Site, door: &Door, identity: Option<&Identity>) -> Probe {
    let mut config = quic_probe::config(site.path(), identity);
    let mut probe = Probe::dial(door.quic[0], &mut config);
    // The ticket shows that the server has checked it.
    probe.until("the end of the handshake", |connection| {
        connection.session().is_some().then_some(())
    });
    probe
}

fn refused_for_its_handshake(door: &Door, probe: &mut Probe) {
    let answer = probe.offer("spare", 1, &["a"]);
    assert!(
        matches!(answer, Err(RegisterOutcome::Refused { .. })),
        "{answer:?}"
    );
    let metrics = http::get(door.admin, "/metrics").body;
    let counted = http::metric(&metrics, "qmux_dp_clients_outdated_total");
    assert!((counted - 1.0).abs() < f64::EPSILON, "{counted}");
}

#[test]
fn a_connection_made_before_its_certificate_was_revoked_registers_nobody_afterwards() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    site.write("ca.crl", &certs::revoking(&[], certs::ours()));
    let auth = "method = \"mtls\"\nca_cert_file = \"ca.crt\"\ncrl_file = \"ca.crl\"";
    let (door, file) = by_certificate(&site, auth, &[]);
    let [bad, good] = ["bad", "good"].map(Identity::client_named);
    let mut revoked = spare_connection(&site, &door, Some(&bad));
    let mut stays = spare_connection(&site, &door, Some(&good));
    site.write("ca.crl", &certs::revoking(&[&bad], certs::ours()));
    file.taken_up();
    refused_for_its_handshake(&door, &mut revoked);
    assert!(stays.offer("good", 2, &["a"]).is_ok(), "it is on no list");
}

#[test]
fn a_connection_made_when_no_certificate_was_asked_for_registers_nobody_once_one_is() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let token = "method = \"token\"\ntoken = \"the secret of this server\"";
    let (door, file) = by_certificate(&site, token, &[]);
    let mut stranger = spare_connection(&site, &door, None);
    file.replace(token, "method = \"mtls\"\nca_cert_file = \"ca.crt\"");
    file.taken_up();
    refused_for_its_handshake(&door, &mut stranger);
}

#[test]
fn a_list_past_its_time_is_used_further_at_a_start_a_reload_and_while_running() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let [bad, good] = ["bad", "good"].map(Identity::client_named);
    let list = |seconds| certs::revoking_for_seconds(seconds, &[&bad], certs::ours());
    site.write("ca.crl", &list(-60));
    let auth = "method = \"mtls\"\nca_cert_file = \"ca.crt\"\ncrl_file = \"ca.crl\"";
    let (door, file) = by_certificate(&site, auth, &[]);
    let is_used = || {
        let shake_hands =
            |identity| quic_probe::shake_hands(site.path(), door.quic[0], Some(identity));
        assert!(matches!(shake_hands(&bad), Verdict::Refused(_)));
        assert_eq!(shake_hands(&good), Verdict::Admitted);
    };
    is_used();
    let days_left = || {
        let status: serde_json::Value =
            serde_json::from_str(&http::get(door.admin, "/status").body).expect("JSON");
        status["revocation_lists"][0]["days_left"].as_i64()
    };
    assert_eq!(days_left(), Some(-1));
    site.write("ca.crl", &list(5));
    file.taken_up();
    door.program.wait_for_line("that it has expired", |line| {
        line.contains("list of revoked certificates has expired") && line.contains("ca.crl")
    });
    is_used();
    file.append("# Something else has changed.\n");
    file.taken_up();
    is_used();
    assert_eq!(days_left(), Some(-1));
    let metrics = http::get(door.admin, "/metrics").body;
    let expiry = http::metric(&metrics, "qmux_dp_revocation_list_expiry_seconds");
    assert!(expiry < certs::now().unix_timestamp() as f64, "{expiry}");
}

#[test]
fn a_list_of_a_ca_whose_clock_is_ahead_disconnects_those_on_it_and_nobody_else() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    site.write("ca.crl", &certs::revoking(&[], certs::ours()));
    let auth = "method = \"mtls\"\nca_cert_file = \"ca.crt\"\ncrl_file = \"ca.crl\"";
    let (door, file) = by_certificate(&site, auth, &[]);
    let service = TcpService::echo();
    let bad = offering("bad", &["a"], service.address).start(&site, door.quic[0]);
    let good = offering("good", &["b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    visitor::wait_until_served(door.traffic("b"));
    let before = lanes_registered(&good);
    let cert_pem = std::fs::read_to_string(site.path().join("bad.crt")).expect("its certificate");
    let key_pem = String::new();
    let revoked = Identity { cert_pem, key_pem };
    let (in_an_hour, in_two) = (60 * 60, 2 * 60 * 60);
    let list = certs::revoking_between(in_an_hour, in_two, &[&revoked], certs::ours());
    site.write("ca.crl", &list);
    file.taken_up();
    // Both were judged by the list when the one on it is refused as it comes back.
    bad.wait_for_line("why it is refused", |line| line.contains("revoked"));
    let other = Identity::client_named("another");
    let verdict = quic_probe::shake_hands(site.path(), door.quic[0], Some(&other));
    assert_eq!(verdict, Verdict::Admitted);
    visitor::echo(door.traffic("b"), b"is served");
    assert_eq!(lanes_registered(&good), before, "no lane was made anew");
    let withdrawn = |line: &&String| line.contains("may not serve here any more");
    let lines = door.program.lines();
    let withdrawn: Vec<_> = lines.iter().filter(withdrawn).collect();
    let is_of_bad = |line: &&&String| line.contains("revoked");
    assert!(
        withdrawn.iter().all(|line| is_of_bad(&line)),
        "{withdrawn:?}"
    );
}

#[test]
fn a_list_that_the_ca_has_not_signed_or_that_is_none_is_refused() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    site.write("ca.crl", &certs::revoking(&[], certs::ours()));
    let auth = "method = \"mtls\"\nca_cert_file = \"ca.crt\"\ncrl_file = \"ca.crl\"";
    let (_door, file) = by_certificate(&site, auth, &[]);
    for (list, says) in [
        (certs::revoking(&[], certs::strangers()), "has signed"),
        ("not a list".into(), "X509 CRL"),
    ] {
        site.write("ca.crl", &list);
        let answer = file.reload();
        assert_eq!(answer.status, 422);
        assert!(
            answer.body.contains(says) && answer.body.contains("ca.crl"),
            "{}",
            answer.body
        );
    }
}

#[test]
fn a_client_whose_entry_is_gone_is_drained_and_told_what_is_missing() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (gone, stays) = (entry("gone", &["a"]), entry("stays", &["b"]));
    let (door, file) = by_certificate(&site, "", &[gone.clone(), stays]);
    let service = TcpService::echo();
    let client = offering("gone", &["a"], service.address).start(&site, door.quic[0]);
    let _other = offering("stays", &["b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    visitor::wait_until_served(door.traffic("b"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    file.replace(&gone, "");
    file.taken_up();
    says_withdrawn(&door, "gone", "entry");
    visitor::exchange(&mut flow, b"it has a little time");
    // Each configuration has the lanes judged again, but not those that are withdrawn already.
    for name in ["one", "two", "three"] {
        file.append(&entry(name, &["a"]));
        file.taken_up();
    }
    let metrics = http::get(door.admin, "/metrics").body;
    let withdrawn = http::metric(&metrics, "qmux_dp_lanes_withdrawn_total");
    assert!(withdrawn <= lanes_registered(&client) as f64, "{withdrawn}");
    assert!(matches!(visitor::read_to_end(&mut flow), Ending::Reset(_)));
    client.wait_for_line("the news", |line| {
        line.contains("may not serve there any more")
    });
    client.wait_for_line("what is missing", |line| {
        line.contains("[[server.clients]]")
    });
    visitor::echo(door.traffic("b"), b"the other one is served");
    file.append(&gone);
    file.taken_up();
    visitor::wait_until_served(door.traffic("a"));
}

#[test]
fn a_client_whose_token_is_another_one_now_comes_back_with_that() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let token = |text: &str| entry_by("nas", &format!("token = \"{text}\""), &["a"]);
    let (old, new) = ("the first secret of nas", "the second secret of nas");
    let (door, file) = by_certificate(&site, "method = \"token\"", &[token(old)]);
    let service = TcpService::echo();
    let with = |name, token| Offering {
        token: Some(token),
        ..offering(name, &["a"], service.address)
    };
    let client = with("old", old).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    file.replace(old, new);
    file.taken_up();
    says_withdrawn(&door, "nas", "token");
    client.wait_for_line("its refusal", |line| line.contains("not authenticated"));
    wait_until_refused(door.traffic("a"));
    let _new = with("new", new).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
}

#[test]
fn a_client_is_disconnected_when_clients_prove_in_another_way_who_they_are() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let token = "method = \"token\"\ntoken = \"the secret of this server\"";
    let by_certificate_now = "method = \"mtls\"\nca_cert_file = \"ca.crt\"";
    let (door, file) = by_certificate(&site, token, &[]);
    let service = TcpService::echo();
    let with_token = Offering {
        token: Some("the secret of this server"),
        ..offering("with-token", &["a"], service.address)
    };
    let _with_token = with_token.start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    file.replace(token, by_certificate_now);
    file.taken_up();
    says_withdrawn(&door, "", "prove in another way");
    wait_until_refused(door.traffic("a"));
    let _with_certificate = offering("other", &["b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("b"));
    file.replace(by_certificate_now, token);
    file.taken_up();
    wait_until_refused(door.traffic("b"));
}

#[test]
fn a_client_whose_certificate_is_given_to_another_entry_comes_back_as_that() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = by_certificate(&site, "", &[entry("nas", &["a"])]);
    let service = TcpService::echo();
    let _client = offering("nas", &["a", "b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    assert!(
        !visitor::echo_works(door.traffic("b")),
        "that is not for it"
    );
    let certificate = std::fs::read(site.path().join("nas.crt")).expect("its certificate");
    let parsed = boring::x509::X509::from_pem(&certificate);
    let der = parsed.and_then(|it| it.to_der()).expect("a certificate");
    let names = qmux_config::CertificateNames::of(&der).expect("a certificate");
    let fingerprint = qmux_config::show_fingerprint(&names.fingerprint);
    // A fingerprint goes before a name, and the entry by name stays.
    let key = format!("fingerprint = \"{fingerprint}\"");
    file.append(&entry_by("vault", &key, &["b"]));
    file.taken_up();
    says_withdrawn(&door, "nas", "belongs to another entry");
    visitor::wait_until_served(door.traffic("b"));
    wait_until_refused(door.traffic("a"));
}

#[test]
fn a_client_that_may_serve_less_loses_that_and_keeps_its_lanes() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, file) = by_certificate(&site, "", &[entry("nas", &["a", "b"])]);
    let service = TcpService::echo();
    let client = offering("nas", &["a", "b"], service.address).start(&site, door.quic[0]);
    visitor::wait_until_served(door.traffic("a"));
    visitor::wait_until_served(door.traffic("b"));
    let mut flow = visitor::connect(door.traffic("b"));
    visitor::exchange(&mut flow, b"before");
    let before = lanes_registered(&client);
    file.replace("services = [\"a\", \"b\"]", "services = [\"a\"]");
    file.taken_up();
    assert!(!visitor::echo_works(door.traffic("b")), "at once");
    visitor::echo(door.traffic("a"), b"this one it may serve");
    visitor::exchange(&mut flow, b"who is in stays");
    client.wait_for_line("the news", |line| {
        line.contains("does not let this client serve")
    });
    file.replace("services = [\"a\"]", "services = [\"b\", \"a\"]");
    file.taken_up();
    visitor::echo(door.traffic("b"), b"at once");
    visitor::exchange(&mut flow, b"after");
    assert_eq!(lanes_registered(&client), before, "no lane was made anew");
}

#[test]
fn a_client_whose_certificate_expires_is_disconnected() {
    if subject::only_wire("reload") {
        return;
    }
    let site = Site::new();
    let (door, _file) = by_certificate(&site, "", &[]);
    let service = TcpService::echo();
    let offering = offering("short", &["a"], service.address);
    let launch = offering.launch(&site, door.quic[0]);
    let (identity, _ends) = Identity::client_for_seconds(12);
    identity.write(site.path(), "short");
    let client = launch.start();
    client.wait_for_line("a lane", |line| line.contains("lane registered"));
    let mut flow = visitor::connect(door.traffic("a"));
    visitor::exchange(&mut flow, b"before");
    says_withdrawn(&door, "", "expired");
    assert!(matches!(visitor::read_to_end(&mut flow), Ending::Reset(_)));
    wait_until_refused(door.traffic("a"));
}
