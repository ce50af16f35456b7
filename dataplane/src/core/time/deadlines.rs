//! The deadlines of one core's sleeping tasks: a binary heap from which any entry can be removed.
//!
//! It uses no clock and no runtime. A sleep that is dropped early removes its deadline, so the heap
//! holds only deadlines that a task waits for. Entries are reused: a core allocates only when it
//! has more sleepers than ever before.

use std::task::Waker;
use std::time::Instant;

/// The index of one sleeper's entry, valid until [`Deadlines::remove`].
pub(super) type Key = u32;

/// Deadlines, each with the task that waits for it. The earliest is taken out first, equal ones in
/// the order in which they were added.
#[derive(Debug)]
pub(super) struct Deadlines {
    entries: Vec<Entry>,
    /// Entries that are not in use.
    free: Vec<Key>,
    /// Entries that are not due yet, as a heap: each is no earlier than its parent, which is at
    /// index `(i - 1) / 2`.
    heap: Vec<Key>,
    inserted: u64,
}

#[derive(Debug)]
struct Entry {
    /// The deadline, and a number that tells equal ones apart.
    at: (Instant, u64),
    waker: Option<Waker>,
    /// The index in the heap; `None` once the entry was taken out of the heap, or while it is not
    /// in use.
    place: Option<usize>,
}

impl Deadlines {
    /// No deadlines.
    pub(super) const fn new() -> Deadlines {
        Deadlines {
            entries: Vec::new(),
            free: Vec::new(),
            heap: Vec::new(),
            inserted: 0,
        }
    }

    /// Adds a deadline.
    pub(super) fn insert(&mut self, at: Instant, waker: Waker) -> Key {
        self.inserted += 1;
        let entry = Entry {
            at: (at, self.inserted),
            waker: Some(waker),
            place: Some(self.heap.len()),
        };
        let key = if let Some(key) = self.free.pop() {
            self.entries[key as usize] = entry;
            key
        } else {
            self.entries.push(entry);
            // Four billion sleeping tasks do not fit into a machine.
            Key::try_from(self.entries.len() - 1).unwrap_or(Key::MAX)
        };
        self.heap.push(key);
        self.rise(self.heap.len() - 1);
        key
    }

    /// Whether the deadline was taken out, because it was due.
    pub(super) fn is_out(&self, key: Key) -> bool {
        self.entries[key as usize].place.is_none()
    }

    /// Sets the waker that [`Self::pop_due`] returns when the deadline is due. Returns the previous
    /// waker. The caller drops it while nothing is borrowed, because that may drop its task.
    #[must_use]
    pub(super) fn set_waker(&mut self, key: Key, waker: &Waker) -> Option<Waker> {
        let known = &mut self.entries[key as usize].waker;
        if known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            return None;
        }
        known.replace(waker.clone())
    }

    /// Frees the entry, whether it was taken out or not. Returns the waker, as [`Self::set_waker`]
    /// does.
    #[must_use]
    pub(super) fn remove(&mut self, key: Key) -> Option<Waker> {
        if let Some(place) = self.entries[key as usize].place {
            self.take_out(place);
        }
        self.free.push(key);
        self.entries[key as usize].waker.take()
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = *self.heap.first()?;
        Some(self.entries[first as usize].at.0)
    }

    /// Takes out one deadline that is due at `now`; returns the waker.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        if self.next()? > now {
            return None;
        }
        let key = self.heap[0];
        self.take_out(0);
        self.entries[key as usize].waker.take()
    }

    fn at(&self, place: usize) -> (Instant, u64) {
        self.entries[self.heap[place] as usize].at
    }

    fn take_out(&mut self, place: usize) {
        let key = self.heap.swap_remove(place);
        self.entries[key as usize].place = None;
        if place < self.heap.len() {
            self.note_place(place);
            let place = self.rise(place);
            self.sink(place);
        }
    }

    /// Moves the entry upwards as far as it belongs; returns its new index.
    fn rise(&mut self, mut place: usize) -> usize {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.at(parent) <= self.at(place) {
                break;
            }
            self.swap(parent, place);
            place = parent;
        }
        place
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            let Some(child) = [left, left + 1]
                .into_iter()
                .filter(|child| *child < self.heap.len())
                .min_by_key(|child| self.at(*child))
            else {
                return;
            };
            if self.at(place) <= self.at(child) {
                return;
            }
            self.swap(place, child);
            place = child;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.note_place(a);
        self.note_place(b);
    }

    fn note_place(&mut self, place: usize) {
        let key = self.heap[place];
        self.entries[key as usize].place = Some(place);
    }
}

#[cfg(test)]
#[path = "deadlines_tests.rs"]
mod tests;
