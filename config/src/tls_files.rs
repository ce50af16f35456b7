//! Certificate and key files: whether TLS will accept them, found out before anything starts.

use std::ops::Range;
use std::path::{Path, PathBuf};

use boring::pkey::{PKey, Private};
use boring::x509::X509;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::section::Section;
use crate::ticket_keys::read_ticket_keys;

/// A certificate that ends within this time is worth a warning: two weeks leave room for a weekend
/// and for whoever is on holiday.
const EXPIRY_WARNING: std::time::Duration = std::time::Duration::from_secs(14 * 24 * 60 * 60);
/// Largest certificate or key file, in bytes: a full bundle of public CAs has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a certificate is to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Server,
    Client,
}

/// A certificate file and the key file that belongs to it.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
}

/// The file of CA certificates under `key`, which must be there.
pub(crate) fn ca(section: &Section<'_>, key: &'static str) -> Option<PathBuf> {
    let file = File::named(
        section,
        key,
        "the path of a PEM file with the certificates of the CAs to trust",
    )?;
    let certs = file.certificates(section)?;
    let authorities = certs.iter().filter(|cert| is_authority(cert)).count();
    if authorities == 0 {
        file.problem(
            section,
            "holds no CA certificate; at least one must be a CA (basic constraint CA:TRUE)",
        );
        return None;
    }
    let mut usable = 0;
    for cert in certs.iter().filter(|cert| is_authority(cert)) {
        match validity(cert) {
            Validity::Valid => usable += 1,
            Validity::EndsSoon(when) => {
                usable += 1;
                file.warning(
                    section,
                    &format!("a CA certificate in it expires on {when}"),
                );
            }
            Validity::Expired(when) => {
                if authorities > 1 {
                    file.warning(
                        section,
                        &format!("a CA certificate in it expired on {when}"),
                    );
                } else {
                    file.problem(
                        section,
                        &format!("the CA certificate in it expired on {when}"),
                    );
                    return None;
                }
            }
            Validity::NotYet(when) => {
                if authorities > 1 {
                    file.warning(
                        section,
                        &format!("a CA certificate in it is valid from {when}"),
                    );
                } else {
                    file.problem(
                        section,
                        &format!("the CA certificate in it is valid only from {when}; is the clock right?"),
                    );
                    return None;
                }
            }
        }
    }
    if usable == 0 {
        file.problem(section, "no CA certificate in it is valid now");
        return None;
    }
    Some(file.path)
}

/// The file of session ticket keys under `key`, if the config names one.
pub(crate) fn ticket_keys(section: &Section<'_>, key: &'static str) -> Option<PathBuf> {
    let allowed = "the path of a file with session ticket keys";
    let text = section.filled_string(key, allowed)?;
    let file = File {
        key,
        span: text.span(),
        path: section.report().resolve(text.get_ref()),
    };
    if let Err(message) = read_ticket_keys(&file.path) {
        file.problem(section, &message);
        return None;
    }
    // A warning, no error: Kubernetes mounts secrets for everybody of the container unless told
    // otherwise.
    file.warn_if_exposed(section);
    Some(file.path)
}

/// The certificate and key under two keys, which must both be there.
pub(crate) fn identity(
    section: &Section<'_>,
    cert_key: &'static str,
    key_key: &'static str,
    purpose: Purpose,
) -> Option<Identity> {
    let (cert_form, key_form) = match purpose {
        Purpose::Server => (
            "the path of a PEM file with the server's certificate",
            "the path of a PEM file with the server's private key",
        ),
        Purpose::Client => (
            "the path of a PEM file with the client's certificate, unless [client.auth] has a token",
            "the path of a PEM file with the client's private key, unless [client.auth] has a token",
        ),
    };
    let cert_file = File::named(section, cert_key, cert_form);
    let key_file = File::named(section, key_key, key_form);
    let leaf = cert_file
        .as_ref()
        .and_then(|file| leaf(section, file, purpose));
    let private = key_file.as_ref().and_then(|file| file.private_key(section));
    let (cert_file, key_file, leaf, private) = (cert_file?, key_file?, leaf?, private?);
    let belongs = leaf
        .public_key()
        .is_ok_and(|public| public.public_eq(&private));
    if !belongs {
        key_file.problem(
            section,
            &format!(
                "does not belong to the certificate in {}",
                cert_file.path.display()
            ),
        );
        return None;
    }
    Some(Identity {
        cert_file: cert_file.path,
        key_file: key_file.path,
    })
}

/// The first certificate of a file, if it may be used for `purpose` now.
fn leaf(section: &Section<'_>, file: &File, purpose: Purpose) -> Option<X509> {
    let leaf = file.certificates(section)?.into_iter().next()?;
    match validity(&leaf) {
        Validity::Valid => {}
        Validity::EndsSoon(when) => file.warning(section, &format!("expires on {when}")),
        Validity::Expired(when) => {
            file.problem(section, &format!("expired on {when}; it must be valid now"));
            return None;
        }
        Validity::NotYet(when) => {
            file.problem(
                section,
                &format!("is valid only from {when}; is the clock right?"),
            );
            return None;
        }
    }
    if !may_serve(&leaf, purpose) {
        let (name, usage) = match purpose {
            Purpose::Server => ("server", "serverAuth"),
            Purpose::Client => ("client", "clientAuth"),
        };
        file.problem(
            section,
            &format!("is not a {name} certificate; its extended key usage must include {usage}"),
        );
        return None;
    }
    Some(leaf)
}

/// A file that the config names.
struct File {
    key: &'static str,
    span: Range<usize>,
    path: PathBuf,
}

impl File {
    fn named(section: &Section<'_>, key: &'static str, allowed: &str) -> Option<Self> {
        section.require(key, allowed);
        let text = section.filled_string(key, allowed)?;
        let path = section.report().resolve(text.get_ref());
        Some(Self {
            key,
            span: text.span(),
            path,
        })
    }

    fn certificates(&self, section: &Section<'_>) -> Option<Vec<X509>> {
        let pem = self.read(section)?;
        match X509::stack_from_pem(&pem) {
            Ok(certs) if !certs.is_empty() => Some(certs),
            _ => {
                self.problem(
                    section,
                    "holds no certificate in valid PEM form (-----BEGIN CERTIFICATE-----)",
                );
                None
            }
        }
    }

    fn private_key(&self, section: &Section<'_>) -> Option<PKey<Private>> {
        let pem = self.read(section)?;
        self.warn_if_exposed(section);
        // An empty passphrase instead of a prompt: nobody sits at a server's terminal.
        if let Ok(key) = PKey::private_key_from_pem_callback(&pem, |_| Ok(0)) {
            return Some(key);
        }
        let text = String::from_utf8_lossy(&pem);
        self.problem(
            section,
            if text.contains("ENCRYPTED") {
                "is protected by a passphrase; it must be a private key in PEM form without one"
            } else {
                "holds no private key in valid PEM form (-----BEGIN PRIVATE KEY-----)"
            },
        );
        None
    }

    fn read(&self, section: &Section<'_>) -> Option<Vec<u8>> {
        match read_limited(&self.path) {
            Ok(bytes) => Some(bytes),
            Err(message) => {
                self.problem(section, &message);
                None
            }
        }
    }

    #[cfg(unix)]
    fn warn_if_exposed(&self, section: &Section<'_>) {
        use std::os::unix::fs::PermissionsExt as _;
        /// Any right for anybody outside the file's owner and group: a group is a common way to
        /// let a service read its key.
        const OTHERS: u32 = 0o007;
        let exposed = std::fs::metadata(&self.path)
            .is_ok_and(|metadata| metadata.permissions().mode() & OTHERS != 0);
        if exposed {
            self.warning(
                section,
                "can be read by every user of this host; chmod 600 would stop that",
            );
        }
    }

    #[cfg(not(unix))]
    fn warn_if_exposed(&self, _section: &Section<'_>) {}

    fn problem(&self, section: &Section<'_>, message: &str) {
        section.problem_at(
            self.key,
            &self.span,
            format!("{} {message}", self.path.display()),
        );
    }

    fn warning(&self, section: &Section<'_>, message: &str) {
        let message = format!("{} {message}", self.path.display());
        section
            .report()
            .warning(&section.key(self.key), &self.span, &message);
    }
}

fn read_limited(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "does not exist; qmux-ctl certs makes certificates to start with".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    })?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} KiB", FILE_BYTES_MAX >> 10));
    }
    std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))
}

enum Validity {
    Valid,
    EndsSoon(String),
    Expired(String),
    NotYet(String),
}

fn validity(cert: &X509) -> Validity {
    with_extensions(cert, Validity::Valid, |cert| {
        let (from, until) = (cert.validity().not_before, cert.validity().not_after);
        let now = ASN1Time::now();
        if now < from {
            return Validity::NotYet(day(from));
        }
        if now > until {
            return Validity::Expired(day(until));
        }
        let left = until.timestamp().saturating_sub(now.timestamp());
        if left.unsigned_abs() < EXPIRY_WARNING.as_secs() {
            return Validity::EndsSoon(day(until));
        }
        Validity::Valid
    })
}

fn day(time: ASN1Time) -> String {
    let date = time.to_datetime().date();
    format!(
        "{:04}-{:02}-{:02}",
        date.year(),
        u8::from(date.month()),
        date.day()
    )
}

fn is_authority(cert: &X509) -> bool {
    with_extensions(cert, false, |cert| cert.is_ca())
}

/// Whether TLS peers accept the certificate for `purpose`: without extended key usages it is good
/// for anything (RFC 5280, section 4.2.1.12).
fn may_serve(cert: &X509, purpose: Purpose) -> bool {
    with_extensions(cert, true, |cert| match cert.extended_key_usage() {
        Ok(Some(usage)) => match purpose {
            Purpose::Server => usage.value.server_auth,
            Purpose::Client => usage.value.client_auth,
        },
        _ => true,
    })
}

/// Looks into a certificate's extensions, which BoringSSL's binding does not show. One that does
/// not parse gets `unknown`; the handshake will judge it.
fn with_extensions<T>(cert: &X509, unknown: T, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let Ok(der) = cert.to_der() else {
        return unknown;
    };
    match X509Certificate::from_der(&der) {
        Ok((_, cert)) => look(&cert),
        Err(_) => unknown,
    }
}
