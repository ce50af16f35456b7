//! Name resolution: the addresses behind `host:port`, kept fresh by one background thread for each
//! name.
//!
//! Resolving blocks, for seconds if the resolver is away. So no core does it, and no name waits for
//! another one: cores read the last good answer. A literal address never changes and costs nothing.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::jitter::jittered;

/// How soon a name that could not be resolved is tried again, unless it is resolved more often
/// anyway.
const RETRY: Duration = Duration::from_secs(1);

/// How often the log repeats that a name cannot be resolved.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// A host and port with its current addresses.
#[derive(Debug)]
pub(crate) struct Name {
    host: String,
    port: u16,
    /// The place of the name in the configuration, for messages.
    setting: &'static str,
    literal: bool,
    addresses: ArcSwap<Vec<SocketAddr>>,
    complaints: Mutex<Complaints>,
    /// Whether it has been looked up, with or without success.
    asked: AtomicBool,
    /// Whether nobody wants to know its addresses any more.
    given_up: AtomicBool,
}

/// What to log about an attempt to resolve a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Say {
    Nothing,
    /// The attempt has failed; this many attempts have failed in a row.
    Fails(u32),
    /// The attempt has succeeded after others had failed.
    Works,
}

/// Decides which failures are worth a line: the first one at once, then one a minute, and the end
/// of it.
#[derive(Debug, Default)]
struct Complaints {
    failures: u32,
    said_at: Option<Instant>,
}

impl Complaints {
    fn attempt(&mut self, worked: bool, now: Instant) -> Say {
        if worked {
            self.failures = 0;
            return match self.said_at.take() {
                Some(_) => Say::Works,
                None => Say::Nothing,
            };
        }
        self.failures = self.failures.saturating_add(1);
        let due = |at: Instant| now.saturating_duration_since(at) >= COMPLAINT_PAUSE;
        if self.said_at.is_some_and(|at| !due(at)) {
            return Say::Nothing;
        }
        self.said_at = Some(now);
        Say::Fails(self.failures)
    }
}

impl Name {
    /// A name that is not resolved yet if it needs a resolver: that may take long, and nobody must
    /// wait for it at the start. `setting` says where the name stands in the configuration.
    pub(crate) fn later(host: &str, port: u16, setting: &'static str) -> Arc<Name> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let literal = bare.parse::<std::net::IpAddr>();
        let known = literal.iter().map(|ip| SocketAddr::new(*ip, port));
        Arc::new(Name {
            host: bare.into(),
            port,
            setting,
            literal: literal.is_ok(),
            asked: AtomicBool::new(literal.is_ok()),
            given_up: AtomicBool::new(false),
            addresses: ArcSwap::from_pointee(known.collect()),
            complaints: Mutex::default(),
        })
    }

    /// Whether the name is a literal address.
    pub(crate) fn is_literal(&self) -> bool {
        self.literal
    }

    /// Stops keeping the name fresh; its last addresses stay.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Whether the name is not kept fresh any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether there has been an answer, or none came when there should have been one.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// The addresses of the last answer, in its order; empty if there was none.
    pub(crate) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Sets the addresses, in place of an answer.
    #[cfg(test)]
    pub(crate) fn set(&self, addresses: &[SocketAddr]) {
        self.addresses.store(Arc::new(addresses.to_vec()));
    }

    /// Resolves the name now. Returns true if there is an answer with an address; the last such
    /// answer is kept while the resolver fails. Failures are logged, at most once a minute.
    pub(crate) fn refresh(&self) -> bool {
        if self.literal {
            return true;
        }
        let result = self.resolve();
        self.asked.store(true, Ordering::Release);
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let say = complaints.attempt(result.is_ok(), Instant::now());
        drop(complaints);
        match (&result, say) {
            (Err(why), Say::Fails(failures)) => {
                let host = &self.host;
                let meanwhile = if self.addresses.load().is_empty() {
                    "there is no address to go to yet"
                } else {
                    "its last addresses are used further"
                };
                tracing::warn!(
                    host,
                    why,
                    failures,
                    "{host} cannot be resolved ({why}); {meanwhile}, and it is tried again. Check \
                     {}, and this host's DNS: getent hosts {host}",
                    self.setting
                );
            }
            (Err(why), _) => tracing::debug!(host = self.host, why, "still cannot be resolved"),
            (_, Say::Works) => tracing::info!(host = self.host, "{} is resolved again", self.host),
            (Ok(()), _) => {}
        }
        result.is_ok()
    }

    /// Asks the resolver.
    ///
    /// # Errors
    /// The reason why there is no address.
    fn resolve(&self) -> Result<(), String> {
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        // The part before the colon is always the same.
        let text = |error: std::io::Error| {
            let text = error.to_string();
            let end = text.split_once(": ").map(|(_, end)| end.to_owned());
            end.unwrap_or(text)
        };
        let found: Vec<_> = found.map_err(text)?.collect();
        if found.is_empty() {
            return Err("the answer holds no address".into());
        }
        if **self.addresses.load() != found {
            let all: Vec<String> = found.iter().map(ToString::to_string).collect();
            tracing::debug!(host = self.host, addresses = all.join(", "), "resolved");
            self.addresses.store(Arc::new(found));
        }
        Ok(())
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

/// A thread that keeps a name fresh once it is told to begin. It ends if it never is.
#[derive(Debug)]
#[must_use = "the name is kept fresh only once it begins"]
pub(crate) struct Keeper(Option<SyncSender<()>>);

impl Keeper {
    /// Keeps the name fresh from now on, until it is given up.
    pub(crate) fn begin(self) {
        if let Some(begin) = self.0 {
            // The channel has room for the only message that is ever sent.
            let _begun = begin.send(());
        }
    }
}

/// Prepares to keep `name` fresh until it is given up. It will be resolved at the beginning and
/// after each `interval` (jittered, because clients that were started together must not ask
/// together), and `answered` is called with each good answer, whether it has changed or not, and
/// with none after each attempt that fails before there was one. A literal address needs none of
/// this.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn keeper(
    name: &Arc<Name>,
    interval: Duration,
    answered: impl Fn(&[SocketAddr]) + Send + 'static,
) -> std::io::Result<Keeper> {
    if name.literal {
        return Ok(Keeper(None));
    }
    let name = Arc::clone(name);
    let (begin, begun) = sync_channel(1);
    std::thread::Builder::new()
        .name("resolver".into())
        .spawn(move || {
            if begun.recv().is_err() {
                return;
            }
            while !name.is_given_up() {
                let good = name.refresh();
                let addresses = name.addresses();
                if (good || addresses.is_empty()) && !name.is_given_up() {
                    answered(&addresses);
                }
                let pause = if good { interval } else { RETRY.min(interval) };
                std::thread::sleep(jittered(pause));
            }
        })?;
    Ok(Keeper(Some(begin)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_both_families_resolve_to_themselves() {
        assert_eq!(
            *Name::later("127.0.0.1", 80, "a test").addresses(),
            ["127.0.0.1:80".parse().expect("literal")]
        );
        let six = Name::later("[::1]", 80, "a test");
        assert!(six.was_asked());
        assert_eq!(*six.addresses(), ["[::1]:80".parse().expect("literal")]);
        assert_eq!(six.to_string(), "[::1]:80");
    }

    #[test]
    fn a_name_without_an_answer_is_empty_not_fatal() {
        let name = Name::later("no-such-host.invalid", 80, "a test");
        assert!(!name.was_asked());
        assert!(!name.refresh());
        assert!(name.was_asked() && name.addresses().is_empty());
    }

    #[test]
    fn the_first_failure_is_said_at_once_then_one_a_minute_and_the_end_of_it() {
        let start = Instant::now();
        let mut complaints = Complaints::default();
        let mut at =
            |second, worked| complaints.attempt(worked, start + Duration::from_secs(second));
        assert_eq!(at(0, true), Say::Nothing);
        assert_eq!(at(1, false), Say::Fails(1));
        for second in 2..61 {
            assert_eq!(at(second, false), Say::Nothing);
        }
        assert_eq!(at(61, false), Say::Fails(61));
        assert_eq!(at(62, true), Say::Works);
        assert_eq!(at(63, true), Say::Nothing);
        assert_eq!(at(64, false), Say::Fails(1), "a new failure is news");
    }

    #[test]
    fn each_good_answer_is_told_from_the_beginning_on() {
        let (told, answers) = std::sync::mpsc::channel();
        let name = Name::later("localhost", 80, "a test");
        assert!(name.addresses().is_empty(), "not asked for yet");
        let keeper = keeper(&name, Duration::from_millis(1), move |addresses| {
            // This fails only when the test is over.
            let _over = told.send(addresses.to_vec());
        });
        keeper.expect("a thread").begin();
        for _ in 0..2 {
            assert!(!answers.recv().expect("an answer").is_empty());
        }
    }

    #[test]
    fn a_keeper_that_never_begins_asks_nobody_and_ends() {
        let (told, answers) = std::sync::mpsc::channel::<()>();
        let name = Name::later("localhost", 80, "a test");
        let keeper = keeper(&name, Duration::from_millis(1), move |_| {
            let _over = told.send(());
        });
        drop(keeper.expect("a thread"));
        assert!(answers.recv().is_err(), "its thread has ended");
        assert!(!name.was_asked());
    }
}
