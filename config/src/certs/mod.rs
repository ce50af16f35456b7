//! Certificates: a private CA to start with, one certificate for the server and one for the client.
//! Later come a file for each further client, and new certificates for those that expire.
//!
//! This is enough for a tunnel between two hosts of one owner. Operators with a CA of their own use
//! that one, and need nothing of this.

mod authority;
mod client_file;
mod write;

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use time::{Duration, OffsetDateTime};

use crate::address;

pub use authority::{Authority, AuthorityError, Issued};
pub use client_file::{
    ClientFile, OfferedService, RenewInFileError, renew_in_file, server_host, server_name,
};
pub use write::{FILE_NAMES, WriteError, write};

/// How long certificates are valid unless told otherwise: ten years, as in QMux. Both ends are this
/// program, so the shorter limits of browsers do not apply.
pub const DAYS_DEFAULT: u32 = 3_650;
/// The longest validity: a hundred years; more runs into the four digits of a year.
pub const DAYS_MAX: u32 = 36_500;

/// Certificates are valid from this long before they are issued, because clocks differ.
const BACKDATED: Duration = Duration::HOUR;

/// What certificates to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertsRequest {
    /// The names of the server, DNS names or IP addresses; at least one. The first one also
    /// becomes its common name.
    pub server_names: Vec<String>,
    /// How long they are valid, in days, from 1 to [`DAYS_MAX`].
    pub days: u32,
}

/// A CA, a server certificate and a client certificate, each with its key; all in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub struct Generated {
    /// The CA's certificate: both sides trust it.
    pub ca_cert_pem: String,
    /// The CA's key, which issues further certificates; to be kept away from both sides.
    pub ca_key_pem: String,
    /// The server's certificate.
    pub server_cert_pem: String,
    /// The server's key.
    pub server_key_pem: String,
    /// The client's certificate.
    pub client_cert_pem: String,
    /// The client's key.
    pub client_key_pem: String,
}

impl std::fmt::Debug for Generated {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Generated(keys redacted)")
    }
}

/// Why no certificates were made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// No name was given.
    #[error("no server name; give at least one DNS name or IP address under which clients dial")]
    NoServerName,
    /// A name is neither a DNS name nor an IP address.
    #[error(
        "{0:?} is no server name; it must be a DNS name, as in server.example.com or \
         *.example.com, or an IP address, without a port"
    )]
    ServerName(String),
    /// The validity is out of range.
    #[error("{0} days is out of range; it must be from 1 to {DAYS_MAX}")]
    Days(u32),
    /// The certificate library failed.
    #[error("the certificates could not be made: {0}")]
    Library(#[from] rcgen::Error),
}

/// Makes a fresh CA and the certificates that it issues: ECDSA P-256, valid from an hour ago.
///
/// # Errors
/// The request is not valid, or the system gives no randomness.
pub fn generate(request: &CertsRequest) -> Result<Generated, GenerateError> {
    if !(1..=DAYS_MAX).contains(&request.days) {
        return Err(GenerateError::Days(request.days));
    }
    let names = subject_alt_names(&request.server_names)?;
    let now = OffsetDateTime::now_utc();
    let validity = (
        now - BACKDATED,
        now + Duration::days(i64::from(request.days)),
    );

    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut ca = params("qmux-dp CA", validity);
    // There is no CA below this one: it issues the certificates of peers and nothing else.
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, &ca_key);

    let mut server = params(common_name(&request.server_names[0]), validity);
    server.subject_alt_names = names;
    let (server_cert, server_key) = issue(server, ExtendedKeyUsagePurpose::ServerAuth, &issuer)?;
    let (client_cert, client_key) = issue(
        params("qmux-dp client", validity),
        ExtendedKeyUsagePurpose::ClientAuth,
        &issuer,
    )?;

    Ok(Generated {
        ca_cert_pem: ca_cert.pem(),
        ca_key_pem: ca_key.serialize_pem(),
        server_cert_pem: server_cert.pem(),
        server_key_pem: server_key.serialize_pem(),
        client_cert_pem: client_cert.pem(),
        client_key_pem: client_key.serialize_pem(),
    })
}

fn issue(
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    issuer: &Issuer<'_, &KeyPair>,
) -> Result<(Certificate, KeyPair), GenerateError> {
    // This is said explicitly, because TLS libraries differ on whether a certificate that says
    // nothing is a CA.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok((params.signed_by(&key, issuer)?, key))
}

fn params(common_name: &str, validity: (OffsetDateTime, OffsetDateTime)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    (params.not_before, params.not_after) = validity;
    params
}

fn subject_alt_names(names: &[String]) -> Result<Vec<SanType>, GenerateError> {
    if names.is_empty() {
        return Err(GenerateError::NoServerName);
    }
    let mut alt_names: Vec<SanType> = Vec::new();
    for name in names {
        let invalid = || GenerateError::ServerName(name.clone());
        let alt_name = if let Ok(address) = name.parse::<IpAddr>() {
            SanType::IpAddress(address)
        } else if address::is_host(name.strip_prefix("*.").unwrap_or(name)) {
            SanType::DnsName(name.as_str().try_into().map_err(|_| invalid())?)
        } else {
            return Err(invalid());
        };
        if !alt_names.contains(&alt_name) {
            alt_names.push(alt_name);
        }
    }
    Ok(alt_names)
}

/// A common name has 64 characters at most (RFC 5280, appendix A.1); the full name is among the
/// alternative names, which are all that counts.
fn common_name(name: &str) -> &str {
    const COMMON_NAME_BYTES_MAX: usize = 64;
    if name.len() <= COMMON_NAME_BYTES_MAX {
        name
    } else {
        "qmux-dp server"
    }
}

#[cfg(test)]
mod tests;
