//! The rate at which a core opens sockets for new flows. Strangers may ask for as many as they can
//! send datagrams, and the core has other work. This module is pure; time comes in as an argument.

use std::time::{Duration, Instant};

/// The openings of one slice of time are counted together. It is two of the runtime's timer steps.
pub(super) const SLICE: Duration = Duration::from_millis(2);

/// The most openings in a slice: 8,000 a second, several times what a busy DNS service gets.
pub(super) const OPENINGS_PER_SLICE: u32 = 16;

/// The openings of a slice stop when they have taken this long. One takes 20 to 50 µs, but where
/// free ports are rare the kernel looks for one for milliseconds.
pub(super) const TIME_PER_SLICE: Duration = Duration::from_micros(500);

/// The openings of the present slice.
#[derive(Debug, Default)]
pub(super) struct Pace {
    began: Option<Instant>,
    openings: u32,
    taken: Duration,
}

impl Pace {
    /// Whether a socket may be opened now.
    pub(super) fn may_open(&mut self, now: Instant) -> bool {
        let over = |began| now.saturating_duration_since(began) >= SLICE;
        if self.began.is_none_or(over) {
            *self = Pace {
                began: Some(now),
                ..Pace::default()
            };
        }
        self.openings < OPENINGS_PER_SLICE && self.taken < TIME_PER_SLICE
    }

    /// Counts an opening, or a failed one, which took this long.
    pub(super) fn opened(&mut self, took: Duration) {
        self.openings += 1;
        self.taken += took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(20);

    fn openings(pace: &mut Pace, now: Instant, took: Duration) -> u32 {
        let mut openings = 0;
        while pace.may_open(now) {
            pace.opened(took);
            openings += 1;
        }
        openings
    }

    #[test]
    fn a_slice_has_so_many_openings_and_the_next_one_as_many_again() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(openings(&mut pace, start, QUICK), OPENINGS_PER_SLICE);
        assert_eq!(openings(&mut pace, start + SLICE / 2, QUICK), 0);
        assert_eq!(
            openings(&mut pace, start + SLICE, QUICK),
            OPENINGS_PER_SLICE
        );
        assert_eq!(
            openings(&mut pace, start + 100 * SLICE, QUICK),
            OPENINGS_PER_SLICE
        );
    }

    #[test]
    fn slow_openings_end_a_slice_sooner_but_each_slice_has_one() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(openings(&mut pace, start, TIME_PER_SLICE / 2), 2);
        assert_eq!(openings(&mut pace, start + SLICE, 10 * TIME_PER_SLICE), 1);
    }
}
