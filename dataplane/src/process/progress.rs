//! Whether the cores make progress. Each counts the turns of its own clock ([`BEAT`]); `main` looks
//! at the counters every [`LOOK`]. No I/O; time comes in as an argument.
//!
//! Looks are counted rather than time, so that a process that was stopped as a whole (by a
//! debugger, a frozen container, a paused virtual machine) does not find its cores stuck when it
//! goes on.

use std::time::{Duration, Instant};

/// The period of a core's own clock, whose turns it counts.
pub(crate) const BEAT: Duration = Duration::from_millis(500);

/// The time between two checks of the cores by `main`.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

const _: () = assert!(LOOK.as_millis() >= 2 * BEAT.as_millis());

/// Looks in a row without progress after which a core counts as stuck. A healthy core's turns take
/// milliseconds, but a machine can be so busy that a thread gets no CPU for a second or two.
const LOOKS_MAX: u32 = 5;

/// The progress of the cores, as `main` has seen it.
#[derive(Debug)]
pub(crate) struct Progress {
    cores: Vec<Seen>,
    last_look: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    beats: u64,
    looks_without: u32,
}

impl Progress {
    /// The progress of `cores` cores.
    pub(crate) fn new(cores: usize) -> Progress {
        Progress {
            cores: vec![Seen::default(); cores],
            last_look: None,
        }
    }

    /// Looks at the cores' counters; does nothing if the last look was less than [`LOOK`] ago.
    /// Returns whether it looked.
    pub(crate) fn look(&mut self, beats: impl IntoIterator<Item = u64>, now: Instant) -> bool {
        if self
            .last_look
            .is_some_and(|last| now.saturating_duration_since(last) < LOOK)
        {
            return false;
        }
        self.last_look = Some(now);
        for (seen, beats) in self.cores.iter_mut().zip(beats) {
            if seen.beats == beats {
                seen.looks_without = seen.looks_without.saturating_add(1);
            } else {
                *seen = Seen {
                    beats,
                    looks_without: 0,
                };
            }
        }
        true
    }

    /// Whether each core is stuck.
    pub(crate) fn stuck(&self) -> impl Iterator<Item = bool> {
        self.cores
            .iter()
            .map(|seen| seen.looks_without >= LOOKS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuck(progress: &Progress) -> Vec<bool> {
        progress.stuck().collect()
    }

    #[test]
    fn cores_that_count_are_fine_for_ever() {
        let mut progress = Progress::new(2);
        let began = Instant::now();
        for second in 0..1_000u32 {
            assert!(progress.look([u64::from(second) * 2; 2], began + second * LOOK));
            assert_eq!(stuck(&progress), [false, false]);
        }
    }

    #[test]
    fn a_core_that_stands_still_is_found_and_forgiven_when_it_goes_on() {
        let mut progress = Progress::new(3);
        let began = Instant::now();
        let mut found_at = None;
        for second in 1..=20u32 {
            let beat = u64::from(second);
            let second_core = if second < 5 { beat } else { 4 };
            progress.look([beat, second_core, beat], began + second * LOOK);
            if stuck(&progress) == [false, true, false] && found_at.is_none() {
                found_at = Some(second);
            }
        }
        assert_eq!(found_at, Some(4 + LOOKS_MAX));
        progress.look([21, 5, 21], began + 21 * LOOK);
        assert_eq!(stuck(&progress), [false; 3]);
    }

    #[test]
    fn looks_in_haste_count_as_one() {
        let mut progress = Progress::new(1);
        let began = Instant::now();
        assert!(progress.look([1], began));
        for ms in 1..1_000 {
            assert!(!progress.look([1], began + Duration::from_millis(ms)));
        }
        assert_eq!(stuck(&progress), [false]);
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_is_not_stuck() {
        let mut progress = Progress::new(1);
        let began = Instant::now();
        progress.look([1], began);
        progress.look([1], began + Duration::from_secs(3_600));
        assert_eq!(stuck(&progress), [false]);
    }
}
