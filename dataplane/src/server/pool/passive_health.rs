//! Passive health (outlier detection): which clients have services that end flows at once.
//!
//! A service that accepts and closes looks idle, so the choice by fewest flows would send everybody
//! there. Each flow that the service ends before it has sent a byte raises the failure score of its
//! client, each answer lowers it, and the score fades with time: a client whose service has
//! recovered is found out by the next visitor that gets there. The score only orders the choice. If
//! the services of all clients fail, visitors go to them nevertheless. So a visitor who provokes
//! early ends can do no more than the services themselves allow.
//!
//! All cores share the score, without a lock: the score and its time are one atomic number. There
//! is no clock in here: time comes in as an argument, counted from the start of the pool.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How far each flow moves the score towards 1 (an early end) or 0 (an answer).
const WEIGHT: f32 = 0.25;

/// A client with a higher score comes after others: three early ends in a row, or more than half of
/// the flows.
const FAILING_ABOVE: f32 = 0.5;

/// A score below this counts as zero.
const NOTHING_BELOW: f32 = 0.01;

/// Time in which a score falls to half of its value: a service that goes on failing costs a visitor
/// every few seconds.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// The unit in which times are stored; it wraps after thirteen years.
const TICK: Duration = Duration::from_millis(100);

/// The failure score of one client's service.
#[derive(Debug, Default)]
pub(crate) struct PassiveHealth(AtomicU64);

impl PassiveHealth {
    /// The service has ended a flow before it had sent a byte.
    pub(crate) fn ended_early(&self, at: Duration) {
        self.change(at, |score| score + (1.0 - score) * WEIGHT);
    }

    /// The service has answered.
    pub(crate) fn answered(&self, at: Duration) {
        // The score is mostly zero; then nothing is written to memory that other cores read.
        if self.0.load(Ordering::Relaxed) != 0 {
            self.change(at, |score| score - score * WEIGHT);
        }
    }

    /// Resets the score, because it is known from elsewhere that the service has come back.
    pub(crate) fn forgive(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether other clients are to be chosen before this one.
    pub(crate) fn is_failing(&self, at: Duration) -> bool {
        let packed = self.0.load(Ordering::Relaxed);
        packed != 0 && score(packed, ticks(at)) > FAILING_ABOVE
    }

    fn change(&self, at: Duration, to: impl Fn(f32) -> f32) {
        let now = ticks(at);
        // The closure never refuses, so the result says nothing.
        let _before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let score = to(score(packed, now));
                Some(if score < NOTHING_BELOW {
                    0
                } else {
                    u64::from(score.to_bits()) << 32 | u64::from(now)
                })
            });
    }
}

fn ticks(at: Duration) -> u32 {
    (at.as_millis() / TICK.as_millis()) as u32
}

/// The value of a stored score now. The clock of another core may have been read a moment later
/// than this one's.
fn score(packed: u64, now: u32) -> f32 {
    let then = packed as u32;
    let age = TICK * now.saturating_sub(then);
    let score = f32::from_bits((packed >> 32) as u32);
    score * 0.5_f32.powf(age.as_secs_f32() / HALF_LIFE.as_secs_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_000);

    fn failing() -> PassiveHealth {
        let passive_health = PassiveHealth::default();
        for _ in 0..3 {
            assert!(!passive_health.is_failing(START));
            passive_health.ended_early(START);
        }
        assert!(passive_health.is_failing(START));
        passive_health
    }

    #[test]
    fn three_early_ends_in_a_row_are_a_failure_which_fades() {
        let passive_health = failing();
        assert!(!passive_health.is_failing(START + HALF_LIFE / 2));
    }

    #[test]
    fn one_more_early_end_after_that_is_enough() {
        let passive_health = failing();
        let later = START + HALF_LIFE / 2;
        passive_health.ended_early(later);
        assert!(passive_health.is_failing(later));
    }

    #[test]
    fn however_many_there_were_it_is_tried_again_soon() {
        let passive_health = PassiveHealth::default();
        for _ in 0..10_000 {
            passive_health.ended_early(START);
        }
        assert!(passive_health.is_failing(START));
        assert!(!passive_health.is_failing(START + HALF_LIFE + TICK));
    }

    #[test]
    fn answers_outweigh_as_many_early_ends() {
        let passive_health = PassiveHealth::default();
        for _ in 0..1_000 {
            passive_health.ended_early(START);
            passive_health.answered(START);
            assert!(!passive_health.is_failing(START));
        }
        for _ in 0..30 {
            passive_health.answered(START);
        }
        assert_eq!(passive_health.0.into_inner(), 0, "nothing is left");
    }

    #[test]
    fn a_clock_that_is_behind_or_far_ahead_does_no_harm() {
        let passive_health = failing();
        assert!(passive_health.is_failing(Duration::ZERO));
        passive_health.answered(Duration::ZERO);
        assert!(!passive_health.is_failing(Duration::ZERO));
        assert!(!failing().is_failing(Duration::from_secs(u64::from(u32::MAX))));
    }
}
