//! When the certificates in use expire, for whoever asks.
//!
//! The process takes up what comes to be in their files, so these are read again, on the thread of
//! whoever asks, and not more often than [`READ_AGAIN`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use qmux_config::{Config, FileOrText, ServerAuth, first_expiry_unix_s, utc_text};

/// How old what was read from a file may be.
const READ_AGAIN: Duration = Duration::from_secs(10);

/// A certificate, or a file of several.
#[derive(Debug)]
struct Source {
    from: FileOrText,
    /// Of the one that expires first, in seconds since 1970.
    expiry_s: Option<i64>,
}

impl Source {
    fn new(from: &FileOrText) -> Source {
        let mut source = Source {
            from: from.clone(),
            expiry_s: None,
        };
        source.read();
        source
    }

    fn read(&mut self) {
        // A file that is being replaced leaves what was known.
        if let Ok(pem) = self.from.read_pem() {
            self.expiry_s = first_expiry_unix_s(&pem).or(self.expiry_s);
        }
    }
}

/// One of them as operators see it.
#[derive(Debug)]
pub(crate) struct CertificateView {
    /// The file, or the key of the config that holds the text.
    pub(crate) file: String,
    /// When it expires, in seconds since 1970; of several the first.
    pub(crate) expiry_s: i64,
    /// The same as text.
    pub(crate) not_after: String,
    /// Whole days until then; negative afterwards.
    pub(crate) days_left: i64,
}

/// All certificates that the config names.
#[derive(Debug)]
pub(crate) struct Certificates(Mutex<(Instant, Vec<Source>)>);

impl Certificates {
    /// Reads those of both roles.
    pub(crate) fn of(config: &Config) -> Certificates {
        Certificates(Mutex::new((Instant::now(), sources(config))))
    }

    /// Those of another configuration.
    pub(crate) fn change(&self, config: &Config) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), sources(config));
    }

    /// What is known now. May read files.
    pub(crate) fn views(&self) -> Vec<CertificateView> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (read_at, sources) = &mut *known;
        if read_at.elapsed() >= READ_AGAIN {
            *read_at = Instant::now();
            sources.iter_mut().for_each(Source::read);
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now_s = since.map_or(0, |since| since.as_secs().cast_signed());
        let view = |source: &Source| {
            let expiry_s = source.expiry_s?;
            Some(CertificateView {
                file: source.from.to_string(),
                expiry_s,
                not_after: utc_text(expiry_s).unwrap_or_default(),
                days_left: (expiry_s - now_s).div_euclid(24 * 60 * 60),
            })
        };
        sources.iter().filter_map(view).collect()
    }
}

fn sources(config: &Config) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    let mut add = |from: &FileOrText| {
        if !sources.iter().any(|source| source.from == *from) {
            sources.push(Source::new(from));
        }
    };
    if let Some(server) = &config.server {
        add(&server.tls.server_cert);
        if let ServerAuth::Mtls { ca_cert, .. } = &server.auth {
            add(ca_cert);
        }
    }
    if let Some(client) = &config.client {
        if let Some(pair) = &client.tls.client_cert {
            add(&pair.cert);
        }
        add(&client.tls.ca_cert);
    }
    sources
}
