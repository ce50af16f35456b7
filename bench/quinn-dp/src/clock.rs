//! A clock whose time fits into an atomic integer: milliseconds since the program first asked for
//! the time.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time at which something last happened.
#[derive(Debug)]
pub(crate) struct LastSeen(AtomicU64);

/// The time now, in milliseconds.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl LastSeen {
    pub(crate) fn now() -> Self {
        Self(AtomicU64::new(now_ms()))
    }

    /// Notes that it happened at `now_ms`. The caller passes the time from [`now_ms()`], so that a
    /// batch of packets reads the clock once.
    pub(crate) fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }

    /// The time since it last happened.
    pub(crate) fn age(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.0.load(Ordering::Relaxed)))
    }
}
