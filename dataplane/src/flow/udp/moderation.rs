//! How often a socket is looked into whose datagrams keep coming.
//!
//! Each look that finds a few datagrams costs a core its waking, a receive call, a flush of the
//! lane and a send, and costs the other end as much, some 5 µs beside the 2 µs of a datagram. So
//! where datagrams come fast, looks are [`PAUSE`](crate::core::pause::PAUSE) apart, as the
//! interrupts of a network card are (what it gave: docs/decisions.md, *Costs*). Where few come, or
//! where they come in bunches anyway, there is no pause.
//!
//! A datagram then waits for up to a pause, whosever it is: all visitors of a port share the socket
//! of their core. Visitors who wait for answers before they send more would have fewer of them; so
//! every second a socket is looked into freely for a moment, and if more comes then, it stays so.
//!
//! [`Moderation`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time over which datagrams and looks are counted.
const WINDOW: Duration = Duration::from_millis(16);

/// Least number of datagrams in a window for which it is worth waiting: 64,000 a second, some six
/// in a pause.
const DATAGRAMS_MIN: u32 = 1_024;

/// Least number of looks in a window that pauses would bring together: 60 µs apart.
const LOOKS_MIN: u32 = 256;

/// Windows with pauses after which there is one without, to compare: a second.
const PACED_WINDOWS_MAX: u32 = 64;

/// Pauses slow the traffic if less than this many eighths of it come.
const EIGHTHS_MIN: u32 = 7;

/// How long there are no pauses after they have slowed the traffic.
const FREE_AFTER_SLOWING: Duration = Duration::from_millis(250);

/// The recent past of one socket.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    window_began: Cell<Option<Instant>>,
    datagrams: Cell<u32>,
    looks: Cell<u32>,
    is_paced: Cell<bool>,
    /// Windows since pauses have begun.
    paced_windows: Cell<u32>,
    /// Datagrams of the last window without pauses.
    free: Cell<u32>,
    free_until: Cell<Option<Instant>>,
    /// Whether nothing has come since the last pause began.
    found_nothing: Cell<bool>,
}

impl Moderation {
    /// One that always has a pause, for as long as something comes.
    #[cfg(test)]
    pub(super) fn always() -> Moderation {
        let moderation = Moderation::default();
        moderation.begin_window(Instant::now() + 1_000 * WINDOW);
        moderation.is_paced.set(true);
        moderation
    }

    /// Notes that a receive call has brought so many datagrams.
    pub(super) fn received(&self, datagrams: u32) {
        self.datagrams
            .set(self.datagrams.get().saturating_add(datagrams));
        self.found_nothing.set(false);
    }

    /// Notes that there may be more in the socket than was looked at: there is no pause before the
    /// next look.
    pub(super) fn interrupted(&self) {
        self.is_paced.set(false);
        self.window_began.set(None);
    }

    /// Notes that the socket was looked into until it was empty. Returns whether there should be a
    /// pause before the next look, rather than one as soon as something comes.
    pub(super) fn emptied(&self, now: Instant) -> bool {
        // Nothing came during a pause: it has only cost a waking.
        if self.found_nothing.replace(false) {
            self.is_paced.set(false);
            self.begin_window(now);
            return false;
        }
        self.looks.set(self.looks.get() + 1);
        match self.window_began.get() {
            Some(began) if now < began + WINDOW => {}
            Some(began) if now < began + 2 * WINDOW => {
                self.judge(now);
                self.begin_window(now);
            }
            // After a longer time without a look, the window says less than it seems to.
            _ => {
                self.is_paced.set(false);
                self.begin_window(now);
            }
        }
        self.found_nothing.set(self.is_paced.get());
        self.is_paced.get()
    }

    /// Decides at the end of a window how the next one is.
    fn judge(&self, now: Instant) {
        let datagrams = self.datagrams.get();
        let are_many = datagrams >= DATAGRAMS_MIN;
        if !self.is_paced.get() {
            let may = self.free_until.get().is_none_or(|until| until <= now);
            self.is_paced
                .set(may && are_many && self.looks.get() >= LOOKS_MIN);
            self.paced_windows.set(0);
            self.free.set(datagrams);
            return;
        }
        let windows = self.paced_windows.get() + 1;
        self.paced_windows.set(windows);
        let slows = u64::from(datagrams) * 8 < u64::from(self.free.get()) * u64::from(EIGHTHS_MIN);
        if windows == 1 && slows {
            self.free_until.set(Some(now + FREE_AFTER_SLOWING));
            self.is_paced.set(false);
        } else if !are_many || windows >= PACED_WINDOWS_MAX {
            self.is_paced.set(false);
        }
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

    const LONG: Duration = Duration::from_secs(1);

    /// What a simulated socket was looked into for.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Looks {
        all: u32,
        in_vain: u32,
        datagrams: u32,
    }

    /// Bunches of `bunch` datagrams come every `every`, whatever happens to them.
    fn stream(bunch: u32, every: Duration, of: Duration) -> Looks {
        let moderation = Moderation::default();
        let begin = Instant::now();
        let (mut now, mut looks, mut seen) = (begin, Looks::default(), 0);
        while now < begin + of {
            let come = (now - begin).as_nanos() / every.as_nanos();
            let new = u32::try_from(come).expect("few") - seen;
            seen += new;
            looks.all += 1;
            looks.datagrams += new * bunch;
            match new {
                0 => looks.in_vain += 1,
                new => moderation.received(new * bunch),
            }
            now = if moderation.emptied(now) {
                now + PAUSE
            } else {
                begin + every * (seen + 1)
            };
        }
        looks
    }

    /// `flying` visitors each send a datagram `round_trip` after their last one was taken.
    fn closed_loop(flying: u32, round_trip: Duration, of: Duration) -> Looks {
        let moderation = Moderation::default();
        let begin = Instant::now();
        let mut next: Vec<Instant> = (0..flying)
            .map(|it| begin + round_trip / flying * it)
            .collect();
        let (mut now, mut looks) = (begin, Looks::default());
        while now < begin + of {
            let mut new = 0;
            for at in next.iter_mut().filter(|at| **at <= now) {
                *at = now + round_trip;
                new += 1;
            }
            looks.all += 1;
            looks.datagrams += new;
            match new {
                0 => looks.in_vain += 1,
                new => moderation.received(new),
            }
            now = if moderation.emptied(now) {
                now + PAUSE
            } else {
                *next.iter().min().expect("visitors")
            };
        }
        looks
    }

    #[test]
    fn datagrams_that_keep_coming_are_taken_together() {
        let looks = stream(1, Duration::from_micros(10), LONG);
        // Ten in a millisecond, but for the first window, in which each is looked for.
        assert!(looks.all < 10_000 + 1_600, "{looks:?}");
        assert_eq!(looks.in_vain, 1, "the look at the very beginning");
    }

    #[test]
    fn few_datagrams_wait_for_nothing() {
        let looks = stream(1, Duration::from_micros(20), LONG);
        assert_eq!((looks.all, looks.in_vain), (50_000, 1));
    }

    #[test]
    fn bunches_that_come_as_they_are_wait_for_nothing() {
        let looks = stream(64, Duration::from_micros(200), LONG);
        assert_eq!((looks.all, looks.in_vain), (5_000, 1));
    }

    #[test]
    fn visitors_who_wait_for_answers_have_as_many_but_for_moments() {
        let free = 8 * 1_000_000 / 60;
        let looks = closed_loop(8, Duration::from_micros(60), LONG);
        assert!(looks.datagrams > free * 95 / 100, "{looks:?} of {free}");
        // Whose round trip is long compared with a pause does not notice it, and gains by it.
        let free = 64 * 1_000_000 / 600;
        let looks = closed_loop(64, Duration::from_micros(600), LONG);
        assert!(looks.datagrams > free * 85 / 100, "{looks:?} of {free}");
        assert!(looks.all < 15_000, "{looks:?}");
    }

    #[test]
    fn a_stream_that_stops_costs_one_look_in_vain_and_begins_anew() {
        let moderation = Moderation::default();
        let mut now = Instant::now();
        let mut until_paced = 0;
        loop {
            moderation.received(1);
            if moderation.emptied(now) {
                break;
            }
            until_paced += 1;
            now += Duration::from_micros(10);
        }
        assert!((1_600..3_300).contains(&until_paced), "{until_paced}");
        now += PAUSE;
        assert!(!moderation.emptied(now), "nothing came during the pause");
        moderation.received(1);
        assert!(!moderation.emptied(now));
    }

    #[test]
    fn after_an_interruption_there_is_no_pause() {
        let moderation = Moderation::default();
        let mut now = Instant::now();
        loop {
            moderation.received(1);
            if moderation.emptied(now) {
                break;
            }
            now += Duration::from_micros(10);
        }
        moderation.received(1);
        moderation.interrupted();
        assert!(!moderation.emptied(now + PAUSE));
    }
}
