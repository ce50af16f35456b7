//! An existing CA: it issues further certificates, and renews those that expire.

use boring::pkey::PKey;
use boring::x509::X509;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{BACKDATED, DAYS_MAX, params};

/// A CA's certificate and key, with which certificates can be made.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert: X509,
    pem: String,
    ends: OffsetDateTime,
}

/// A certificate and its key, both in PEM form.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The key.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Issued(key redacted)")
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Authority(key redacted)")
    }
}

/// Why a CA does not issue a certificate. Each text is the end of a sentence that begins with what
/// was given.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The CA's certificate cannot be read, or does not belong to a CA.
    #[error("is no CA certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoAuthority,
    /// The CA has expired.
    #[error("has expired; make a new CA: qmux-ctl certs --server-name NAME --out ANOTHER_DIR")]
    Expired,
    /// The CA's key cannot be read.
    #[error("is no private key in PEM form without a passphrase (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// The key belongs to another certificate.
    #[error("does not belong to the CA certificate")]
    OtherKey,
    /// The certificate to renew cannot be read.
    #[error("is no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// Another CA has issued the certificate to renew.
    #[error("was issued by another CA ({0}), which alone can renew it")]
    OtherIssuer(String),
    /// The key does not belong to the certificate to renew.
    #[error("does not belong to its key")]
    OtherLeafKey,
    /// The certificate to renew is that of a CA.
    #[error("is a CA certificate; only those of a server or a client can be renewed")]
    IsAuthority,
    /// The validity is out of range.
    #[error("{0} days is out of range; it must be from 1 to {DAYS_MAX}")]
    Days(u32),
    /// The certificate library failed.
    #[error("cannot be made: {0}")]
    Library(#[from] rcgen::Error),
    /// The other certificate library failed.
    #[error("cannot be made: {0}")]
    Boring(#[from] boring::error::ErrorStack),
}

impl Authority {
    /// Reads the certificate and the key of a CA, both in PEM form.
    ///
    /// # Errors
    /// They are not what they should be, do not belong together, or the CA has expired.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let cert = X509::from_pem(cert_pem.as_bytes()).map_err(|_| AuthorityError::NoAuthority)?;
        let der = cert.to_der()?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|_| AuthorityError::NoAuthority)?;
        if !parsed.is_ca() {
            return Err(AuthorityError::NoAuthority);
        }
        let ends = parsed.validity().not_after.to_datetime();
        if ends <= OffsetDateTime::now_utc() {
            return Err(AuthorityError::Expired);
        }
        let (key, private) = read_key(key_pem)?;
        if !cert.public_key()?.public_eq(&private) {
            return Err(AuthorityError::OtherKey);
        }
        let pem = String::from_utf8_lossy(&cert.to_pem()?).into_owned();
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&pem, key)?,
            cert,
            pem,
            ends,
        })
    }

    /// The CA's certificate in PEM form.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.pem
    }

    /// Issues a certificate, with a new key, for a client of this name. It is valid for this many
    /// days, or as long as the CA.
    ///
    /// # Errors
    /// The days are out of range, or the system gives no randomness.
    pub fn issue_client(&self, name: &str, days: u32) -> Result<Issued, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(name, self.validity(days)?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(Issued {
            cert_pem: self.sign(params, &key)?,
            key_pem: key.serialize_pem(),
        })
    }

    /// Renews a certificate that this CA has issued: with the same key, subject, names and
    /// purposes; only the validity and the serial number are new. The key stays, so that one file
    /// is replaced and there is no moment at which the pair does not fit, and because what a server
    /// derives from its key survives.
    ///
    /// # Errors
    /// Another CA has issued it, it does not belong to its key, or one of them cannot be
    /// read.
    pub fn renew(
        &self,
        cert_pem: &str,
        key_pem: &str,
        days: u32,
    ) -> Result<String, AuthorityError> {
        let old = X509::from_pem(cert_pem.as_bytes()).map_err(|_| AuthorityError::NoCertificate)?;
        let der = old.to_der()?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|_| AuthorityError::NoCertificate)?;
        if parsed.is_ca() {
            return Err(AuthorityError::IsAuthority);
        }
        let authority = self.cert.public_key()?;
        if !old.verify(&authority)? {
            let issuer: String = parsed.issuer().to_string().escape_debug().collect();
            return Err(AuthorityError::OtherIssuer(issuer));
        }
        let (key, private) = read_key(key_pem)?;
        if !old.public_key()?.public_eq(&private) {
            return Err(AuthorityError::OtherLeafKey);
        }
        let mut params = params("", self.validity(days)?);
        params.distinguished_name = subject(&parsed);
        params.subject_alt_names = alternative_names(&parsed)?;
        params.extended_key_usages = purposes(&parsed);
        self.sign(params, &key)
    }

    fn validity(&self, days: u32) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
        if !(1..=DAYS_MAX).contains(&days) {
            return Err(AuthorityError::Days(days));
        }
        let now = OffsetDateTime::now_utc();
        // Nobody accepts a certificate whose CA has expired.
        let until = (now + Duration::days(i64::from(days))).min(self.ends);
        Ok((now - BACKDATED, until))
    }

    fn sign(&self, mut params: CertificateParams, key: &KeyPair) -> Result<String, AuthorityError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

/// A private key for both libraries, in whichever of the usual forms its PEM text has.
fn read_key(pem: &str) -> Result<(KeyPair, PKey<boring::pkey::Private>), AuthorityError> {
    let private = PKey::private_key_from_pem_callback(pem.as_bytes(), |_| Ok(0))
        .map_err(|_| AuthorityError::NoKey)?;
    let pkcs8 = private.private_key_to_pem_pkcs8()?;
    let key = KeyPair::from_pem(&String::from_utf8_lossy(&pkcs8))?;
    Ok((key, private))
}

fn subject(cert: &X509Certificate<'_>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for attribute in cert.subject().iter_attributes() {
        let Ok(value) = attribute.as_str() else {
            continue;
        };
        let kind = match attribute.attr_type().to_id_string().as_str() {
            "2.5.4.3" => DnType::CommonName,
            "2.5.4.6" => DnType::CountryName,
            "2.5.4.7" => DnType::LocalityName,
            "2.5.4.8" => DnType::StateOrProvinceName,
            "2.5.4.10" => DnType::OrganizationName,
            "2.5.4.11" => DnType::OrganizationalUnitName,
            other => DnType::CustomDnType(
                other
                    .split('.')
                    .filter_map(|arc| arc.parse().ok())
                    .collect(),
            ),
        };
        name.push(kind, value);
    }
    name
}

fn alternative_names(cert: &X509Certificate<'_>) -> Result<Vec<SanType>, AuthorityError> {
    let mut names = Vec::new();
    let Ok(Some(extension)) = cert.subject_alternative_name() else {
        return Ok(names);
    };
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.push(SanType::DnsName((*name).try_into()?)),
            GeneralName::URI(uri) => names.push(SanType::URI((*uri).try_into()?)),
            GeneralName::RFC822Name(mail) => names.push(SanType::Rfc822Name((*mail).try_into()?)),
            GeneralName::IPAddress(bytes) => {
                if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                    names.push(SanType::IpAddress(v4.into()));
                } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                    names.push(SanType::IpAddress(v6.into()));
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

fn purposes(cert: &X509Certificate<'_>) -> Vec<ExtendedKeyUsagePurpose> {
    let mut purposes = Vec::new();
    if let Ok(Some(usage)) = cert.extended_key_usage() {
        if usage.value.server_auth {
            purposes.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if usage.value.client_auth {
            purposes.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
    }
    purposes
}
