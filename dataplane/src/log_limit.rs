//! A bound on how often one thing is logged: a peer's fault must not fill the disk.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Lines that pass per [`WINDOW`].
const LINES_PER_WINDOW: u32 = 10;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts the lines of one kind of event on one core.
#[derive(Debug)]
pub(crate) struct LogLimit {
    since: Cell<Instant>,
    passed: Cell<u32>,
    suppressed: Cell<u64>,
}

impl LogLimit {
    /// Nothing logged yet.
    pub(crate) fn new(now: Instant) -> LogLimit {
        LogLimit {
            since: Cell::new(now),
            passed: Cell::new(0),
            suppressed: Cell::new(0),
        }
    }

    /// Whether to log now; if so, how many lines were suppressed since the last one that passed.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since.get()) >= WINDOW {
            self.since.set(now);
            self.passed.set(0);
        }
        if self.passed.get() >= LINES_PER_WINDOW {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.passed.set(self.passed.get() + 1);
        Some(self.suppressed.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_pass_then_the_rest_is_counted_until_the_next_window() {
        let start = Instant::now();
        let limit = LogLimit::new(start);
        let passed = (0..100).filter(|_| limit.pass(start).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.pass(start + WINDOW), Some(90));
        assert_eq!(limit.pass(start + WINDOW), Some(0));
    }
}
