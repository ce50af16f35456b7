//! Whether TLS accepts the certificates for their purposes, and for nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::thread;

use boring::pkey::PKey;
use boring::ssl::{SslAcceptor, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use boring::x509::X509;
use x509_parser::prelude::FromDer as _;
use x509_parser::prelude::X509Certificate;

use super::*;

fn certs(names: &[&str]) -> Generated {
    let server_names = names.iter().map(|name| (*name).to_owned()).collect();
    generate(&CertsRequest {
        server_names,
        days: 30,
    })
    .expect("certificates")
}

/// Performs mutual TLS over a socket pair; `Err` says which side objected first.
fn handshake(
    ca_pem: &str,
    server: (&str, &str),
    client: (&str, &str),
    name: &str,
) -> Result<(), String> {
    let cert = |pem: &str| X509::from_pem(pem.as_bytes()).expect("certificate");
    let key = |pem: &str| PKey::private_key_from_pem(pem.as_bytes()).expect("key");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("acceptor");
    acceptor
        .set_certificate(&cert(server.0))
        .expect("certificate");
    acceptor.set_private_key(&key(server.1)).expect("key");
    acceptor
        .cert_store_mut()
        .add_cert(cert(ca_pem))
        .expect("ca");
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    // As in QUIC.
    acceptor
        .set_max_proto_version(Some(SslVersion::TLS1_3))
        .expect("version");
    acceptor
        .set_min_proto_version(Some(SslVersion::TLS1_3))
        .expect("version");
    let mut connector = SslConnector::builder(SslMethod::tls()).expect("connector");
    connector
        .cert_store_mut()
        .add_cert(cert(ca_pem))
        .expect("ca");
    connector
        .set_certificate(&cert(client.0))
        .expect("certificate");
    connector.set_private_key(&key(client.1)).expect("key");

    let (near, far) = UnixStream::pair().expect("pair");
    let acceptor = acceptor.build();
    let server = thread::spawn(move || acceptor.accept(far).map(drop).map_err(|e| e.to_string()));
    let client = connector
        .build()
        .connect(name, near)
        .map_err(|error| error.to_string());
    // The client of TLS 1.3 is done before the server has checked its certificate.
    let client = client.map(drop);
    let server = server.join().expect("server thread");
    client.map_err(|error| format!("client: {error}"))?;
    server.map_err(|error| format!("server: {error}"))
}

#[test]
fn mutual_tls_works_by_dns_name_and_by_ip_address() {
    let certs = certs(&[
        "server.example.com",
        "*.example.org",
        "127.0.0.1",
        "2001:db8::1",
    ]);
    let server = (
        certs.server_cert_pem.as_str(),
        certs.server_key_pem.as_str(),
    );
    let client = (
        certs.client_cert_pem.as_str(),
        certs.client_key_pem.as_str(),
    );
    for name in [
        "server.example.com",
        "a.example.org",
        "127.0.0.1",
        "2001:db8::1",
    ] {
        assert_eq!(
            handshake(&certs.ca_cert_pem, server, client, name),
            Ok(()),
            "{name}"
        );
    }
}

#[test]
fn a_name_that_was_not_asked_for_is_refused() {
    let certs = certs(&["server.example.com"]);
    let server = (
        certs.server_cert_pem.as_str(),
        certs.server_key_pem.as_str(),
    );
    let client = (
        certs.client_cert_pem.as_str(),
        certs.client_key_pem.as_str(),
    );
    for name in ["other.example.com", "127.0.0.1"] {
        let error = handshake(&certs.ca_cert_pem, server, client, name).expect_err(name);
        assert!(error.starts_with("client: "), "{error}");
    }
}

#[test]
fn neither_certificate_serves_in_the_other_role() {
    let certs = certs(&["server.example.com"]);
    let server = (
        certs.server_cert_pem.as_str(),
        certs.server_key_pem.as_str(),
    );
    let client = (
        certs.client_cert_pem.as_str(),
        certs.client_key_pem.as_str(),
    );
    let name = "server.example.com";
    let error = handshake(&certs.ca_cert_pem, client, client, name).expect_err("client as server");
    assert!(error.starts_with("client: "), "{error}");
    let error = handshake(&certs.ca_cert_pem, server, server, name).expect_err("server as client");
    assert!(error.starts_with("server: "), "{error}");
}

/// The check of config files relies on this: TLS does not accept a server certificate whose
/// extended key usage is "any" and not also serverAuth.
#[test]
fn any_extended_usage_is_not_enough_for_a_server() {
    let now = OffsetDateTime::now_utc();
    let validity = (now - BACKDATED, now + Duration::DAY);
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = params("CA", validity);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("a CA").pem();
    let issuer = Issuer::new(ca, &ca_key);
    let issue_for = |usage| {
        let mut leaf = params("a.example.com", validity);
        leaf.subject_alt_names = vec![SanType::DnsName(
            "a.example.com".try_into().expect("a name"),
        )];
        let (cert, key) = issue(leaf, usage, &issuer).expect("a certificate");
        (cert.pem(), key.serialize_pem())
    };
    let client = issue_for(ExtendedKeyUsagePurpose::ClientAuth);
    let verdict = |usage| {
        let server = issue_for(usage);
        handshake(
            &ca_pem,
            (&server.0, &server.1),
            (&client.0, &client.1),
            "a.example.com",
        )
    };
    assert_eq!(verdict(ExtendedKeyUsagePurpose::ServerAuth), Ok(()));
    let error = verdict(ExtendedKeyUsagePurpose::Any).expect_err("not a server's");
    assert!(error.starts_with("client: "), "{error}");
}

#[test]
fn certificates_of_another_ca_are_refused() {
    let (ours, theirs) = (certs(&["a.example.com"]), certs(&["a.example.com"]));
    let server = (
        theirs.server_cert_pem.as_str(),
        theirs.server_key_pem.as_str(),
    );
    let client = (ours.client_cert_pem.as_str(), ours.client_key_pem.as_str());
    handshake(&ours.ca_cert_pem, server, client, "a.example.com").expect_err("another CA");
}

#[test]
fn the_certificates_say_what_they_are() {
    let certs = certs(&["server.example.com"]);
    let der = |pem: &str| {
        X509::from_pem(pem.as_bytes())
            .expect("pem")
            .to_der()
            .expect("der")
    };
    let (ca, server) = (der(&certs.ca_cert_pem), der(&certs.server_cert_pem));
    let (_, ca) = X509Certificate::from_der(&ca).expect("parses");
    let (_, server) = X509Certificate::from_der(&server).expect("parses");
    let constraints = ca
        .basic_constraints()
        .expect("parses")
        .expect("is there")
        .value;
    assert!(constraints.ca);
    assert_eq!(constraints.path_len_constraint, Some(0));
    assert!(
        ca.key_usage()
            .expect("parses")
            .expect("is there")
            .value
            .key_cert_sign()
    );
    assert!(!server.is_ca());
    let usage = server.key_usage().expect("parses").expect("is there").value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let now = x509_parser::time::ASN1Time::now().timestamp();
    let validity = server.validity();
    assert!(
        validity.not_before.timestamp() <= now - 3_600,
        "backdated by an hour"
    );
    assert!(validity.not_after.timestamp() > now + 29 * 24 * 3_600);
    assert!(validity.not_after.timestamp() <= now + 30 * 24 * 3_600);
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    let request = |names: &[&str], days| {
        let server_names = names.iter().map(|name| (*name).to_owned()).collect();
        generate(&CertsRequest { server_names, days })
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert!(
        request(&[], 30)
            .expect_err("no name")
            .contains("at least one")
    );
    assert!(
        request(&["a.example.com"], 0)
            .expect_err("0 days")
            .contains("from 1 to")
    );
    assert!(
        request(&["a.example.com"], 99_999)
            .expect_err("too long")
            .contains("from 1 to")
    );
    for name in [
        "",
        "a b",
        "a.example.com:8443",
        "https://example.com",
        "ü.example.com",
        "*",
    ] {
        let message = request(&[name], 30).expect_err(name);
        assert!(message.contains("is no server name"), "{name}: {message}");
    }
    let long = format!("{}.example.com", "a".repeat(63));
    assert_eq!(request(&[&long], 30), Ok(()));
}

fn modes(dir: &std::path::Path) -> Vec<(String, u32)> {
    FILE_NAMES
        .iter()
        .map(|name| {
            let mode = fs::metadata(dir.join(name))
                .expect("is there")
                .permissions()
                .mode();
            ((*name).to_owned(), mode & 0o777)
        })
        .collect()
}

#[test]
fn key_files_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let target = dir.path().join("a/b");
    let written = write(&certs(&["a.example.com"]), &target, false).expect("written");
    assert_eq!(written, FILE_NAMES.map(|name| target.join(name)));
    for (name, mode) in modes(&target) {
        assert_eq!(name.ends_with(".key"), mode == 0o600, "{name}: {mode:o}");
    }
    assert_eq!(
        fs::read_dir(&target).expect("dir").count(),
        FILE_NAMES.len(),
        "nothing left over"
    );
}

#[test]
fn nothing_is_overwritten_without_force() {
    let dir = tempfile::tempdir().expect("dir");
    fs::write(dir.path().join("client.key"), "mine").expect("written");
    let certs = certs(&["a.example.com"]);
    let error = write(&certs, dir.path(), false).expect_err("is there");
    assert!(error.to_string().contains("client.key"), "{error}");
    assert_eq!(
        fs::read_dir(dir.path()).expect("dir").count(),
        1,
        "nothing was written"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("client.key")).expect("read"),
        "mine"
    );

    fs::set_permissions(
        dir.path().join("client.key"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("permissions");
    write(&certs, dir.path(), true).expect("with force");
    assert_eq!(
        fs::read_to_string(dir.path().join("client.key")).expect("read"),
        certs.client_key_pem
    );
    for (name, mode) in modes(dir.path()) {
        assert_eq!(name.ends_with(".key"), mode == 0o600, "{name}: {mode:o}");
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    let error = write(&certs(&["a.example.com"]), &file.join("certs"), false).expect_err("refused");
    let WriteError::Io { path, error } = error else {
        panic!("{error}")
    };
    assert!(path.starts_with(&file));
    assert_ne!(error.kind(), io::ErrorKind::NotFound);
}
