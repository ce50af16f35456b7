//! Whether lanes to a server serve by the present configuration.
//!
//! When a reload changes what lanes to a server register with, new lanes are dialled, and those of
//! before serve until the new ones do. If the new ones never do, because their proxy does not
//! answer or their token is wrong, visitors notice nothing, but operators must: what they have
//! configured is not in use, and a restart would end what is. This file decides nothing about
//! lanes, does no I/O and knows no clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::server::ServerState;

/// Pause between two warnings about one configuration that does not serve.
const SAID_AGAIN: Duration = Duration::from_secs(300);

/// The configuration with which lanes to a server register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation {
    /// The number of the client's settings.
    settings: u64,
    /// The number of what is configured for the server.
    server: u64,
}

impl Generation {
    /// The present one of `server`, with the settings of this number.
    pub(crate) fn of(settings: u64, server: &ServerState) -> Generation {
        Generation {
            settings,
            server: server.configured().number,
        }
    }
}

/// What the lanes of one configuration have found out last.
#[derive(Debug)]
struct Found {
    generation: Generation,
    /// Why there is no lane; `None` if there is one.
    why_not: Option<Arc<str>>,
    said_at: Option<Instant>,
}

/// What is known of the lanes to one server.
#[derive(Debug, Default)]
pub(crate) struct TakeUp(Mutex<Option<Found>>);

/// Whether lanes of a newer configuration have found something out: another core may not have taken
/// that up yet.
fn is_newer(found: Option<&Found>, generation: Generation) -> bool {
    found.is_some_and(|it| it.generation > generation)
}

impl TakeUp {
    /// A lane by this configuration serves. Returns true if it was said before that none does.
    pub(crate) fn serves(&self, generation: Generation) -> bool {
        let mut found = self.found();
        if is_newer(found.as_ref(), generation) {
            return false;
        }
        let before = found.replace(Found {
            generation,
            why_not: None,
            said_at: None,
        });
        before.is_some_and(|it| it.generation == generation && it.said_at.is_some())
    }

    /// A lane by this configuration cannot be had, while one of an earlier one serves in its place.
    /// Returns true if that is to be said. If other lanes by this configuration serve, it is not
    /// the configuration that is wrong.
    pub(crate) fn fails(&self, generation: Generation, why: &str, now: Instant) -> bool {
        let mut found = self.found();
        if is_newer(found.as_ref(), generation) {
            return false;
        }
        let earlier = found.as_ref().filter(|it| it.generation == generation);
        if earlier.is_some_and(|it| it.why_not.is_none()) {
            return false;
        }
        let said_at = earlier.and_then(|it| it.said_at);
        let is_due = said_at.is_none_or(|at| now >= at + SAID_AGAIN);
        *found = Some(Found {
            generation,
            why_not: Some(why.into()),
            said_at: if is_due { Some(now) } else { said_at },
        });
        is_due
    }

    /// Whether lanes by this configuration serve (`None`), or why not, if that is known.
    pub(crate) fn judged(&self, generation: Generation) -> Option<Option<Arc<str>>> {
        let found = self.found();
        let of_this = found.as_ref().filter(|it| it.generation == generation);
        of_this.map(|it| it.why_not.clone())
    }

    fn found(&self) -> MutexGuard<'_, Option<Found>> {
        // It is locked only when a lane has registered, or could not be had after a reload.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Generation = Generation {
        settings: 1,
        server: 1,
    };
    const SECOND: Generation = Generation {
        settings: 1,
        server: 2,
    };

    #[test]
    fn what_does_not_serve_is_said_once_and_then_at_a_slow_pace() {
        let (take_up, start) = (TakeUp::default(), Instant::now());
        assert!(!take_up.serves(FIRST));
        assert_eq!(take_up.judged(FIRST), Some(None));
        assert_eq!(take_up.judged(SECOND), None);
        assert!(take_up.fails(SECOND, "refused", start));
        assert!(!take_up.fails(SECOND, "refused again", start + SAID_AGAIN / 2));
        assert_eq!(take_up.judged(SECOND), Some(Some("refused again".into())));
        assert!(take_up.fails(SECOND, "refused", start + SAID_AGAIN));
        assert!(!take_up.fails(SECOND, "refused", start + SAID_AGAIN * 3 / 2));
        assert!(take_up.serves(SECOND), "that is news");
        assert!(!take_up.serves(SECOND));
        // One lane of several fails.
        assert!(!take_up.fails(SECOND, "refused", start + SAID_AGAIN * 3));
        assert_eq!(take_up.judged(SECOND), Some(None));
        // A lane that another core begins by what it had before says nothing about this.
        assert!(!take_up.fails(FIRST, "refused", start + SAID_AGAIN * 3));
        assert!(!take_up.serves(FIRST));
        assert_eq!(take_up.judged(SECOND), Some(None));
    }
}
