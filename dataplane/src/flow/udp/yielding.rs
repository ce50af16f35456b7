//! Yielding the CPU after a batch of datagrams, for as long as that costs little.
//!
//! On a machine with few CPUs the receiver that a batch has just woken often waits for the very CPU
//! that sends, and its socket buffer (208 KB by default) takes fewer than 100 datagrams. Yielding
//! to it lost 0.1 to 0.25 % of 1,150-byte datagrams at 1 Gbit/s on one machine of two CPUs, instead
//! of 2.6 to 3.6 %. On another one the same call gave the CPU to whoever had waited longest, for
//! milliseconds each time, and 47 % were lost where nothing is lost without it; on a third one 5 %,
//! where nothing is lost without it or by the rule here. So the time that a yield took is its
//! price: the next one comes when only a small part of the time between them was given away.
//!
//! [`Yielding`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The least number of datagrams in a batch after which a yield is worth its call.
const BATCH_MIN: usize = 16;

/// The largest fraction of the time that is given away.
const SHARE: u32 = 16;

/// Time that was given away longer ago than this says nothing about the machine as it is now. A
/// much shorter memory would not keep the share after a long yield: one of 100 ms puts off the next
/// by 1.5 s.
const MEMORY: Duration = Duration::from_secs(10);

thread_local! {
    /// A core yields with all of its work.
    static OF_THIS_CORE: Yielding = Yielding::default();
}

/// Yields the CPU if a batch of `datagrams` is worth that, and yielding has not cost much lately.
pub(super) fn after_batch(datagrams: usize) {
    if datagrams < BATCH_MIN {
        return;
    }
    OF_THIS_CORE.with(|yielding| {
        let before = Instant::now();
        if yielding.may(before) {
            std::thread::yield_now();
            yielding.took(before, Instant::now());
        }
    });
}

/// The time of the next yield.
#[derive(Debug, Default)]
struct Yielding {
    again_at: Cell<Option<Instant>>,
}

impl Yielding {
    fn may(&self, now: Instant) -> bool {
        self.again_at.get().is_none_or(|at| at <= now)
    }

    /// Notes that a yield took from `before` to `now`.
    fn took(&self, before: Instant, now: Instant) {
        let rest = (now.saturating_duration_since(before) * (SHARE - 1)).min(MEMORY);
        self.again_at.set(Some(now + rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates batches that come every `pause`, and yields that take `takes`. Returns how many
    /// yields there are, and how much time they take, within `of`.
    fn run(pause: Duration, takes: Duration, of: Duration) -> (u32, Duration) {
        let yielding = Yielding::default();
        let begin = Instant::now();
        let (mut now, mut yields) = (begin, 0);
        while now < begin + of {
            if yielding.may(now) {
                yields += 1;
                yielding.took(now, now + takes);
                now += takes;
            }
            now += pause;
        }
        (yields, takes * yields)
    }

    #[test]
    fn a_yield_that_returns_at_once_comes_after_each_batch() {
        let pause = Duration::from_micros(300);
        let (yields, _) = run(pause, Duration::from_nanos(400), pause * 1_000);
        assert!(yields >= 998, "{yields}");
    }

    #[test]
    fn yields_that_give_the_cpu_away_take_no_more_than_their_share() {
        for takes in [100, 1_000, 4_000, 20_000, 100_000].map(Duration::from_micros) {
            let of = Duration::from_secs(60);
            let (yields, given) = run(Duration::from_micros(300), takes, of);
            assert!(yields >= 1);
            assert!(given <= of / (SHARE - 2) + takes, "{takes:?}: {given:?}");
        }
    }

    #[test]
    fn one_long_yield_is_forgotten() {
        let yielding = Yielding::default();
        let now = Instant::now();
        let long = Duration::from_secs(60);
        yielding.took(now, now + long);
        assert!(!yielding.may(now + long));
        assert!(yielding.may(now + long + MEMORY));
    }
}
