//! Which entry of `[[server.clients]]` an authenticated client has, and what it may serve then.
//!
//! Built once from a configuration, then only read: it can be shared by all cores, and be replaced
//! as a whole when the configuration changes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::certificate_names::{CertificateNames, FINGERPRINT_BYTES};
use crate::client_entry::{ClientEntry, Proof};
use crate::secret::Secret;
use crate::server::{Server, ServerAuth};

/// What became of a client that has proved who it is, or tried to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There are no entries: it may serve everything, and is called what it calls itself.
    Anyone,
    /// It is the client of this entry.
    Entry(Arc<ClientEntry>),
    /// It has no entry, but knows the token of all: it may serve the service without a name, and is
    /// called what it calls itself.
    Nameless,
    /// It has no entry, or proves nothing.
    Refused,
}

impl Admission {
    /// Whether the client may serve the service of this name; the empty one is the service without
    /// a name.
    #[must_use]
    pub fn may_serve(&self, service: &str) -> bool {
        match self {
            Self::Anyone => true,
            Self::Entry(entry) => entry.may_serve(service),
            Self::Nameless => service.is_empty(),
            Self::Refused => false,
        }
    }

    /// What the client is called, if that is not for itself to say.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        match self {
            Self::Entry(entry) => Some(&entry.name),
            Self::Anyone | Self::Nameless | Self::Refused => None,
        }
    }
}

/// The entries of one configuration, to be asked.
#[derive(Clone, Debug, Default)]
pub struct ClientMatcher {
    entries: Vec<Arc<ClientEntry>>,
    /// Names of certificates in lower case: no two entries differ by case alone.
    by_name: HashMap<String, usize>,
    by_fingerprint: HashMap<[u8; FINGERPRINT_BYTES], usize>,
    /// The token of `[server.auth]`.
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

    /// The client that has shown a certificate which was found good. A fingerprint goes before
    /// names; among the entries of several names, the first of the file is taken.
    #[must_use]
    pub fn by_certificate(&self, names: &CertificateNames) -> Admission {
        if self.entries.is_empty() {
            return Admission::Anyone;
        }
        if let Some(index) = self.by_fingerprint.get(&names.fingerprint) {
            return self.entry(*index);
        }
        // As they are written: only DNS names are the same in any case.
        let exact = names.common_names.iter().chain(&names.uri_names);
        let exact = exact.filter_map(|name| self.named(name).filter(|(_, entry)| *entry == name));
        let dns = names.dns_names.iter().filter_map(|name| self.named(name));
        match exact.chain(dns).map(|(index, _)| index).min() {
            Some(index) => self.entry(index),
            None => Admission::Refused,
        }
    }

    /// The client whose token `proves` accepts. It is asked about every token, whichever fits, so
    /// that the time tells nothing of which one does.
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

    /// What would become now of a client that an earlier configuration admitted, without asking it
    /// again for a proof: `Refused` if it has to prove anew who it is. `token` is the secret by
    /// which it was admitted, if it has no entry and there was one.
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

    /// The token of `[server.auth]`, if clients may prove that they know it.
    #[must_use]
    pub fn shared_token(&self) -> Option<&Secret> {
        self.shared.as_ref()
    }

    fn entry(&self, index: usize) -> Admission {
        self.entries.get(index).map_or(Admission::Refused, |entry| {
            Admission::Entry(Arc::clone(entry))
        })
    }

    /// The entry for a name in any case, and how its name is written.
    fn named(&self, name: &str) -> Option<(usize, &str)> {
        let index = *self.by_name.get(&name.to_ascii_lowercase())?;
        match &self.entries.get(index)?.proof {
            Proof::Certificate(written) => Some((index, written)),
            Proof::Fingerprint(_) | Proof::Token(_) => None,
        }
    }
}
