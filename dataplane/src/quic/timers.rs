//! Deadlines of an endpoint's lanes: a heap with lazy deletion.
//!
//! QUIC timers mostly move into the future with every packet. So a lane keeps its earliest entry in
//! the heap. When that entry comes due, the lane's real deadline is checked and, if it is later,
//! entered again. So a packet costs no heap operation.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Deadlines by key; the owner of a key remembers the entry that counts (see [`Timers::arm`]).
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl Timers {
    /// Makes sure that `key` comes due at `deadline` or before. `armed` is the caller's record of
    /// the earliest entry of that key, which is kept up to date here.
    pub(crate) fn arm(&mut self, key: u64, deadline: Option<Instant>, armed: &mut Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if armed.is_none_or(|at| deadline < at) {
            self.heap.push(Reverse((deadline, key)));
            *armed = Some(deadline);
        }
    }

    /// The time of the earliest entry.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one entry that is due, with its time.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, u64)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_later_deadline_adds_no_entry_and_an_earlier_one_comes_up_first() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        let mut armed = None;
        timers.arm(1, Some(at(10)), &mut armed);
        timers.arm(1, Some(at(20)), &mut armed);
        assert_eq!(timers.heap.len(), 1);
        timers.arm(1, Some(at(5)), &mut armed);
        assert_eq!(armed, Some(at(5)));
        assert_eq!(timers.pop_due(at(4)), None);
        assert_eq!(timers.pop_due(at(5)), Some((at(5), 1)));
        assert_eq!(timers.pop_due(at(10)), Some((at(10), 1)));
        assert_eq!(timers.next(), None);
    }
}
