//! The expiry of flows: each key is watched with one entry, and looked at again when that entry
//! comes due.
//!
//! A datagram only stores its time in its flow; nothing is moved. When an entry comes due and its
//! flow has been active since, the entry is put back for the time that follows from that. This
//! costs one heap operation per flow and timeout.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::room;

/// Entries of closed flows that are kept until they come due, beyond one for each flow. If there
/// are more they are swept out, so that flows which open and close quickly do not fill the memory
/// for a whole timeout.
const STALE_MAX: usize = 4_096;

/// The deadlines of a set of flows with one timeout.
#[derive(Debug)]
pub(super) struct Expiry<K> {
    timeout: Duration,
    deadlines: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Copy + Ord> Expiry<K> {
    pub(super) fn new(timeout: Duration) -> Expiry<K> {
        Expiry {
            timeout,
            deadlines: BinaryHeap::new(),
        }
    }

    /// Watches a new key, never used before. `live` is the number of keys that are in use, with
    /// this one; `is_live` tells which they are.
    pub(super) fn watch(&mut self, key: K, now: Instant, live: usize, is_live: impl Fn(K) -> bool) {
        if self.deadlines.len() > 2 * live + STALE_MAX {
            self.deadlines.retain(|Reverse((_, key))| is_live(*key));
        }
        self.deadlines.push(Reverse((now + self.timeout, key)));
    }

    /// The next key whose flow was last active a timeout ago or longer. `last_activity` returns
    /// `None` for a closed flow. The key is not watched any more; its flow must be closed.
    pub(super) fn next_due(
        &mut self,
        now: Instant,
        last_activity: impl Fn(K) -> Option<Instant>,
    ) -> Option<K> {
        while let Some(&Reverse((deadline, key))) = self.deadlines.peek()
            && deadline <= now
        {
            self.deadlines.pop();
            let Some(active_at) = last_activity(key) else {
                continue;
            };
            let deadline = active_at + self.timeout;
            if deadline <= now {
                return Some(key);
            }
            self.deadlines.push(Reverse((deadline, key)));
        }
        None
    }

    /// Gives memory back after a flood.
    pub(super) fn give_room_back(&mut self) {
        let (entries, capacity) = (self.deadlines.len(), self.deadlines.capacity());
        if capacity > room::CAPACITY_KEPT && entries < capacity / 4 {
            self.deadlines.shrink_to(2 * entries);
        }
    }

    /// Number of entries, of live and of closed flows.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.deadlines.len()
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.deadlines.capacity()
    }

    /// Number of entries that are allowed with `live` flows.
    #[cfg(test)]
    pub(super) fn entries_max(live: usize) -> usize {
        2 * live + STALE_MAX + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn activity_puts_the_deadline_off() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let mut expiry = Expiry::new(TIMEOUT);
        expiry.watch(1, start, 1, |_| true);
        assert_eq!(expiry.next_due(second(9), |_| Some(start)), None);
        assert_eq!(expiry.next_due(second(10), |_| Some(second(4))), None);
        assert_eq!(expiry.next_due(second(13), |_| Some(second(4))), None);
        assert_eq!(expiry.next_due(second(14), |_| Some(second(4))), Some(1));
        assert_eq!(expiry.next_due(second(99), |_| Some(second(4))), None);
    }

    #[test]
    fn closed_flows_leave_a_bounded_number_of_entries() {
        let start = Instant::now();
        let mut expiry = Expiry::new(TIMEOUT);
        for key in 0..100_000u64 {
            expiry.watch(key, start, 1, |live| live == key);
            assert!(expiry.entries() <= Expiry::<u64>::entries_max(1));
        }
    }
}
