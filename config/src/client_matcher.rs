//! Finds the entry of `[[server.clients]]` for an authenticated client, and so what it may serve.
//!
//! A matcher is built once from a configuration, then only read. So all cores can share it, and it
//! is replaced as a whole when the configuration changes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::certificate_names::{CertificateNames, FINGERPRINT_BYTES};
use crate::client_entry::{ClientEntry, Proof};
use crate::secret::Secret;
use crate::server::{Server, ServerAuth};

/// The result for a client that has proved its identity, or tried to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There are no entries: the client may serve everything, and has the name that it gives
    /// itself.
    Anyone,
    /// The client is the one of this entry.
    Entry(Arc<ClientEntry>),
    /// The client has no entry, but knows the shared token: it may serve the service without a
    /// name, and has the name that it gives itself.
    Nameless,
    /// The client has no entry, or proves nothing.
    Refused,
}

impl Admission {
    /// Whether the client may serve the service of this name; the empty name is that of the service
    /// without a name.
    #[must_use]
    pub fn may_serve(&self, service: &str) -> bool {
        match self {
            Self::Anyone => true,
            Self::Entry(entry) => entry.may_serve(service),
            Self::Nameless => service.is_empty(),
            Self::Refused => false,
        }
    }

    /// The client's name, if the server's configuration gives it one.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        match self {
            Self::Entry(entry) => Some(&entry.name),
            Self::Anyone | Self::Nameless | Self::Refused => None,
        }
    }
}

/// The entries of one configuration.
#[derive(Clone, Debug, Default)]
pub struct ClientMatcher {
    entries: Vec<Arc<ClientEntry>>,
    /// Names of certificates in lower case, because no two entries differ by case alone.
    by_name: HashMap<String, usize>,
    by_fingerprint: HashMap<[u8; FINGERPRINT_BYTES], usize>,
    /// The shared token, of `[server.auth]`.
    shared: Option<Secret>,
}

impl ClientMatcher {
    /// A matcher with the entries of a server.
    #[must_use]
    pub fn new(server: &Server) -> Self {
        let mut matcher = Self {
            entries: server.clients.iter().cloned().map(Arc::new).collect(),
            ..Self::default()
        };
        if let ServerAuth::Token { token } = &server.auth {
            matcher.shared.clone_from(token);
        }
        for (index, entry) in server.clients.iter().enumerate() {
            match &entry.proof {
                Proof::Certificate(name) => {
                    matcher.by_name.insert(name.to_ascii_lowercase(), index);
                }
                Proof::Fingerprint(fingerprint) => {
                    matcher.by_fingerprint.insert(*fingerprint, index);
                }
                Proof::Token(_) => {}
            }
        }
        matcher
    }

    /// Finds the client for a certificate that was found valid. A fingerprint goes before names; if
    /// several names have entries, the first entry of the file is taken.
    #[must_use]
    pub fn by_certificate(&self, names: &CertificateNames) -> Admission {
        if self.entries.is_empty() {
            return Admission::Anyone;
        }
        if let Some(index) = self.by_fingerprint.get(&names.fingerprint) {
            return self.entry(*index);
        }
        // These are compared as written: only DNS names do not depend on case.
        let exact = names.common_names.iter().chain(&names.uri_names);
        let exact = exact.filter_map(|name| self.named(name).filter(|(_, entry)| *entry == name));
        let dns = names.dns_names.iter().filter_map(|name| self.named(name));
        match exact.chain(dns).map(|(index, _)| index).min() {
            Some(index) => self.entry(index),
            None => Admission::Refused,
        }
    }

    /// Finds the client whose token `proves` accepts. It is called for every token, whichever fits,
    /// so that the time does not reveal which one does.
    #[must_use]
    pub fn by_token(&self, proves: impl Fn(&Secret) -> bool) -> Admission {
        let mut found = None;
        for (index, entry) in self.entries.iter().enumerate() {
            if let Proof::Token(token) = &entry.proof
                && proves(token)
            {
                found = Some(index);
            }
        }
        let knows_shared = self.shared.as_ref().is_some_and(proves);
        match found {
            Some(index) => self.entry(index),
            None if !knows_shared => Admission::Refused,
            None if self.entries.is_empty() => Admission::Anyone,
            None => Admission::Nameless,
        }
    }

    /// The result by this configuration for a client that an earlier one admitted, without asking
    /// it for a proof again: `Refused` if it has to prove its identity again. `token` is the secret
    /// by which it was admitted, if it has no entry and there was one.
    #[must_use]
    pub fn again(&self, earlier: &Admission, token: Option<&Secret>) -> Admission {
        match earlier {
            Admission::Entry(entry) => {
                let same =
                    |it: &&Arc<ClientEntry>| it.name == entry.name && it.proof == entry.proof;
                let now = self.entries.iter().find(same);
                now.map_or(Admission::Refused, |it| Admission::Entry(Arc::clone(it)))
            }
            Admission::Anyone if self.entries.is_empty() && self.shared.as_ref() == token => {
                Admission::Anyone
            }
            Admission::Nameless if !self.entries.is_empty() && self.shared.as_ref() == token => {
                Admission::Nameless
            }
            Admission::Anyone | Admission::Nameless | Admission::Refused => Admission::Refused,
        }
    }

    /// The shared token of `[server.auth]`, if there is one.
    #[must_use]
    pub fn shared_token(&self) -> Option<&Secret> {
        self.shared.as_ref()
    }

    fn entry(&self, index: usize) -> Admission {
        self.entries.get(index).map_or(Admission::Refused, |entry| {
            Admission::Entry(Arc::clone(entry))
        })
    }

    /// The entry for a name in any case, and how the entry writes the name.
    fn named(&self, name: &str) -> Option<(usize, &str)> {
        let index = *self.by_name.get(&name.to_ascii_lowercase())?;
        match &self.entries.get(index)?.proof {
            Proof::Certificate(written) => Some((index, written)),
            Proof::Fingerprint(_) | Proof::Token(_) => None,
        }
    }
}
