//! Jitter: a delay that changes slowly.
//!
//! A delay drawn independently for each packet would be wrong in either case: if packets stayed in
//! order, all packets of a dense stream would have the largest of many draws; if not, the link
//! would test reordering. So the deviation is interpolated linearly between random points, as the
//! delay of a radio link or of a queue shared with others behaves, and its mean is zero.

use rand::{Rng, RngExt};

/// The time between two random points, in amplitudes. The deviation thus falls by at most half of
/// the time that passes: packets get closer to each other, at most twice as close, and never
/// overtake.
const SPAN_AMPLITUDES: u64 = 4;

/// The deviation from the delay, in nanoseconds over time.
#[derive(Debug)]
pub(super) struct Jitter {
    amplitude: i64,
    span: u64,
    from: Point,
    to: Point,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    at: u64,
    deviation: i64,
}

impl Jitter {
    /// A deviation within plus and minus `amplitude` nanoseconds.
    pub(super) fn new(amplitude: u64) -> Self {
        let start = Point {
            at: 0,
            deviation: 0,
        };
        Self {
            amplitude: amplitude.cast_signed(),
            span: amplitude * SPAN_AMPLITUDES,
            from: start,
            to: start,
        }
    }

    /// The deviation at `now`, which must not be before the `now` of the previous call.
    pub(super) fn deviation(&mut self, now: u64, rng: &mut impl Rng) -> i64 {
        if self.amplitude == 0 {
            return 0;
        }
        while self.to.at <= now {
            // If no packet came for longer than a span, the line starts anew at a random point.
            self.from = if now - self.to.at > self.span {
                self.draw(now, rng)
            } else {
                self.to
            };
            self.to = self.draw(self.from.at + self.span, rng);
        }
        let rise = i128::from(self.to.deviation - self.from.deviation);
        let run = i128::from(self.to.at - self.from.at);
        let step = rise * i128::from(now - self.from.at) / run;
        // The result lies between the two deviations, so the step fits into 64 bits.
        self.from.deviation + step as i64
    }

    fn draw(&self, at: u64, rng: &mut impl Rng) -> Point {
        Point {
            at,
            deviation: rng.random_range(-self.amplitude..=self.amplitude),
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn the_deviation_stays_in_its_range_keeps_the_order_and_has_no_bias() {
        const AMPLITUDE: u64 = 5_000_000;
        const STEP: u64 = 10_000;
        const STEPS: u64 = 2_000_000;
        for seed in 0..5 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut jitter = Jitter::new(AMPLITUDE);
            let mut last_arrival = 0;
            let mut sum = 0;
            for step in 1..=STEPS {
                let now = AMPLITUDE + step * STEP;
                let deviation = jitter.deviation(now, &mut rng);
                assert!(deviation.unsigned_abs() <= AMPLITUDE, "seed {seed}");
                let arrival = now.checked_add_signed(deviation).unwrap();
                assert!(arrival >= last_arrival, "overtaking, seed {seed}");
                last_arrival = arrival;
                sum += deviation;
            }
            let mean = sum / STEPS as i64;
            // With a thousand random points, the mean of the deviations lies within a few
            // hundredths of the amplitude.
            assert!(
                mean.unsigned_abs() < AMPLITUDE / 10,
                "mean {mean}, seed {seed}"
            );
        }
    }
}
