//! Certificate and key files that TLS would not accept.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use qmux_config::Config;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use crate::fixture::{CLIENT, SERVER, dir};

/// A directory with the certificates of the fixture, for a test that spoils one of them.
fn certs() -> TempDir {
    let own = tempfile::tempdir().expect("a directory");
    fs::create_dir(own.path().join("certs")).expect("a directory");
    for entry in fs::read_dir(dir().join("certs")).expect("a directory") {
        let entry = entry.expect("an entry");
        fs::copy(
            entry.path(),
            own.path().join("certs").join(entry.file_name()),
        )
        .expect("copied");
    }
    own
}

/// The only problem, without the directory.
fn problem(text: &str, dir: &Path) -> String {
    let errors = Config::parse(text, &dir.join("dp.toml")).expect_err("refused");
    assert_eq!(errors.problems().len(), 1, "{errors}");
    errors.problems()[0]
        .to_string()
        .replace(&format!("{}/", dir.display()), "")
}

fn warnings(text: &str, dir: &Path) -> Vec<String> {
    let config =
        Config::parse(text, &dir.join("dp.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    let prefix = format!("{}/", dir.display());
    config
        .warnings
        .iter()
        .map(|warning| warning.replace(&prefix, ""))
        .collect()
}

/// Replaces `name` by a self-signed certificate of `days` from `start` with `edit` applied, and its
/// key.
fn replace(
    dir: &Path,
    name: &str,
    start: i64,
    days: i64,
    edit: impl FnOnce(&mut CertificateParams),
) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(["server.example.com".to_owned()]).expect("params");
    params.not_before = OffsetDateTime::now_utc() + Duration::days(start);
    params.not_after = params.not_before + Duration::days(days);
    edit(&mut params);
    let cert = params.self_signed(&key).expect("a certificate");
    fs::write(dir.join(format!("certs/{name}.crt")), cert.pem()).expect("written");
    let key_file = dir.join(format!("certs/{name}.key"));
    fs::write(&key_file, key.serialize_pem()).expect("written");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("permissions");
}

fn authority(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

#[test]
fn a_missing_file_is_named_with_the_path_that_was_tried() {
    let own = certs();
    fs::remove_file(own.path().join("certs/server.crt")).expect("removed");
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:14:20: server.tls.server_cert_file: certs/server.crt does not exist; qmux-ctl \
         certs makes certificates to start with"
    );
    fs::create_dir(own.path().join("certs/server.crt")).expect("a directory");
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:14:20: server.tls.server_cert_file: certs/server.crt is not a file"
    );
}

#[test]
fn a_file_of_something_else_is_refused() {
    let own = certs();
    fs::write(own.path().join("certs/ca.crt"), "hello").expect("written");
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:12:16: server.auth.ca_cert_file: certs/ca.crt holds no certificate in valid PEM form \
         (-----BEGIN CERTIFICATE-----)"
    );
    let own = certs();
    fs::copy(
        own.path().join("certs/server.crt"),
        own.path().join("certs/server.key"),
    )
    .expect("copied");
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:15:19: server.tls.server_key_file: certs/server.key holds no private key in valid \
         PEM form (-----BEGIN PRIVATE KEY-----)"
    );
}

#[test]
fn a_key_behind_a_passphrase_is_refused_without_asking() {
    let own = certs();
    let pem = fs::read(own.path().join("certs/server.key")).expect("read");
    let key = boring::pkey::PKey::private_key_from_pem(&pem).expect("a key");
    let locked = key
        .private_key_to_pem_pkcs8_passphrase(boring::symm::Cipher::aes_256_cbc(), b"hunter2")
        .expect("locked");
    fs::write(own.path().join("certs/server.key"), locked).expect("written");
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:15:19: server.tls.server_key_file: certs/server.key is protected by a passphrase; \
         it must be a private key in PEM form without one"
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let own = certs();
    fs::copy(
        own.path().join("certs/client.key"),
        own.path().join("certs/server.key"),
    )
    .expect("copied");
    assert_eq!(
        problem(SERVER, own.path()),
        format!(
            "dp.toml:15:19: server.tls.server_key_file: certs/server.key does not belong to the \
             certificate in certs/server.crt"
        )
    );
}

#[test]
fn a_certificate_for_the_other_role_is_refused() {
    let own = certs();
    for kind in ["crt", "key"] {
        let name = |role: &str| own.path().join(format!("certs/{role}.{kind}"));
        fs::rename(name("client"), name("swap")).expect("renamed");
        fs::rename(name("server"), name("client")).expect("renamed");
        fs::rename(name("swap"), name("server")).expect("renamed");
    }
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:14:20: server.tls.server_cert_file: certs/server.crt is not a server certificate; \
         its extended key usage must include serverAuth"
    );
    assert_eq!(
        problem(CLIENT, own.path()),
        "dp.toml:14:20: client.tls.client_cert_file: certs/client.crt is not a client certificate; \
         its extended key usage must include clientAuth"
    );
}

#[test]
fn a_certificate_without_extended_usages_serves_every_role() {
    let own = certs();
    replace(own.path(), "server", -1, 90, |_| {});
    replace(own.path(), "client", -1, 90, |_| {});
    assert_eq!(warnings(SERVER, own.path()), Vec::<String>::new());
    assert_eq!(warnings(CLIENT, own.path()), Vec::<String>::new());
}

#[test]
fn a_certificate_is_refused_outside_its_time() {
    let own = certs();
    replace(own.path(), "server", -10, 5, |_| {});
    let expired = problem(SERVER, own.path());
    assert!(
        expired.contains("certs/server.crt expired on 2"),
        "{expired}"
    );
    replace(own.path(), "server", 5, 90, |_| {});
    let early = problem(SERVER, own.path());
    assert!(
        early.contains("certs/server.crt is valid only from 2"),
        "{early}"
    );
    assert!(early.ends_with("; is the clock right?"), "{early}");
}

#[test]
fn a_certificate_that_expires_soon_is_a_warning() {
    let own = certs();
    replace(own.path(), "server", -1, 14, |_| {});
    let warnings = warnings(SERVER, own.path());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let expected = "dp.toml:14:20: server.tls.server_cert_file: certs/server.crt expires on ";
    assert!(warnings[0].starts_with(expected), "{warnings:?}");
}

#[test]
fn a_ca_file_must_hold_a_ca() {
    let own = certs();
    fs::copy(
        own.path().join("certs/server.crt"),
        own.path().join("certs/ca.crt"),
    )
    .expect("copied");
    assert_eq!(
        problem(SERVER, own.path()),
        "dp.toml:12:16: server.auth.ca_cert_file: certs/ca.crt holds no CA certificate; at least \
         one must be a CA (basic constraint CA:TRUE)"
    );
}

#[test]
fn an_expired_ca_is_refused_alone_and_tolerated_beside_a_valid_one() {
    let own = certs();
    let valid = fs::read_to_string(own.path().join("certs/ca.crt")).expect("read");
    replace(own.path(), "ca", -10, 5, authority);
    let message = problem(SERVER, own.path());
    assert!(
        message.contains("the CA certificate in it expired on 2"),
        "{message}"
    );
    let expired = fs::read_to_string(own.path().join("certs/ca.crt")).expect("read");
    fs::write(own.path().join("certs/ca.crt"), format!("{expired}{valid}")).expect("written");
    let warned = warnings(SERVER, own.path());
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].contains("a CA certificate in it expired on 2"),
        "{warned:?}"
    );
    fs::write(
        own.path().join("certs/ca.crt"),
        format!("{expired}{expired}"),
    )
    .expect("written");
    let message = problem(SERVER, own.path());
    assert!(
        message.contains("no CA certificate in it is valid now"),
        "{message}"
    );
}

#[test]
fn a_key_that_everybody_can_read_is_a_warning() {
    let own = certs();
    let key = own.path().join("certs/server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("permissions");
    assert_eq!(
        warnings(SERVER, own.path()),
        [
            "dp.toml:15:19: server.tls.server_key_file: certs/server.key can be read by every user of \
          this host; chmod 600 would stop that"
        ]
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("permissions");
    assert_eq!(warnings(SERVER, own.path()), Vec::<String>::new());
}

#[test]
fn extended_usages_are_judged_as_tls_judges_them() {
    let own = certs();
    replace(own.path(), "server", -1, 90, |params| {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
    });
    assert_eq!(warnings(SERVER, own.path()), Vec::<String>::new());
    // BoringSSL does not count "any" as serverAuth.
    replace(own.path(), "server", -1, 90, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    });
    assert!(problem(SERVER, own.path()).contains("must include serverAuth"));
}

#[test]
fn for_a_diagnosis_a_certificate_out_of_its_time_is_a_warning() {
    for (name, edit) in [
        ("ca", authority as fn(&mut CertificateParams)),
        ("client", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
    ] {
        for (start, words) in [(-20, "expired on"), (10, "is valid only from")] {
            let own = certs();
            replace(own.path(), name, start, 5, edit);
            let path = own.path().join("dp.toml");
            fs::write(&path, CLIENT).expect("written");
            let errors = Config::load(&path).expect_err("refused");
            assert!(errors.to_string().contains(words), "{errors}");
            let config = Config::load_whatever_the_time(&path);
            let config = config.unwrap_or_else(|errors| panic!("{errors}"));
            let warned = |it: &String| it.contains(words) && it.contains(name);
            assert!(config.warnings.iter().any(warned), "{:?}", config.warnings);
        }
    }
    let own = certs();
    fs::write(own.path().join("certs/ca.crt"), "no certificate").expect("written");
    let path = own.path().join("dp.toml");
    fs::write(&path, CLIENT).expect("written");
    assert!(Config::load_whatever_the_time(&path).is_err());
}

/// A revocation list in the form of the fixture. It revokes nobody, and its next update is due in
/// `days`.
fn list_due_in(days: i64) -> String {
    list_between(-30, days, None)
}

/// A revocation list that is issued `issued` days from now, whose next update is due in `days`, and
/// that covers only the certificates of `scope`, if given.
fn list_between(
    issued: i64,
    days: i64,
    scope: Option<rcgen::CrlIssuingDistributionPoint>,
) -> String {
    let key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("params");
    ca.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    let list = rcgen::CertificateRevocationListParams {
        this_update: now + Duration::days(issued),
        next_update: now + Duration::days(days),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: scope,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list
        .signed_by(&rcgen::Issuer::new(ca, &key))
        .expect("signed");
    list.pem().expect("PEM")
}

/// A server's config with a file of such lists.
fn with_list() -> String {
    let keys = "ca_cert_file = \"certs/ca.crt\"\ncrl_file = \"certs/ca.crl\"";
    SERVER.replace("ca_cert_file = \"certs/ca.crt\"", keys)
}

#[test]
fn a_list_of_revoked_certificates_past_its_time_is_taken_with_a_warning() {
    let own = certs();
    let text = with_list();
    let path = own.path().join("certs/ca.crl");
    fs::write(&path, list_due_in(1)).expect("written");
    assert_eq!(warnings(&text, own.path()), [] as [&str; 0]);
    fs::write(&path, list_due_in(1) + &list_due_in(-1)).expect("written");
    let warnings = warnings(&text, own.path());
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("server.auth.crl_file") && warnings[0].contains("expired on"),
        "{warnings:?}"
    );
    fs::write(&path, "no list").expect("written");
    assert!(problem(&text, own.path()).contains("X509 CRL"));
}

#[test]
fn a_list_from_a_clock_that_is_ahead_or_about_a_part_is_taken_with_a_warning() {
    let own = certs();
    let text = with_list();
    let path = own.path().join("certs/ca.crl");
    let part = scope(rcgen::CrlScope::UserCertsOnly);
    for (list, says) in [
        (list_between(1, 2, None), "in the future"),
        (list_between(-1, 2, Some(part)), "distribution point"),
    ] {
        fs::write(&path, list).expect("written");
        let warnings = warnings(&text, own.path());
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("server.auth.crl_file") && warnings[0].contains(says),
            "{warnings:?}"
        );
    }
}

fn scope(scope: rcgen::CrlScope) -> rcgen::CrlIssuingDistributionPoint {
    rcgen::CrlIssuingDistributionPoint {
        distribution_point: rcgen::CrlDistributionPoint {
            uris: vec!["http://ca.test/ca.crl".into()],
        },
        scope: Some(scope),
    }
}

/// A delta list made by OpenSSL, which a critical extension marks as such.
const DELTA_LIST: &str = "-----BEGIN X509 CRL-----
MIG1MFwCAQEwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeBcNMjYxMTI5MTAwMTAx
WhgPMjA4MTA5MDExMDAxMDFaoB0wGzANBgNVHRsBAf8EAwIBATAKBgNVHRQEAwIB
ATAKBggqhkjOPQQDAgNJADBGAiEAg6LcmW7ZXOgA0WELwFwBzid/4962K663N6fZ
5a8oSToCIQC5Y6hVbKymT5TkjxZvpSm2TiOn9okjbXd3uwKjRM/GBg==
-----END X509 CRL-----
";

/// A list made by OpenSSL that covers only certificates revoked for some reasons.
const LIST_OF_SOME_REASONS: &str = "-----BEGIN X509 CRL-----
MIG2MF8CAQEwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeBcNMjYxMTI5MTAwMTAx
WhgPMjA4MTA5MDExMDAxMDFaoCAwHjAQBgNVHRwBAf8EBjAEgwIGQDAKBgNVHRQE
AwIBAjAKBggqhkjOPQQDAgNHADBEAiAEtY/7br5UWemEOFBK7aH6aNl/olmsLUi9
xSEtOTQm9gIgJhypPwag17DMTWDWZd84LtZ39EX+VNhzhlLg+5q/q3I=
-----END X509 CRL-----
";

#[test]
fn a_list_that_tls_cannot_go_by_is_refused_with_what_would_be_right() {
    let own = certs();
    let text = with_list();
    let path = own.path().join("certs/ca.crl");
    let of_cas = list_between(-1, 2, Some(scope(rcgen::CrlScope::CaCertsOnly)));
    for (list, says) in [
        (DELTA_LIST, "must be a complete list"),
        (LIST_OF_SOME_REASONS, "list of all that the CA has revoked"),
        (&of_cas, "list of all that the CA has revoked"),
    ] {
        // The list stands beside a valid one.
        fs::write(&path, list_due_in(1) + list).expect("written");
        let problem = problem(&text, own.path());
        assert!(
            problem.contains("server.auth.crl_file") && problem.contains(says),
            "{problem}"
        );
    }
}
