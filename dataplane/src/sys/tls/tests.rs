//! Revocation lists that are accepted, and those that are not.

use boring::x509::store::X509StoreBuilder;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use super::*;

/// The certificate of a CA with this key, whose name is that of all the others.
fn authority(key: &KeyPair, usages: &[KeyUsagePurpose]) -> X509 {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "a CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = usages.to_vec();
    let cert = params.self_signed(key).expect("signed");
    X509::from_pem(cert.pem().as_bytes()).expect("a certificate")
}

/// A revocation list that this key has signed.
fn list(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "a CA");
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - Duration::hours(1),
        next_update: now + Duration::hours(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&Issuer::new(params, key)).expect("signed");
    list.pem().expect("PEM")
}

fn taken(pem: &str, authorities: &[X509]) -> Result<(), String> {
    let mut store = X509StoreBuilder::new().expect("a store");
    refuse_revoked(&mut store, pem.as_bytes(), authorities).map_err(|why| why.to_string())
}

fn refused(pem: &str, authorities: &[X509], says: &str) {
    let outcome = taken(pem, authorities);
    let why = outcome.expect_err("refused");
    assert!(why.contains(says), "{why}");
}

#[test]
fn a_list_is_taken_of_a_ca_that_may_sign_it_and_of_no_other() {
    use KeyUsagePurpose::{CrlSign, KeyCertSign};
    let keys = [(); 2].map(|()| KeyPair::generate().expect("a key"));
    let may = authority(&keys[0], &[KeyCertSign, CrlSign]);
    let without_usages = authority(&keys[0], &[]);
    let may_not = authority(&keys[0], &[KeyCertSign]);
    let other = authority(&keys[1], &[KeyCertSign, CrlSign]);
    let list = list(&keys[0]);
    assert_eq!(taken(&list, std::slice::from_ref(&may)), Ok(()));
    assert_eq!(taken(&list, &[without_usages]), Ok(()));
    assert_eq!(taken(&list, &[other.clone(), may.clone()]), Ok(()));
    refused(&list, &[other], "has signed");
    // A chain may end at either certificate of the CA.
    for authorities in [vec![may_not.clone()], vec![may, may_not]] {
        refused(&list, &authorities, "must include cRLSign");
    }
}

/// A list that OpenSSL made for a CA named x, without any extension that identifies the key.
const WITHOUT_IDENTIFIER: (&str, &str) = (
    "-----BEGIN CERTIFICATE-----
MIIBcDCCARWgAwIBAgIUCdbezrllpzV23/+LV0DpU8iFyeEwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAgFw0yNjExMjkxMDAxMDFaGA8yMDUxMDcyMTEwMDEwMVow
DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABFwgph0gZx6I
8gWmPrZCJKLHr5xLOqh36tuFeHR9NWfNOCU9C2UVDbrsk+uAsCm00B80qy3bp7sn
IPqmmL9tUqCjUzBRMB0GA1UdDgQWBBTC8AaIps1mUODJbz2bPdmhp2lhFjAfBgNV
HSMEGDAWgBTC8AaIps1mUODJbz2bPdmhp2lhFjAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0kAMEYCIQCDXoSnUlkeVF0YC0U4IIM4mCAFBnYjNbY2BkB3UnvM
FgIhAIw4xl3i5JXLSepc8v65wy8EsMEtN+mTDB/k9wNPAKVG
-----END CERTIFICATE-----
",
    "-----BEGIN X509 CRL-----
MIGlME0CAQEwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeBcNMjYxMTI5MTAwMjAz
WhgPMjA4MTA5MDExMDAyMDNaoA4wDDAKBgNVHRQEAwIBBDAKBggqhkjOPQQDAgNI
ADBFAiEA52r+EZl/BbHkFJ0bjKK842mGknVxnrp4mpMF9jG8PeMCIHi4KJiB9o7/
ECaisfudjZyemG9bkdVX04Ess7RiIanS
-----END X509 CRL-----
",
);

#[test]
fn a_list_that_may_be_of_either_of_two_cas_is_refused() {
    let (ca, list) = WITHOUT_IDENTIFIER;
    let ca = X509::from_pem(ca.as_bytes()).expect("a certificate");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let name = rcgen::DnValue::Utf8String("x".into());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let other = params.self_signed(&key).expect("signed");
    let other = X509::from_pem(other.pem().as_bytes()).expect("a certificate");
    assert_eq!(taken(list, std::slice::from_ref(&ca)), Ok(()));
    refused(list, &[ca, other], "authority key identifier");
}

#[test]
fn a_list_that_cannot_be_read_after_one_that_can_is_not_passed_over() {
    let key = KeyPair::generate().expect("a key");
    let ca = authority(&key, &[]);
    let (good, half) = (list(&key), list(&key));
    let lines: Vec<_> = half.lines().collect();
    let half = [lines[0], lines[1], lines[lines.len() - 1]].join("\n");
    assert_eq!(taken(&good, std::slice::from_ref(&ca)), Ok(()));
    refused(&format!("{good}{half}\n"), &[ca], "X509 CRL");
}
