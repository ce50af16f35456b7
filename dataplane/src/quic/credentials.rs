//! Certificates, keys and CAs as read from their files, ready for a TLS context.
//!
//! Reading a file may take long (a network file system may be away), so no core does it. The files
//! are read at the start, and those of a client again by a thread of its own when they change. A
//! handshake uses what was read last.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use boring::pkey::{PKey, Private};
use boring::sha::Sha256;
use boring::x509::X509;
use qmux_config::{Client, FileOrText, Server, ServerAuth};

use super::sessions::Identity;

/// How often the files are checked for a change; this takes three system calls.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Checks in a row that find the files unusable before it is logged: a renewal that replaces one
/// file after the other is not to be reported half-way.
const UNUSABLE_LOOKS_MAX: u32 = 3;

/// A certificate, key or CA file that TLS refused.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}: {why}")]
pub(crate) struct TlsError {
    path: String,
    what: &'static str,
    why: String,
}

pub(super) fn failed<E: std::fmt::Display>(
    of: &(impl std::fmt::Display + ?Sized),
    what: &'static str,
) -> impl FnOnce(E) -> TlsError {
    let path = of.to_string();
    move |error| TlsError {
        path,
        what,
        why: error.to_string(),
    }
}

/// The CA certificates of a file.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) from: FileOrText,
    pub(super) certs: Vec<X509>,
    /// The PEM text of the file.
    pub(super) pem: Vec<u8>,
}

impl Authorities {
    pub(super) fn read(from: &FileOrText) -> Result<Authorities, TlsError> {
        let pem = from.read_pem().map_err(failed(from, "cannot be used"))?;
        Ok(Authorities {
            from: from.clone(),
            certs: certificates(from, &pem)?,
            pem,
        })
    }
}

/// A certificate with its chain, and its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) cert_from: FileOrText,
    pub(super) key_from: FileOrText,
    /// The certificates, with the leaf first.
    pub(super) chain: Vec<X509>,
    pub(super) key: PKey<Private>,
    /// The PEM text of the certificates.
    pem: Vec<u8>,
    /// The digest of both texts: a key that replaces one that does not fit makes another pair.
    identity: Identity,
}

impl Pair {
    pub(super) fn read(cert_from: &FileOrText, key_from: &FileOrText) -> Result<Pair, TlsError> {
        let pem = cert_from
            .read_pem()
            .map_err(failed(cert_from, "cannot be used"))?;
        let key = key_from
            .read_pem()
            .map_err(failed(key_from, "cannot be used"))?;
        Ok(Pair {
            cert_from: cert_from.clone(),
            key_from: key_from.clone(),
            chain: certificates(cert_from, &pem)?,
            // An empty passphrase is given, because there is nobody to be asked for one.
            key: PKey::private_key_from_pem_callback(&key, |_| Ok(0))
                .map_err(failed(key_from, "is no usable private key"))?,
            identity: digest([pem.as_slice(), key.as_slice()]),
            pem,
        })
    }
}

fn certificates(from: &FileOrText, pem: &[u8]) -> Result<Vec<X509>, TlsError> {
    let certs = X509::stack_from_pem(pem).map_err(failed(from, "holds no usable certificate"))?;
    if certs.is_empty() {
        return Err(failed(from, "holds no certificate")("no PEM block"));
    }
    Ok(certs)
}

/// The CAs that clients' certificates must come from.
#[derive(Debug)]
pub(super) struct TrustedClients {
    pub(super) authorities: Authorities,
    /// The PEM text of the revocation lists, if there are any.
    pub(super) revoked: Option<(FileOrText, Vec<u8>)>,
}

/// The certificates that a server shows, and the CAs that it trusts.
#[derive(Debug)]
pub(crate) struct ServerCredentials {
    pub(super) pair: Pair,
    /// The CAs for clients; `None` if clients show no certificate.
    pub(super) clients: Option<TrustedClients>,
    /// The digest of what the server shows.
    pub(crate) shown: Identity,
    /// The digest of the CAs and revocation lists by which clients are checked.
    pub(crate) trusted: Identity,
}

impl ServerCredentials {
    /// Reads the files of a server.
    ///
    /// # Errors
    /// The first file that is not usable.
    pub(crate) fn read(server: &Server) -> Result<ServerCredentials, TlsError> {
        let pair = Pair::read(&server.tls.server_cert, &server.tls.server_key)?;
        let clients = match &server.auth {
            ServerAuth::Token { .. } => None,
            ServerAuth::Mtls { ca_cert, crl } => {
                let read = |from: &FileOrText| {
                    let pem = from.read_pem().map_err(failed(from, "cannot be used"))?;
                    Ok((from.clone(), pem))
                };
                Some(TrustedClients {
                    authorities: Authorities::read(ca_cert)?,
                    revoked: crl.as_ref().map(read).transpose()?,
                })
            }
        };
        let trusted = clients.iter().flat_map(|it| {
            let revoked = it.revoked.as_ref().map(|(_, pem)| pem.as_slice());
            [Some(it.authorities.pem.as_slice()), revoked]
        });
        Ok(ServerCredentials {
            shown: pair.identity,
            trusted: digest(trusted.map(Option::unwrap_or_default)),
            pair,
            clients,
        })
    }
}

fn digest<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Identity {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(&(text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.finish()
}

/// The certificate that a client shows, and the CAs that it trusts.
#[derive(Debug)]
pub(crate) struct ClientCredentials {
    pub(super) authorities: Authorities,
    pub(super) pair: Option<Pair>,
    /// The digest of both, by which sessions are kept.
    pub(crate) identity: Identity,
    /// The digest of all that was read, with the key.
    content: Identity,
}

impl ClientCredentials {
    /// Reads the files of a client.
    ///
    /// # Errors
    /// The first file that is not usable.
    pub(crate) fn read(client: &Client) -> Result<ClientCredentials, TlsError> {
        let authorities = Authorities::read(&client.tls.ca_cert)?;
        let pair = client.tls.client_cert.as_ref();
        let pair = pair.map(|pair| Pair::read(&pair.cert, &pair.key));
        let pair = pair.transpose()?;
        let cert = pair.as_ref().map(|pair| pair.pem.as_slice());
        let texts = [Some(authorities.pem.as_slice()), cert];
        let identity = digest(texts.into_iter().flatten());
        let shown = pair.as_ref().map(|pair| pair.identity.as_slice());
        let content = [Some(authorities.pem.as_slice()), shown];
        let content = digest(content.into_iter().flatten());
        Ok(ClientCredentials {
            authorities,
            pair,
            identity,
            content,
        })
    }
}

/// A client's credentials, as they were last read.
#[derive(Debug, Default)]
pub(crate) struct KeptCredentials {
    kept: Arc<ArcSwapOption<ClientCredentials>>,
    /// Those that were read for the present configuration. Newer ones may be kept already, if the
    /// files have changed since.
    taken_up: ArcSwapOption<ClientCredentials>,
    /// The configuration whose files are watched.
    of: Arc<ArcSwapOption<Client>>,
}

impl KeptCredentials {
    /// Reads the files now, and again whenever they change, for as long as the process runs.
    ///
    /// # Errors
    /// If the files cannot be used now, or the thread cannot be started.
    pub(crate) fn keep(&self, client: &Client) -> Result<(), String> {
        let mut look = Look {
            last: stamps(client),
            ..Look::default()
        };
        let credentials = Self::usable(client).map_err(|error| error.to_string())?;
        self.change(credentials, client);
        let (kept, of) = (Arc::clone(&self.kept), Arc::clone(&self.of));
        std::thread::Builder::new()
            .name("certificates".into())
            .spawn(move || {
                loop {
                    std::thread::sleep(LOOK_PAUSE);
                    let Some(client) = of.load_full() else {
                        continue;
                    };
                    if !look.changed(stamps(&client)) {
                        continue;
                    }
                    let result = read(&kept, &client);
                    match (look.read(result.is_ok()), result) {
                        (Some(Outcome::Renewed), _) => tracing::info!(
                            "certificate files have changed; new connections use them"
                        ),
                        (Some(Outcome::Unusable), Err(error)) => tracing::warn!(
                            %error,
                            "certificate files have changed and are not usable; connections go on \
                            with those of before"
                        ),
                        _ => {}
                    }
                }
            })
            .map_err(|error| format!("certificates cannot be watched: {error}"))?;
        Ok(())
    }

    /// Takes up another configuration: uses what was read of its files, and watches these from now
    /// on.
    pub(crate) fn change(&self, credentials: Arc<ClientCredentials>, client: &Client) {
        self.kept.store(Some(Arc::clone(&credentials)));
        self.taken_up.store(Some(credentials));
        self.of.store(Some(Arc::new(client.clone())));
    }

    /// Whether the files contain something else than what was taken up last, wherever they are.
    pub(crate) fn would_change(&self, credentials: &ClientCredentials) -> bool {
        let before = self.taken_up.load();
        let before = before.as_ref();
        before.is_some_and(|before| before.content != credentials.content)
    }

    /// Reads the files of a configuration.
    ///
    /// # Errors
    /// If a TLS context would refuse what they contain, which must not take the place of
    /// what works.
    pub(crate) fn usable(client: &Client) -> Result<Arc<ClientCredentials>, TlsError> {
        let credentials = Arc::new(ClientCredentials::read(client)?);
        drop(super::tls::client_with(&credentials)?);
        Ok(credentials)
    }

    /// The credentials that were last read; reads them now if there are none.
    ///
    /// # Errors
    /// If they have to be read and cannot be used.
    pub(crate) fn get(&self, client: &Client) -> Result<Arc<ClientCredentials>, TlsError> {
        match self.kept.load_full() {
            Some(credentials) => Ok(credentials),
            None => read(&self.kept, client),
        }
    }
}

/// Reads the files, and keeps what is in them if it is usable.
fn read(
    kept: &ArcSwapOption<ClientCredentials>,
    client: &Client,
) -> Result<Arc<ClientCredentials>, TlsError> {
    let credentials = KeptCredentials::usable(client)?;
    kept.store(Some(Arc::clone(&credentials)));
    Ok(credentials)
}

/// Tells a file from one that was put in its place: modification time, length and inode (`None` if
/// there is no file).
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamps(client: &Client) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let pair = client.tls.client_cert.as_ref();
    let pair = pair.map(|pair| [&pair.cert, &pair.key]);
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    let sources = [&client.tls.ca_cert]
        .into_iter()
        .chain(pair.into_iter().flatten());
    sources.filter_map(FileOrText::file).map(stamp).collect()
}

/// A result that is worth a line of the log.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Renewed,
    Unusable,
}

/// Decides when to read the files again, and what to log.
#[derive(Debug, Default)]
struct Look {
    last: Vec<Stamp>,
    /// Whether the files have changed and are not at rest yet. They are read when they rest,
    /// because half of a file may be good PEM.
    restless: bool,
    /// Checks in a row that found the files unusable; then they are read each time.
    unusable: u32,
}

impl Look {
    /// Whether the files are to be read.
    fn changed(&mut self, now: Vec<Stamp>) -> bool {
        if now != self.last {
            self.last = now;
            self.restless = true;
            return false;
        }
        std::mem::take(&mut self.restless) || self.unusable > 0
    }

    /// Takes the result of reading: whether the files were usable.
    fn read(&mut self, usable: bool) -> Option<Outcome> {
        if usable {
            self.unusable = 0;
            return Some(Outcome::Renewed);
        }
        self.unusable = self.unusable.saturating_add(1);
        (self.unusable == UNUSABLE_LOOKS_MAX).then_some(Outcome::Unusable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(seconds: u64) -> Vec<Stamp> {
        vec![
            Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), 1, 1)),
            None,
        ]
    }

    #[test]
    fn files_are_read_when_they_have_changed_and_rest_and_only_then() {
        let mut look = Look::default();
        for second in 1..5 {
            assert!(!look.changed(stamp(second)), "still being written");
        }
        assert!(look.changed(stamp(4)));
        assert!(!look.changed(stamp(4)));
        assert!(!look.changed(stamp(2)));
        assert!(look.changed(stamp(2)));
        assert_eq!(look.read(true), Some(Outcome::Renewed));
        assert!(!look.changed(stamp(2)));
    }

    #[test]
    fn unusable_files_are_read_until_they_are_usable_and_said_once_if_they_stay_so() {
        let mut look = Look::default();
        assert!(!look.changed(stamp(1)) && look.changed(stamp(1)));
        let said: Vec<_> = (0..10)
            .map(|_| {
                let said = look.read(false);
                assert!(look.changed(stamp(1)), "tried again");
                said
            })
            .collect();
        assert_eq!(said.iter().flatten().count(), 1, "{said:?}");
        assert_eq!(said[2], Some(Outcome::Unusable));
        assert_eq!(look.read(true), Some(Outcome::Renewed));
        assert!(!look.changed(stamp(1)));
    }
}
