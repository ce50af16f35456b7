//! How often a socket whose datagrams keep coming is read.
//!
//! Each look that finds a few datagrams costs a core its waking, a receive call, a flush of the
//! lane and a send, and costs the other end as much. So where datagrams come fast, looks are
//! [`PAUSE`](crate::core::pause::PAUSE) apart, as the interrupts of a network card are (what it
//! gave: docs/decisions.md, *Costs*). Where few come, or where they come in bunches anyway, there
//! is no pause.
//!
//! A datagram then waits for up to a pause, whosever it is: on a server, all visitors of a port
//! share the socket of their core. Visitors who wait for answers before they send more have fewer
//! of them. So the first window with pauses is compared with the one before, and every second there
//! is one without, to compare again; where an eighth is missing, pauses are given up for a while,
//! longer each time.
//!
//! [`Moderation`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time over which datagrams and looks are counted.
const WINDOW: Duration = Duration::from_millis(16);

/// The least number of datagrams in a window for which it is worth waiting: 64,000 a second, some
/// six in a pause. An eighth less will do where there are pauses already.
const DATAGRAMS_MIN: u64 = 1_024;

/// The least number of looks in a window that pauses would bring together: 60 µs apart.
const LOOKS_MIN: u64 = 256;

/// Windows with pauses after which there is one without, to compare: a second.
const PACED_WINDOWS_MAX: u32 = 64;

/// Pauses in a window during which nothing comes, that is which have only cost a waking, after
/// which there are no more, if they are also more than one for each [`LOOKS_PER_VAIN_PAUSE`] looks
/// that found something: a source that sends bursts has one behind each.
const VAIN_PAUSES_MAX: u32 = 4;
const LOOKS_PER_VAIN_PAUSE: u32 = 2;

/// Pauses slow the traffic if less than this many eighths of it come.
const EIGHTHS_MIN: u64 = 7;

/// How long there are no pauses after they have slowed the traffic for the first time, and at most.
const FREE_AFTER_SLOWING: Duration = Duration::from_millis(250);
const FREE_AFTER_SLOWING_MAX: Duration = Duration::from_secs(8);

/// The recent past of one socket.
#[derive(Debug)]
pub(super) struct Moderation {
    window_began: Cell<Option<Instant>>,
    datagrams: Cell<u32>,
    looks: Cell<u32>,
    vain_pauses: Cell<u32>,
    is_paced: Cell<bool>,
    /// Windows since pauses have begun.
    paced_windows: Cell<u32>,
    /// Datagrams of the last window without pauses, as if it had been exactly as long as one.
    free: Cell<u64>,
    free_until: Cell<Option<Instant>>,
    /// How long there are no pauses when they slow the traffic the next time.
    patience: Cell<Duration>,
    /// Whether nothing has come since the last pause began.
    found_nothing: Cell<bool>,
}

impl Default for Moderation {
    fn default() -> Moderation {
        Moderation {
            window_began: Cell::default(),
            datagrams: Cell::default(),
            looks: Cell::default(),
            vain_pauses: Cell::default(),
            is_paced: Cell::default(),
            paced_windows: Cell::default(),
            free: Cell::default(),
            free_until: Cell::default(),
            patience: Cell::new(FREE_AFTER_SLOWING),
            found_nothing: Cell::default(),
        }
    }
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

    /// Notes that a receive call has brought this many datagrams.
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
        if self.found_nothing.replace(false) {
            let vain = self.vain_pauses.get() + 1;
            self.vain_pauses.set(vain);
            if vain > VAIN_PAUSES_MAX && vain * LOOKS_PER_VAIN_PAUSE > self.looks.get() {
                self.is_paced.set(false);
                self.begin_window(now);
            }
            return false;
        }
        self.looks.set(self.looks.get() + 1);
        match self.window_began.get() {
            Some(began) if now < began + WINDOW => {}
            Some(began) if now < began + 2 * WINDOW => {
                self.judge(now, now - began);
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

    /// Decides at the end of a window, which took `elapsed`, how the next one is.
    fn judge(&self, now: Instant, elapsed: Duration) {
        let in_a_window = |count: &Cell<u32>| {
            let scaled = u128::from(count.get()) * WINDOW.as_nanos() / elapsed.as_nanos().max(1);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        let datagrams = in_a_window(&self.datagrams);
        if !self.is_paced.get() {
            let may = self.free_until.get().is_none_or(|until| until <= now);
            let are_many = datagrams >= DATAGRAMS_MIN;
            let looks_often = in_a_window(&self.looks) >= LOOKS_MIN;
            self.is_paced.set(may && are_many && looks_often);
            self.paced_windows.set(0);
            self.free.set(datagrams);
            return;
        }
        let windows = self.paced_windows.get() + 1;
        self.paced_windows.set(windows);
        let are_few = datagrams * 8 < DATAGRAMS_MIN * EIGHTHS_MIN;
        if windows > 1 {
            self.is_paced.set(!are_few && windows < PACED_WINDOWS_MAX);
        } else if datagrams * 8 < self.free.get() * EIGHTHS_MIN {
            let patience = self.patience.get();
            self.free_until.set(Some(now + patience));
            self.patience
                .set((2 * patience).min(FREE_AFTER_SLOWING_MAX));
            self.is_paced.set(false);
        } else {
            self.patience.set(FREE_AFTER_SLOWING);
        }
    }

    fn begin_window(&self, now: Instant) {
        self.window_began.set(Some(now));
        self.datagrams.set(0);
        self.looks.set(0);
        self.vain_pauses.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pause::PAUSE;

    const LONG: Duration = Duration::from_secs(1);

    /// The receive calls on a simulated socket.
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

    /// Bursts of `burst` datagrams, `apart` from each other, begin every `every`.
    fn bursts(burst: u32, apart: Duration, every: Duration, of: Duration) -> Looks {
        let moderation = Moderation::default();
        let begin = Instant::now();
        let comes = |number: u32| begin + every * (number / burst) + apart * (number % burst);
        let (mut now, mut looks) = (begin, Looks::default());
        while now < begin + of {
            let before = looks.datagrams;
            while comes(looks.datagrams) <= now {
                looks.datagrams += 1;
            }
            looks.all += 1;
            match looks.datagrams - before {
                0 => looks.in_vain += 1,
                new => moderation.received(new),
            }
            now = if moderation.emptied(now) {
                now + PAUSE
            } else {
                comes(looks.datagrams)
            };
        }
        looks
    }

    #[test]
    fn bursts_are_taken_in_a_few_looks_each_with_one_in_vain_behind_it() {
        // As iperf3 sends 1 Gbit/s.
        let every = Duration::from_millis(1);
        let looks = bursts(108, Duration::from_micros(3), every, LONG);
        assert!(looks.datagrams > 107_000, "{looks:?}");
        // 324 µs are four looks; without pauses there were 108.
        assert!(looks.all < 8_000, "{looks:?}");
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
    fn visitors_who_wait_for_answers_have_nearly_as_many() {
        let percent = |flying, round_trip_us: u32| {
            let looks = closed_loop(flying, Duration::from_micros(round_trip_us.into()), LONG);
            looks.datagrams * 100 / (flying * 1_000_000 / round_trip_us)
        };
        // Pauses would slow them to half, so they are tried and given up.
        assert!(percent(8, 60) >= 95);
        assert!(percent(4, 50) >= 95);
        // An eighth is what may be lost.
        for round_trip_us in [600, 610, 650, 700, 1_000] {
            assert!(percent(64, round_trip_us) >= 85, "{round_trip_us}");
        }
    }

    /// The windows that began with pauses, in a time in which `next` says when something comes
    /// next, and how much.
    fn paced_windows(of: Duration, next: impl Fn(bool) -> (Duration, u32)) -> Vec<bool> {
        let moderation = Moderation::default();
        let begin = Instant::now();
        let (mut now, mut windows) = (begin, Vec::new());
        let (mut began, mut is_paced) = (None, false);
        while now < begin + of {
            let (pause, datagrams) = next(is_paced);
            now += pause;
            moderation.received(datagrams);
            is_paced = moderation.emptied(now);
            if began != moderation.window_began.get() {
                began = moderation.window_began.get();
                windows.push(is_paced);
            }
        }
        windows
    }

    #[test]
    fn every_second_there_is_a_window_without_pauses_to_compare_with() {
        // As much comes with pauses as without.
        let windows = paced_windows(10 * LONG, |is_paced| match is_paced {
            true => (PAUSE, 10),
            false => (PAUSE / 10, 1),
        });
        let first = windows.iter().position(|paced| *paced).expect("pauses");
        let free = windows[first..].iter().filter(|paced| !**paced).count();
        assert!((8..=10).contains(&free), "{free} of {}", windows.len());
    }

    #[test]
    fn pauses_that_slow_the_traffic_are_tried_more_and_more_seldom() {
        // With pauses half as much comes as without.
        let tried = |of| {
            let windows = paced_windows(of, |is_paced| match is_paced {
                true => (PAUSE, 5),
                false => (PAUSE / 10, 1),
            });
            windows.iter().filter(|paced| **paced).count()
        };
        // At once, after 0.25, 0.75, 1.75, 3.75 and 7.75 seconds, and then every 8 seconds.
        assert_eq!(tried(4 * LONG - LONG / 8), 5);
        assert_eq!(tried(9 * LONG), 6);
        assert_eq!(tried(38 * LONG), 9);
    }

    #[test]
    fn a_stall_in_one_of_two_windows_is_not_taken_for_slow_pauses() {
        let moderation = Moderation::default();
        let begin = Instant::now();
        let (mut now, mut seen, mut paced) = (begin, 0, 0);
        let of = 40 * WINDOW;
        while now < begin + of {
            // The core does something else for 5 ms now and then.
            let stalls = (now - begin).as_millis() % 23 == 15;
            now += Duration::from_millis(if stalls { 5 } else { 0 });
            let come = u32::try_from((now - begin).as_micros() / 10).expect("few");
            moderation.received(come - seen);
            seen = come;
            now += match moderation.emptied(now) {
                true => {
                    paced += 1;
                    PAUSE
                }
                false => Duration::from_micros(10),
            };
        }
        // Some 150 of a window's looks are after a pause.
        assert!(paced > 35 * 100, "{paced}");
    }

    #[test]
    fn after_a_look_in_vain_the_next_one_is_when_something_comes() {
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
        now += 10 * WINDOW;
        moderation.received(1);
        assert!(!moderation.emptied(now), "that was long ago");
    }

    #[test]
    fn pauses_in_vain_come_to_an_end() {
        let moderation = Moderation::always();
        let mut now = Instant::now() + 1_000 * WINDOW;
        let mut pauses = 0;
        moderation.received(1);
        while moderation.emptied(now) {
            pauses += 1;
            assert!(
                !moderation.emptied(now + PAUSE),
                "nothing came during the pause"
            );
            now += 2 * PAUSE;
            moderation.received(64);
        }
        assert_eq!(pauses, VAIN_PAUSES_MAX + 1);
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
