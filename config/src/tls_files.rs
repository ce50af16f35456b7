//! Certificates and keys, in files or in the config itself: whether TLS will accept them, checked
//! before anything starts.

use std::ops::Range;
use std::path::Path;

use boring::pkey::{PKey, Private};
use boring::x509::X509;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::file_or_text::FileOrText;
use crate::named_file::NamedFile;
use crate::revocation_lists;
use crate::section::Section;
use crate::tls_keys;

/// A certificate that expires within this time causes a warning: two weeks leave room for a weekend
/// and for holidays.
const EXPIRY_WARNING: std::time::Duration = std::time::Duration::from_secs(14 * 24 * 60 * 60);

/// The side that a certificate authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Server,
    Client,
}

/// The two keys of a section of which one holds a certificate or key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    /// The key with the path of a file.
    pub(crate) file: &'static str,
    /// The key with the text itself.
    pub(crate) text: &'static str,
}

impl Keys {
    /// Whether the section has one of them.
    pub(crate) fn any(self, section: &Section<'_>) -> bool {
        // Both are asked for, so that neither is reported as unknown.
        let (file, text) = (section.has(self.file), section.has(self.text));
        file || text
    }

    /// Warns that the keys have no effect.
    pub(crate) fn warn_unused(self, section: &Section<'_>, why: &str) {
        section.warn_unused(self.file, why);
        section.warn_unused(self.text, why);
    }
}

/// A certificate and the key that belongs to it.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) cert: FileOrText,
    pub(crate) key: FileOrText,
}

/// Reads the CA certificates under one of `keys`, which must be there.
pub(crate) fn ca(section: &Section<'_>, keys: Keys) -> Option<FileOrText> {
    let file = Source::named(
        section,
        keys,
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
        if let Some(why) = tls_keys::weak_authority(cert) {
            file.problem(section, &format!("a CA certificate in it {why}"));
            return None;
        }
        match validity(cert) {
            Validity::Valid => usable += 1,
            Validity::EndsSoon(when) => {
                usable += 1;
                file.warning(
                    section,
                    &format!("a CA certificate in it expires on {when}"),
                );
            }
            Validity::Expired(when) if authorities > 1 => {
                file.warning(
                    section,
                    &format!("a CA certificate in it expired on {when}"),
                );
            }
            Validity::NotYet(when) if authorities > 1 => {
                file.warning(
                    section,
                    &format!("a CA certificate in it is valid from {when}"),
                );
            }
            Validity::Expired(when) => {
                let message = format!("the CA certificate in it expired on {when}");
                if file.is_refused_for_its_time(section, &message) {
                    return None;
                }
            }
            Validity::NotYet(when) => {
                let message = format!(
                    "the CA certificate in it is valid only from {when}; is the clock right?"
                );
                if file.is_refused_for_its_time(section, &message) {
                    return None;
                }
            }
        }
    }
    let none = "no CA certificate in it is valid now";
    if usable == 0 && file.is_refused_for_its_time(section, none) {
        return None;
    }
    Some(file.from)
}

/// Reads the revocation lists under one of `keys`, if there are any. Whether a CA has signed them
/// is checked by those who have the CAs.
pub(crate) fn crl(section: &Section<'_>, keys: Keys) -> Option<FileOrText> {
    let form = "the path of a PEM file with the lists of revoked certificates of the CAs";
    let file = Source::maybe(section, keys, form)?;
    let pem = file.read(section)?;
    let lists = match revocation_lists::lists(&pem) {
        Ok(lists) => lists,
        Err(message) => {
            file.problem(section, message);
            return None;
        }
    };
    // These are warnings and not errors, because handshakes accept such a list too. An operator who
    // forgets to renew it, or has a CA whose clock is ahead, must not lose other changes, such as
    // the server's next certificate.
    for list in lists {
        if ASN1Time::now() < list.issued {
            let message = format!(
                "holds a list that its CA has issued in the future, on {}: it is used nevertheless; \
                 are the clocks of this host and of the CA right?",
                day(list.issued)
            );
            file.warning(section, &message);
        }
        if let Some(ends) = list.next_update.filter(|ends| ASN1Time::now() > *ends) {
            let message = format!(
                "holds a list that expired on {}: what is on it is refused further, and what the CA \
                 has revoked since is let in; it should be one that the CA has issued since",
                day(ends)
            );
            file.warning(section, &message);
        }
        if list.is_of_a_part {
            file.warning(
                section,
                "holds a list that is only about certificates that name its distribution point: \
                 others of that CA are let in if they are on no list here",
            );
        }
    }
    Some(file.from)
}

/// Reads the session ticket keys under one of `keys`, if there are any.
pub(crate) fn ticket_keys(section: &Section<'_>, keys: Keys) -> Option<FileOrText> {
    let file = Source::maybe(section, keys, "the path of a file with session ticket keys")?;
    if let Err(message) = file.from.read_ticket_keys() {
        file.problem(section, &message);
        return None;
    }
    // This is a warning and not an error, because Kubernetes mounts secrets for everybody in the
    // container unless told otherwise.
    file.warn_if_exposed(section);
    Some(file.from)
}

/// Reads the certificate and key under two keys, which must both be there.
pub(crate) fn identity(
    section: &Section<'_>,
    cert_keys: Keys,
    key_keys: Keys,
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
    let cert_file = Source::named(section, cert_keys, cert_form);
    let key_file = Source::named(section, key_keys, key_form);
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
            &format!("does not belong to the certificate in {}", cert_file.from),
        );
        return None;
    }
    Some(Identity {
        cert: cert_file.from,
        key: key_file.from,
    })
}

/// The first certificate of a file, if it may be used for `purpose` now with the others in the
/// file.
fn leaf(section: &Section<'_>, file: &Source, purpose: Purpose) -> Option<X509> {
    let certs = file.certificates(section)?;
    let leaf = certs.first()?;
    match validity(leaf) {
        Validity::Valid => {}
        Validity::EndsSoon(when) => file.warning(section, &format!("expires on {when}")),
        Validity::Expired(when) => {
            let message = format!("expired on {when}; it must be valid now");
            if file.is_refused_for_its_time(section, &message) {
                return None;
            }
        }
        Validity::NotYet(when) => {
            let message = format!("is valid only from {when}; is the clock right?");
            if file.is_refused_for_its_time(section, &message) {
                return None;
            }
        }
    }
    if let Some(why) = unusable(leaf, purpose) {
        file.problem(section, &why);
        return None;
    }
    chain_holds(section, file, &certs).then(|| leaf.clone())
}

/// Why peers would not accept the certificate for `purpose`, whoever issued it.
fn unusable(leaf: &X509, purpose: Purpose) -> Option<String> {
    if !may_serve(leaf, purpose) {
        let (name, usage) = match purpose {
            Purpose::Server => ("server", "serverAuth"),
            Purpose::Client => ("client", "clientAuth"),
        };
        return Some(format!(
            "is not a {name} certificate; its extended key usage must include {usage}"
        ));
    }
    if !may_sign(leaf) {
        return Some(
            "must not sign in TLS; its key usage must include digitalSignature".to_owned(),
        );
    }
    tls_keys::useless_for_leaf(leaf)
}

/// Whether the intermediate certificates that a peer is shown, and needs, are good now.
fn chain_holds(section: &Section<'_>, file: &Source, certs: &[X509]) -> bool {
    let is_good = |cert: &X509| matches!(validity(cert), Validity::Valid | Validity::EndsSoon(_));
    let chain = tls_keys::chain(certs, is_good);
    for (above, cert) in chain.iter().enumerate() {
        let name = subject(cert);
        // A peer may trust a newer certificate with the name of the last one, and then does not
        // look at this one.
        let replaceable = above > 0 && above + 1 == chain.len();
        let why = match validity(cert) {
            Validity::Valid => tls_keys::weak_authority(cert),
            Validity::EndsSoon(when) => {
                file.warning(
                    section,
                    &format!("the certificate of {name} in its chain expires on {when}"),
                );
                None
            }
            Validity::Expired(when) => Some(format!("expired on {when}")),
            Validity::NotYet(when) => Some(format!("is valid only from {when}")),
        };
        let Some(why) = why else { continue };
        let message = format!("the certificate of {name} in its chain {why}");
        let is_of_time = !matches!(validity(cert), Validity::Valid | Validity::EndsSoon(_));
        if !replaceable && (section.report().times_matter() || !is_of_time) {
            file.problem(section, &format!("{message}; it must be valid now"));
            return false;
        }
        file.warning(section, &message);
    }
    true
}

/// The value under one of two such keys.
struct Source {
    key: &'static str,
    span: Range<usize>,
    from: FileOrText,
    /// The file, if it is one.
    named: Option<NamedFile>,
}

impl Source {
    /// Reads the value under one of `keys`; it must be there, as `allowed` says.
    fn named(section: &Section<'_>, keys: Keys, allowed: &str) -> Option<Self> {
        if !section.has(keys.text) {
            section.require(keys.file, allowed);
        }
        Self::maybe(section, keys, allowed)
    }

    fn maybe(section: &Section<'_>, keys: Keys, allowed: &str) -> Option<Self> {
        let path = section.filled_string(keys.file, allowed);
        let text = section.filled_string(keys.text, "the text itself, as it would stand in a file");
        if let Some(text) = &text
            && section.has(keys.file)
        {
            let message = format!("stands beside {}; it must be one of them", keys.file);
            section.problem_at(keys.text, &text.span(), message);
            return None;
        }
        if let Some(text) = text {
            return Some(Self {
                key: keys.text,
                span: text.span(),
                from: FileOrText::Text {
                    key: section.key(keys.text),
                    text: (*text.get_ref()).to_owned(),
                },
                named: None,
            });
        }
        let path = path?;
        let named = NamedFile::of(section, path.get_ref(), Some(keys.text));
        Some(Self {
            key: keys.file,
            span: path.span(),
            from: FileOrText::File(named.path.clone()),
            named: Some(named),
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
        // An empty passphrase is given instead of a prompt, because nobody sits at a server's
        // terminal.
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
        match self.from.read_pem() {
            Ok(bytes) => Some(bytes),
            Err(message) => {
                self.problem(section, &message);
                None
            }
        }
    }

    fn warn_if_exposed(&self, section: &Section<'_>) {
        if self.from.file().is_some_and(is_exposed) {
            self.warning(section, EXPOSED);
        }
    }

    /// Notes that a certificate is not valid now. Returns false if that is only a warning.
    fn is_refused_for_its_time(&self, section: &Section<'_>, message: &str) -> bool {
        if section.report().times_matter() {
            self.problem(section, message);
            return true;
        }
        self.warning(section, message);
        false
    }

    fn problem(&self, section: &Section<'_>, message: &str) {
        match &self.named {
            Some(file) => file.problem(section, self.key, &self.span, message),
            // The sentence follows the name of the key, which is enough.
            None => section.problem_at(self.key, &self.span, message),
        }
    }

    fn warning(&self, section: &Section<'_>, message: &str) {
        let key = section.key(self.key);
        // There are warnings only of what was read.
        let message = match &self.from {
            FileOrText::File(path) => format!("{} {message}", path.display()),
            FileOrText::Text { .. } => message.to_owned(),
        };
        section.report().warning(&key, &self.span, &message);
    }
}

/// The warning about a secret file that [`is_exposed`].
pub(crate) const EXPOSED: &str =
    "can be read by every user of this host; chmod 600 would stop that";

/// Whether users of this host who are neither its owner nor in its group may read the file. A group
/// is a common way to let a service read its key.
#[cfg(unix)]
pub(crate) fn is_exposed(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    const OTHERS: u32 = 0o007;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & OTHERS != 0)
}

#[cfg(not(unix))]
pub(crate) fn is_exposed(_path: &Path) -> bool {
    false
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

/// Whether its key may sign a handshake: if there are key usages, digitalSignature must be among
/// them (RFC 8446, section 4.4.2.2).
fn may_sign(cert: &X509) -> bool {
    with_extensions(cert, true, |cert| match cert.key_usage() {
        Ok(Some(usage)) => usage.value.digital_signature(),
        _ => true,
    })
}

/// The subject of the certificate in one line.
fn subject(cert: &X509) -> String {
    with_extensions(cert, "an unknown subject".to_owned(), |cert| {
        format!("{:?}", cert.subject().to_string())
    })
}

/// Looks into a certificate's extensions, which BoringSSL's binding does not show. If one does not
/// parse, the result is `unknown`, and the handshake will decide.
fn with_extensions<T>(cert: &X509, unknown: T, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let Ok(der) = cert.to_der() else {
        return unknown;
    };
    match X509Certificate::from_der(&der) {
        Ok((_, cert)) => look(&cert),
        Err(_) => unknown,
    }
}
