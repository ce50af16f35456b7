//! The facts that an operator needs about a certificate that was refused: whom it is for, who
//! issued it, when it is valid.
//!
//! It may be an unknown peer's: the texts are short, and nothing in them can break a line of a log.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The most names of one certificate that are shown.
const NAMES_MAX: usize = 8;

/// The most characters of one text that are shown.
const TEXT_CHARS_MAX: usize = 100;

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject's distinguished name.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// Host names and addresses; only some of them, if there are many.
    pub names: Vec<String>,
    /// Day and time (UTC) from which it is valid.
    pub not_before: String,
    /// Day and time (UTC) until which it is valid.
    pub not_after: String,
    /// Whether it has expired.
    pub has_expired: bool,
    /// Whether it is not valid yet.
    pub is_early: bool,
}

impl CertificateFacts {
    /// The facts of the first certificate of a PEM text; `None` if it cannot be read.
    #[must_use]
    pub fn of_pem(pem: &str) -> Option<CertificateFacts> {
        let cert = boring::x509::X509::from_pem(pem.as_bytes()).ok()?;
        Self::of(&cert.to_der().ok()?)
    }

    /// The facts of a certificate in DER form; `None` if it cannot be read.
    pub fn of(der: &[u8]) -> Option<CertificateFacts> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let names = match cert.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.iter().filter_map(host).collect(),
            _ => Vec::new(),
        };
        let (from, until) = (cert.validity().not_before, cert.validity().not_after);
        let now = ASN1Time::now();
        Some(CertificateFacts {
            subject: short(&cert.subject().to_string()),
            issuer: short(&cert.issuer().to_string()),
            names: shortened(names),
            not_before: minute(from),
            not_after: minute(until),
            has_expired: now > until,
            is_early: now < from,
        })
    }
}

/// The time at which the first of a PEM text's certificates expires, in seconds since 1970 (UTC);
/// `None` if there is none that can be read.
#[must_use]
pub fn first_expiry_unix_s(pem: &[u8]) -> Option<i64> {
    let certs = boring::x509::X509::stack_from_pem(pem).ok()?;
    let expiry = |cert: &boring::x509::X509| {
        let der = cert.to_der().ok()?;
        let (_, cert) = X509Certificate::from_der(&der).ok()?;
        Some(cert.validity().not_after.timestamp())
    };
    certs.iter().filter_map(expiry).min()
}

/// Writes a time in the form of RFC 3339, as in `2027-01-31T12:00:00Z`; `seconds` are since 1970
/// (UTC). `None` if the year does not have four digits.
#[must_use]
pub fn utc_text(seconds: i64) -> Option<String> {
    let at = ASN1Time::from_timestamp(seconds).ok()?.to_datetime();
    let year = u16::try_from(at.year()).ok().filter(|it| *it < 10_000)?;
    let (month, day) = (u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
    ))
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(short(name)),
        GeneralName::IPAddress(bytes) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                Some(std::net::Ipv4Addr::from(v4).to_string())
            } else {
                let v6 = <[u8; 16]>::try_from(*bytes).ok()?;
                Some(std::net::Ipv6Addr::from(v6).to_string())
            }
        }
        _ => None,
    }
}

fn shortened(mut names: Vec<String>) -> Vec<String> {
    if names.len() > NAMES_MAX {
        let more = names.len() - NAMES_MAX;
        names.truncate(NAMES_MAX);
        names.push(format!("and {more} more"));
    }
    names
}

fn short(text: &str) -> String {
    let head: String = text.chars().take(TEXT_CHARS_MAX).collect();
    head.escape_debug().to_string()
}

fn minute(time: ASN1Time) -> String {
    let at = time.to_datetime();
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02} UTC",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{CertsRequest, generate};

    #[test]
    fn the_names_the_issuer_and_the_time_are_told() {
        let request = CertsRequest {
            server_names: vec!["a.example.com".into(), "192.0.2.1".into(), "::1".into()],
            days: 30,
        };
        let pem = generate(&request).expect("certificates").server_cert_pem;
        let cert = boring::x509::X509::from_pem(pem.as_bytes()).expect("PEM");
        let facts = CertificateFacts::of(&cert.to_der().expect("DER")).expect("read");
        assert_eq!(facts.names, ["a.example.com", "192.0.2.1", "::1"]);
        assert_eq!(facts.issuer, "CN=qmux-dp CA");
        assert!(!facts.has_expired && !facts.is_early);
        assert!(facts.not_after.ends_with(" UTC"), "{}", facts.not_after);
    }

    #[test]
    fn of_several_certificates_the_one_that_expires_first_counts() {
        let cert = |days| {
            let request = CertsRequest {
                server_names: vec!["a.example.com".into()],
                days,
            };
            generate(&request).expect("certificates").server_cert_pem
        };
        let (long, short) = (cert(90), cert(30));
        let expiry = |text: &str| first_expiry_unix_s(text.as_bytes());
        assert!(expiry(&short) < expiry(&long));
        assert_eq!(expiry(&format!("{long}{short}")), expiry(&short));
        assert_eq!(expiry("nothing"), None);
        let text = utc_text(1_796_040_000);
        assert_eq!(text.as_deref(), Some("2026-11-30T12:00:00Z"));
    }

    #[test]
    fn nothing_breaks_a_line_or_is_endless() {
        assert_eq!(short("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(short(&"x".repeat(10_000)).len(), TEXT_CHARS_MAX);
        let many = (0..100).map(|it| it.to_string()).collect();
        assert_eq!(
            shortened(many).last().map(String::as_str),
            Some("and 92 more")
        );
        assert_eq!(CertificateFacts::of(b"no certificate"), None);
    }
}
