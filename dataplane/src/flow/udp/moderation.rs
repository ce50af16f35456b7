//! How often a socket is looked into whose datagrams keep coming.
//!
//! Each look that finds a few datagrams costs a core its waking, a receive call, a flush of the
//! lane and a send, and costs the other end as much: some 5 µs beside the 2 µs of a datagram. So
//! where datagrams come fast, looks are [`PAUSE`](crate::core::pause::PAUSE) apart, as the
//! interrupts of a network card are. It halved the turns at 100,000 datagrams of 1,150 bytes a
//! second, and took 15 % off the CPU. Where few come, or where they come in bunches anyway, nothing
//! waits.
//!
//! [`Moderation`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time over which datagrams and looks are counted.
const WINDOW: Duration = Duration::from_millis(1);

/// Least number of datagrams in a window for which it is worth waiting: 64,000 a second, some six
/// in a pause.
const DATAGRAMS_MIN: u32 = 64;

/// Least number of looks in a window that a pause would bring together: 60 µs apart.
const LOOKS_MIN: u32 = 16;

/// The recent past of one socket.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    window_began: Cell<Option<Instant>>,
    datagrams: Cell<u32>,
    looks: Cell<u32>,
    is_fast: Cell<bool>,
    /// Whether nothing has come since the last pause began.
    found_nothing: Cell<bool>,
}

impl Moderation {
    /// Notes that a receive call has brought so many datagrams.
    pub(super) fn received(&self, datagrams: u32) {
        self.datagrams
            .set(self.datagrams.get().saturating_add(datagrams));
        self.found_nothing.set(false);
    }

    /// Notes that the socket was looked into, and is empty. Returns whether there should be a pause
    /// before the next look, rather than one as soon as something comes.
    pub(super) fn emptied(&self, now: Instant) -> bool {
        // Nothing came during a pause: it has only cost a waking.
        if self.found_nothing.get() {
            self.begin_window(now);
            self.is_fast.set(false);
            self.found_nothing.set(false);
            return false;
        }
        self.looks.set(self.looks.get() + 1);
        let began = self.window_began.get();
        if began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            // After a longer time without a look, the window says less than it seems to.
            let is_recent = began.is_some_and(|began| now < began + 2 * WINDOW);
            let many = self.datagrams.get() >= DATAGRAMS_MIN;
            let often = self.is_fast.get() || self.looks.get() >= LOOKS_MIN;
            self.is_fast.set(is_recent && many && often);
            self.begin_window(now);
        }
        self.found_nothing.set(self.is_fast.get());
        self.is_fast.get()
    }

    fn begin_window(&self, now: Instant) {
        self.window_began.set(Some(now));
        self.datagrams.set(0);
        self.looks.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pause::PAUSE;

    /// Datagrams come in bunches of `bunch` every `every`, for 20 ms. Returns the looks that there
    /// were, and those of them that found nothing.
    fn run(bunch: u32, every: Duration) -> (u32, u32) {
        let moderation = Moderation::default();
        let begin = Instant::now();
        let end = begin + Duration::from_millis(20);
        let (mut now, mut looks, mut empty) = (begin, 0, 0);
        let mut seen = 0;
        while now < end {
            let come = (now - begin).as_nanos() / every.as_nanos();
            let new = u32::try_from(come).expect("few") - seen;
            seen += new;
            looks += 1;
            match new {
                0 => empty += 1,
                new => moderation.received(new * bunch),
            }
            now = if moderation.emptied(now) {
                now + PAUSE
            } else {
                begin + every * (seen + 1)
            };
        }
        (looks, empty)
    }

    #[test]
    fn datagrams_that_keep_coming_are_taken_together() {
        let (looks, empty) = run(1, Duration::from_micros(10));
        assert!(
            looks < 100 + 200 + 10,
            "the first window, then ten in each: {looks}"
        );
        assert_eq!(empty, 1, "the look at the very beginning");
    }

    #[test]
    fn few_datagrams_wait_for_nothing() {
        let every = Duration::from_micros(20);
        let (looks, empty) = run(1, every);
        assert_eq!((looks, empty), (1_000, 1));
    }

    #[test]
    fn bunches_that_come_as_they_are_wait_for_nothing() {
        let (looks, empty) = run(64, Duration::from_micros(200));
        assert_eq!((looks, empty), (100, 1));
    }

    #[test]
    fn a_stream_that_stops_costs_one_look_in_vain_and_begins_anew() {
        let moderation = Moderation::default();
        let mut now = Instant::now();
        let mut until_fast = 0;
        loop {
            moderation.received(1);
            if moderation.emptied(now) {
                break;
            }
            until_fast += 1;
            now += Duration::from_micros(10);
        }
        assert!((100..=202).contains(&until_fast), "{until_fast}");
        now += PAUSE;
        assert!(!moderation.emptied(now), "nothing came during the pause");
        moderation.received(1);
        assert!(!moderation.emptied(now));
    }
}
