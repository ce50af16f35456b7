//! Names: the addresses behind `host:port`, kept fresh by one background thread.
//!
//! Resolving blocks, so no core does it: cores read the last answer. A literal address never changes and costs
//! nothing.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

/// How long an answer is used before the name is asked for again. Kubernetes' DNS answers live 5 to 30 seconds.
const REFRESH: Duration = Duration::from_secs(10);

/// How soon a name that could not be resolved is asked for again.
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
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let literal = bare.parse::<std::net::IpAddr>().is_ok();
        let name = Name {
            host: bare.into(),
            port,
            literal,
            addresses: ArcSwap::default(),
        };
        name.refresh();
        Arc::new(name)
    }

    /// The addresses of the last answer, in its order; empty if there was none.
    pub(crate) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// True if there is an answer. The last good one outlives a failing resolver.
    fn refresh(&self) -> bool {
        match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(found) => {
                let found: Vec<_> = found.collect();
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

/// Keeps `names` fresh for as long as the process runs. Literal addresses need no thread.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn keep_fresh(names: Vec<Arc<Name>>) -> std::io::Result<()> {
    let names: Vec<_> = names.into_iter().filter(|name| !name.literal).collect();
    if names.is_empty() {
        return Ok(());
    }
    std::thread::Builder::new()
        .name("resolver".into())
        .spawn(move || {
            loop {
                let failed = names.iter().filter(|name| !name.refresh()).count();
                std::thread::sleep(if failed == 0 { REFRESH } else { RETRY });
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
            *Name::new("127.0.0.1", 80).addresses(),
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
}
