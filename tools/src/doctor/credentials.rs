//! The client's certificate and the CAs that it trusts, and a TLS context that reports everything
//! that it finds wrong.

use std::sync::{Arc, Mutex, PoisonError};

use boring::asn1::Asn1Time;
use boring::error::ErrorStack;
use boring::pkey::{PKey, Private};
use boring::ssl::{SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use boring::x509::{X509, X509Ref, X509VerifyError};
use qmux_config::{CertificateFacts, Client, FileOrText};

/// The certificate that a client shows, and the CAs that it trusts.
pub(super) struct Credentials {
    /// The CAs.
    pub(super) authorities: Vec<X509>,
    /// The client's certificate with its chain, and its key.
    pub(super) pair: Option<(Vec<X509>, PKey<Private>)>,
}

impl Credentials {
    /// Reads the files, which the config's check has found usable.
    pub(super) fn read(client: &Client) -> Result<Credentials, String> {
        let pair = client.tls.client_cert.as_ref();
        let pair = pair.map(|pair| -> Result<_, String> {
            let key = read(&pair.key)?;
            // An empty passphrase is given, as in the data plane.
            let key = PKey::private_key_from_pem_callback(&key, |_| Ok(0));
            let key = key.map_err(|error| format!("{}: {error}", pair.key))?;
            Ok((certificates(&pair.cert)?, key))
        });
        Ok(Credentials {
            authorities: certificates(&client.tls.ca_cert)?,
            pair: pair.transpose()?,
        })
    }

    /// The client's own certificate.
    pub(super) fn own(&self) -> Option<&X509> {
        self.pair.as_ref().and_then(|(chain, _)| chain.first())
    }

    /// A client's context as in the data plane, except for time. That a certificate has expired, or
    /// is not valid yet, is noted in the second value and does not end the handshake: the clock may
    /// be wrong, and then the server's verdict on this client's certificate is worth knowing.
    pub(super) fn context(&self) -> Result<(SslContextBuilder, Noted), ErrorStack> {
        let mut tls = SslContextBuilder::new(SslMethod::tls())?;
        tls.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        for ca in &self.authorities {
            tls.cert_store_mut().add_cert(ca.clone())?;
        }
        if let Some((chain, key)) = &self.pair {
            for (index, cert) in chain.iter().enumerate() {
                if index == 0 {
                    tls.set_certificate(cert)?;
                } else {
                    tls.add_extra_chain_cert(cert.clone())?;
                }
            }
            tls.set_private_key(key)?;
        }
        let noted = Noted::default();
        let notes = Arc::clone(&noted.0);
        tls.set_verify_callback(SslVerifyMode::PEER, move |good, context| {
            let Err(why) = context.verify_result() else {
                return good;
            };
            if good {
                return true;
            }
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            if is_of_time(why) {
                notes.of_time.get_or_insert(why);
                return true;
            }
            notes.other.get_or_insert(why);
            false
        });
        Ok((tls, noted))
    }
}

/// Whether a certificate is refused only for its time.
fn is_of_time(why: X509VerifyError) -> bool {
    matches!(
        why,
        X509VerifyError::CERT_HAS_EXPIRED | X509VerifyError::CERT_NOT_YET_VALID
    )
}

/// The faults of a server's certificate that were found while it was checked.
#[derive(Clone, Default)]
pub(super) struct Noted(Arc<Mutex<Notes>>);

#[derive(Default)]
struct Notes {
    of_time: Option<X509VerifyError>,
    other: Option<X509VerifyError>,
}

impl Noted {
    /// The error that it has expired or is not valid yet.
    pub(super) fn of_time(&self) -> Option<X509VerifyError> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .of_time
    }

    /// The error that ended the handshake.
    pub(super) fn other(&self) -> Option<X509VerifyError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).other
    }
}

fn read(from: &FileOrText) -> Result<Vec<u8>, String> {
    from.read_pem().map_err(|why| format!("{from} {why}"))
}

fn certificates(from: &FileOrText) -> Result<Vec<X509>, String> {
    X509::stack_from_pem(&read(from)?).map_err(|error| format!("{from}: {error}"))
}

/// The facts about a certificate.
pub(super) fn facts(cert: &X509Ref) -> Option<CertificateFacts> {
    CertificateFacts::of(&cert.to_der().ok()?)
}

/// Whether a certificate is valid at this second of Unix time.
pub(super) fn is_valid_at(cert: &X509Ref, unix_s: i64) -> bool {
    is_begun_at(cert, unix_s) && !has_ended_at(cert, unix_s)
}

/// Whether its validity has begun at this second of Unix time.
pub(super) fn is_begun_at(cert: &X509Ref, unix_s: i64) -> bool {
    let at = Asn1Time::from_unix(unix_s);
    at.and_then(|at| cert.not_before().compare(&at))
        .is_ok_and(std::cmp::Ordering::is_le)
}

fn has_ended_at(cert: &X509Ref, unix_s: i64) -> bool {
    let at = Asn1Time::from_unix(unix_s);
    at.and_then(|at| cert.not_after().compare(&at))
        .is_ok_and(std::cmp::Ordering::is_lt)
}
