//! When the certificates in use expire, and when revocation lists are due, for the admin endpoint
//! and the log.
//!
//! A server takes up new files by a reload, and until then goes on with what it has, whatever the
//! files contain. A client takes them up by itself, so its files are read again, on the thread of
//! whoever asks, and not more often than [`READ_AGAIN`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use qmux_config::{
    Config, FileOrText, ServerAuth, first_expiry_unix_s, first_next_update_unix_s, utc_text,
};

/// The greatest age of what was read from a file.
const READ_AGAIN: Duration = Duration::from_secs(10);

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Certificates.
    Certificates,
    /// Revocation lists.
    RevocationLists,
}

/// A certificate or list, or a file with several.
#[derive(Debug)]
struct Source {
    kind: Kind,
    from: FileOrText,
    /// Whether the process soon uses what is put into the file.
    follows_file: bool,
    /// The expiry of the one that expires first, in seconds since 1970.
    expiry_s: Option<i64>,
    /// Whether it is known that it has expired.
    is_known_as_expired: bool,
}

impl Source {
    fn new(kind: Kind, from: &FileOrText, follows_file: bool, now_s: i64) -> Source {
        let mut source = Source {
            kind,
            from: from.clone(),
            follows_file,
            expiry_s: None,
            is_known_as_expired: false,
        };
        source.read();
        // The check of the configuration warns of one that has expired already.
        source.is_known_as_expired = source.has_expired(now_s);
        source
    }

    fn has_expired(&self, now_s: i64) -> bool {
        self.expiry_s.is_some_and(|expiry_s| expiry_s < now_s)
    }

    fn read(&mut self) {
        // While a file is being replaced, what was known stays.
        if let Ok(pem) = self.from.read_pem() {
            let expiry_s = match self.kind {
                Kind::Certificates => first_expiry_unix_s(&pem),
                Kind::RevocationLists => first_next_update_unix_s(&pem),
            };
            self.expiry_s = expiry_s.or(self.expiry_s);
        }
    }
}

/// A certificate or list as operators see it.
#[derive(Debug)]
pub(crate) struct CertificateView {
    /// The file, or the key of the configuration that contains the text.
    pub(crate) file: String,
    /// The time at which it expires, in seconds since 1970; the first one of several.
    pub(crate) expiry_s: i64,
    /// The time at which it expires, as text.
    pub(crate) not_after: String,
    /// Whole days until it expires; negative afterwards.
    pub(crate) days_left: i64,
}

/// All certificates that the configuration names.
#[derive(Debug)]
pub(crate) struct Certificates(Mutex<(Instant, Vec<Source>)>);

impl Certificates {
    /// Reads the certificates of both roles.
    pub(crate) fn of(config: &Config) -> Certificates {
        Certificates(Mutex::new((Instant::now(), sources(config))))
    }

    /// Changes to the certificates of another configuration.
    pub(crate) fn change(&self, config: &Config) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), sources(config));
    }

    /// The files with revocation lists of which the first has expired since the last call. It reads
    /// none: a list that has changed is taken up as another configuration.
    pub(crate) fn lists_just_expired(&self) -> Vec<String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now_s = now_s();
        let lists = known.1.iter_mut();
        let expired = lists.filter_map(|it| {
            let is_news = it.kind == Kind::RevocationLists
                && it.has_expired(now_s)
                && !std::mem::replace(&mut it.is_known_as_expired, true);
            is_news.then(|| it.from.to_string())
        });
        expired.collect()
    }

    /// What is known now of the certificates of this kind. This may read files.
    pub(crate) fn views(&self, kind: Kind) -> Vec<CertificateView> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (read_at, sources) = &mut *known;
        if read_at.elapsed() >= READ_AGAIN {
            *read_at = Instant::now();
            let following = sources.iter_mut().filter(|it| it.follows_file);
            following.for_each(Source::read);
        }
        let now_s = now_s();
        let view = |source: &Source| {
            let expiry_s = source.expiry_s?;
            Some(CertificateView {
                file: source.from.to_string(),
                expiry_s,
                not_after: utc_text(expiry_s).unwrap_or_default(),
                days_left: (expiry_s - now_s).div_euclid(24 * 60 * 60),
            })
        };
        let of_kind = sources.iter().filter(|it| it.kind == kind);
        of_kind.filter_map(view).collect()
    }
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}

fn sources(config: &Config) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    let now_s = now_s();
    let mut add = |kind, from: &FileOrText, follows_file| {
        if !sources.iter().any(|it| it.from == *from) {
            sources.push(Source::new(kind, from, follows_file, now_s));
        }
    };
    if let Some(server) = &config.server {
        add(Kind::Certificates, &server.tls.server_cert, false);
        if let ServerAuth::Mtls { ca_cert, crl } = &server.auth {
            add(Kind::Certificates, ca_cert, false);
            crl.iter()
                .for_each(|crl| add(Kind::RevocationLists, crl, false));
        }
    }
    if let Some(client) = &config.client {
        if let Some(pair) = &client.tls.client_cert {
            add(Kind::Certificates, &pair.cert, true);
        }
        add(Kind::Certificates, &client.tls.ca_cert, true);
    }
    sources
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qmux_config::certs::{CertsRequest, generate, write};

    use super::*;

    fn certs(dir: &Path, days: u32) {
        let request = CertsRequest {
            server_names: vec!["tunnel.test".into()],
            days,
        };
        let certs = generate(&request).expect("certificates");
        write(&certs, dir, true).expect("written");
    }

    #[test]
    fn a_servers_certificate_is_the_one_that_was_taken_up_whatever_its_file_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        certs(dir.path(), 30);
        let text = r#"
            [[server.listeners]]
            quic_addr = "127.0.0.1:8443"
            traffic_addr = "127.0.0.1:8080"
            protocol = "tcp"
            [server.auth]
            method = "token"
            token = "the secret of this test"
            [server.tls]
            server_cert_file = "server.crt"
            server_key_file = "server.key"
        "#;
        let config = Config::parse(text, &dir.path().join("dp.toml")).expect("a config");
        let certificates = Certificates::of(&config);
        let read_long_ago = || {
            let long_ago = Instant::now().checked_sub(2 * READ_AGAIN);
            certificates.0.lock().expect("nobody has panicked").0 = long_ago.expect("uptime");
        };
        let expiry_s = || {
            read_long_ago();
            certificates.views(Kind::Certificates)[0].expiry_s
        };
        let before = expiry_s();
        certs(dir.path(), 60);
        assert_eq!(expiry_s(), before);
        certificates.change(&config);
        assert!(expiry_s() > before);
    }
}
