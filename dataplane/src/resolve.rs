//! Names: the addresses behind `host:port`, kept fresh by one background thread for each.
//!
//! Resolving blocks, for seconds if the resolver is away, so no core does it, and no name waits for another one: cores
//! read the last good answer. A literal address never changes and costs nothing.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::jitter::jittered;

/// How soon a name that could not be resolved is asked for again, unless it is asked for more often anyway.
const RETRY: Duration = Duration::from_secs(1);

/// A host and port with its current addresses.
#[derive(Debug)]
pub(crate) struct Name {
    host: String,
    port: u16,
    literal: bool,
    addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Name {
    /// Resolves once, now. A name without an answer is kept and asked for again.
    pub(crate) fn new(host: &str, port: u16) -> Arc<Name> {
        let name = Name::later(host, port);
        name.refresh();
        name
    }

    /// Does not resolve yet what needs a resolver.
    pub(crate) fn later(host: &str, port: u16) -> Arc<Name> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let literal = bare.parse::<std::net::IpAddr>();
        let known = literal.iter().map(|ip| SocketAddr::new(*ip, port));
        Arc::new(Name {
            host: bare.into(),
            port,
            literal: literal.is_ok(),
            addresses: ArcSwap::from_pointee(known.collect()),
        })
    }

    /// True if the name is an address.
    pub(crate) fn is_literal(&self) -> bool {
        self.literal
    }

    /// The addresses of the last answer, in its order; empty if there was none.
    pub(crate) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Resolves now. True if there is an answer with an address; the last such answer outlives a failing resolver.
    pub(crate) fn refresh(&self) -> bool {
        if self.literal {
            return true;
        }
        match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(found) => {
                let found: Vec<_> = found.collect();
                if found.is_empty() {
                    tracing::debug!(host = self.host, "resolved to nothing");
                    return false;
                }
                if **self.addresses.load() != found {
                    tracing::debug!(host = self.host, addresses = ?found, "resolved");
                    self.addresses.store(Arc::new(found));
                }
                true
            }
            Err(error) => {
                tracing::debug!(host = self.host, %error, "cannot be resolved");
                false
            }
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Keeps `name` fresh for as long as the process runs: resolves it now and after each `interval` (a
/// little earlier, as clients that were started together must not ask together), and calls
/// `answered` with each good answer, whether it has changed or not. A literal address needs none of
/// this.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn keep_fresh(
    name: Arc<Name>,
    interval: Duration,
    answered: impl Fn(&[SocketAddr]) + Send + 'static,
) -> std::io::Result<()> {
    if name.literal {
        return Ok(());
    }
    std::thread::Builder::new()
        .name("resolver".into())
        .spawn(move || {
            loop {
                let good = name.refresh();
                if good {
                    answered(&name.addresses());
                }
                let pause = if good { interval } else { RETRY.min(interval) };
                std::thread::sleep(jittered(pause));
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_both_families_resolve_to_themselves() {
        assert_eq!(
            *Name::later("127.0.0.1", 80).addresses(),
            ["127.0.0.1:80".parse().expect("literal")]
        );
        let six = Name::new("[::1]", 80);
        assert_eq!(*six.addresses(), ["[::1]:80".parse().expect("literal")]);
        assert_eq!(six.to_string(), "[::1]:80");
    }

    #[test]
    fn a_name_without_an_answer_is_empty_not_fatal() {
        assert!(Name::new("no-such-host.invalid", 80).addresses().is_empty());
    }

    #[test]
    fn each_good_answer_is_told() {
        let (told, answers) = std::sync::mpsc::channel();
        let name = Name::later("localhost", 80);
        assert!(name.addresses().is_empty(), "not asked for yet");
        keep_fresh(name, Duration::from_millis(1), move |addresses| {
            // Fails only when the test is over.
            let _over = told.send(addresses.to_vec());
        })
        .expect("a thread");
        for _ in 0..2 {
            assert!(!answers.recv().expect("an answer").is_empty());
        }
    }
}
