//! The names in a certificate by which `[[server.clients]]` identifies a client.

use boring::sha::sha256;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Bytes of a fingerprint.
pub const FINGERPRINT_BYTES: usize = 32;

/// The names and the fingerprint of one certificate. Before using them as an identity, the caller
/// must have checked that the certificate is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateNames {
    /// The subject's common names; usually one.
    pub common_names: Vec<String>,
    /// The DNS names, as they stand in the certificate.
    pub dns_names: Vec<String>,
    /// The URI names, such as SPIFFE ids.
    pub uri_names: Vec<String>,
    /// SHA-256 of the certificate in DER form.
    pub fingerprint: [u8; FINGERPRINT_BYTES],
}

impl CertificateNames {
    /// The names of a certificate in DER form; `None` if it cannot be read.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let common_names = cert
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok().map(str::to_owned))
            .collect();
        let (mut dns_names, mut uri_names) = (Vec::new(), Vec::new());
        if let Ok(Some(names)) = cert.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                    GeneralName::URI(name) => uri_names.push((*name).to_owned()),
                    _ => {}
                }
            }
        }
        Some(Self {
            common_names,
            dns_names,
            uri_names,
            fingerprint: sha256(der),
        })
    }
}

/// Writes a fingerprint as in dp.toml.
#[must_use]
pub fn show_fingerprint(fingerprint: &[u8; FINGERPRINT_BYTES]) -> String {
    let hex: String = fingerprint
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Reads `sha256:…`: 64 hexadecimal digits, also with colons between bytes, as OpenSSL prints them.
pub(crate) fn parse_fingerprint(text: &str) -> Option<[u8; FINGERPRINT_BYTES]> {
    let digits: Vec<u8> = text
        .strip_prefix("sha256:")?
        .bytes()
        .filter(|byte| *byte != b':')
        .collect();
    if digits.len() != 2 * FINGERPRINT_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut fingerprint = [0; FINGERPRINT_BYTES];
    for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(fingerprint)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_its_common_name_and_its_alternative_names() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "nas");
        params.subject_alt_names = vec![
            SanType::DnsName("Nas.example.com".try_into().expect("ASCII")),
            SanType::URI("spiffe://example.com/nas".try_into().expect("ASCII")),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        let key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        let names = CertificateNames::of(cert.der()).expect("read");
        assert_eq!(names.common_names, ["nas"]);
        assert_eq!(names.dns_names, ["Nas.example.com"]);
        assert_eq!(names.uri_names, ["spiffe://example.com/nas"]);
        assert_eq!(names.fingerprint, sha256(cert.der()));
        assert_eq!(CertificateNames::of(b"no certificate"), None);
    }

    #[test]
    fn a_fingerprint_is_read_as_it_is_written_here_or_by_openssl() {
        let fingerprint = sha256(b"x");
        let ours = show_fingerprint(&fingerprint);
        assert_eq!(parse_fingerprint(&ours), Some(fingerprint));
        let digits = ours
            .strip_prefix("sha256:")
            .expect("the kind")
            .to_uppercase();
        let pairs: Vec<&str> = (0..32).map(|at| &digits[2 * at..2 * at + 2]).collect();
        let theirs = format!("sha256:{}", pairs.join(":"));
        assert_eq!(parse_fingerprint(&theirs), Some(fingerprint));
        for text in [
            "",
            "sha256:",
            "sha1:00",
            &ours[..70],
            &ours[7..],
            &format!("{ours}0"),
        ] {
            assert_eq!(parse_fingerprint(text), None, "{text}");
        }
    }
}
