//! The bandwidth of a flow: a token bucket for each direction. There is no clock in here: time
//! comes in as an argument.
//!
//! A bucket may be overdrawn, by a datagram that is larger than what is left, or by bytes that were
//! read before the bucket was asked. Then the flow waits until that is made up for.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::buffer::SMALL_BLOCK_BYTES;

/// The size of a bucket, as a fraction of what flows in per second: enough that nobody waits for a
/// timer at each read, and little enough that a second carries what it may.
const BURST_PARTS: u64 = 8;

/// The least size of a bucket: a request and its answer mostly pass at once.
const BURST_BYTES_MIN: u64 = SMALL_BLOCK_BYTES as u64;

/// A flow that has to wait does so until this fraction of a second's bytes has flowed in. So it is
/// woken at most that many times a second, however slow it is.
const WAKES_PER_SECOND: u64 = 32;

const NANOSECONDS: u128 = 1_000_000_000;

const _: () = assert!(WAKES_PER_SECOND > BURST_PARTS);

/// The token bucket of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    bytes_per_s: u64,
    /// The time at which the bucket will be full, if nothing more is taken.
    full_at: Instant,
}

impl Bucket {
    /// A full bucket into which this many bytes flow per second; at least one.
    pub(crate) fn new(bytes_per_s: u64, now: Instant) -> Bucket {
        Bucket {
            bytes_per_s: bytes_per_s.max(1),
            full_at: now,
        }
    }

    fn burst(&self) -> u64 {
        (self.bytes_per_s / BURST_PARTS).max(BURST_BYTES_MIN)
    }

    /// Number of bytes that are worth waking the flow for.
    fn quantum(&self) -> u64 {
        (self.bytes_per_s / WAKES_PER_SECOND).clamp(1, self.burst())
    }

    /// How long this many bytes take to flow in.
    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * NANOSECONDS).div_ceil(u128::from(self.bytes_per_s));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = (time.as_nanos() * u128::from(self.bytes_per_s)).div_ceil(NANOSECONDS);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// How many bytes may be carried now.
    pub(crate) fn available(&self, now: Instant) -> u64 {
        let missing = self.bytes_in(self.full_at.saturating_duration_since(now));
        self.burst().saturating_sub(missing)
    }

    /// Takes bytes that are carried.
    pub(crate) fn take(&mut self, bytes: u64, now: Instant) {
        let from = self.full_at.max(now);
        // A bucket that is full in a thousand years carries as little.
        self.full_at = from.checked_add(self.time_of(bytes)).unwrap_or(from);
    }

    /// The time at which it is worth asking again; `None` if it is now.
    pub(crate) fn wait_until(&self, now: Instant) -> Option<Instant> {
        if self.available(now) >= self.quantum() {
            return None;
        }
        let before_full = self.time_of(self.burst() - self.quantum());
        let at = self.full_at.checked_sub(before_full).unwrap_or(now);
        // Because of rounding, that time may be over already.
        Some(at.max(now + Duration::from_nanos(1)))
    }
}

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Bytes from the visitor.
    In,
    /// Bytes to the visitor.
    Out,
}

/// The bandwidth of a flow in both directions.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    inward: Cell<Bucket>,
    outward: Cell<Bucket>,
}

impl Bandwidth {
    /// The bandwidth of a flow that begins now; `None` if the number is zero, which means no limit.
    pub(crate) fn of(bytes_per_s: u64, now: Instant) -> Option<Box<Bandwidth>> {
        let full = || Cell::new(Bucket::new(bytes_per_s, now));
        (bytes_per_s > 0).then(|| {
            Box::new(Bandwidth {
                inward: full(),
                outward: full(),
            })
        })
    }

    fn bucket(&self, direction: Direction) -> &Cell<Bucket> {
        match direction {
            Direction::In => &self.inward,
            Direction::Out => &self.outward,
        }
    }

    /// How many bytes may be carried now, or when to ask again.
    pub(crate) fn ask(&self, direction: Direction, now: Instant) -> Result<usize, Instant> {
        let bucket = self.bucket(direction).get();
        match bucket.wait_until(now) {
            None => Ok(usize::try_from(bucket.available(now)).unwrap_or(usize::MAX)),
            Some(at) => Err(at),
        }
    }

    /// Counts bytes that were carried.
    pub(crate) fn carried(&self, direction: Direction, bytes: u64, now: Instant) {
        let cell = self.bucket(direction);
        let mut bucket = cell.get();
        bucket.take(bytes, now);
        cell.set(bucket);
    }

    /// Whether a datagram of this size may be carried; if so, it is counted.
    pub(crate) fn carries(&self, direction: Direction, bytes: u64, now: Instant) -> bool {
        let may = self.bucket(direction).get().available(now) > 0;
        if may {
            self.carried(direction, bytes, now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const RATES: [u64; 6] = [1, 1_024, 100_000, 1 << 20, 1 << 30, 1 << 40];

    #[test]
    fn a_full_bucket_holds_an_eighth_of_a_second_or_one_block() {
        let now = Instant::now();
        assert_eq!(Bucket::new(1_024, now).available(now), BURST_BYTES_MIN);
        assert_eq!(Bucket::new(8 << 20, now).available(now), 1 << 20);
    }

    #[test]
    fn what_is_overdrawn_is_paid_back_first() {
        let now = Instant::now();
        let mut bucket = Bucket::new(1 << 20, now);
        bucket.take((1 << 20) + (1 << 17), now);
        assert_eq!(bucket.available(now), 0);
        let second = Duration::from_secs(1);
        assert_eq!(bucket.available(now + second), 0);
        assert_eq!(bucket.available(now + second + second / 16), 1 << 16);
        assert_eq!(bucket.available(now + 9 * second), 1 << 17, "never more");
    }

    /// Some hours in the life of a bucket: a flow that takes everything there is, in pieces of any
    /// size, at any time, gets what the rate allows and no more.
    #[test]
    fn whoever_takes_all_that_there_is_gets_the_rate_and_never_more() {
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            for rate in RATES {
                let began = Instant::now();
                let (mut now, mut bucket, mut taken) = (began, Bucket::new(rate, began), 0_u64);
                for _ in 0..5_000 {
                    match bucket.wait_until(now) {
                        Some(at) => {
                            assert!(at > now, "seed {seed}");
                            // A busy core is late.
                            let late = Duration::from_micros(random.random_range(0..2_000));
                            now = at + late;
                            assert_eq!(bucket.wait_until(now), None, "seed {seed}, rate {rate}");
                        }
                        None => {
                            let available = bucket.available(now);
                            assert!(available > 0 && available <= bucket.burst());
                            let piece = random.random_range(1..=available);
                            bucket.take(piece, now);
                            taken += piece;
                        }
                    }
                    let most = bucket.bytes_in(now - began) + bucket.burst();
                    assert!(taken <= most, "seed {seed}, rate {rate}: {taken} of {most}");
                }
                // A flow that is never later than the bucket takes to fill loses nothing, except by
                // rounding.
                let due = bucket.bytes_in(now - began);
                let least = (due - due / 50).saturating_sub(bucket.burst());
                assert!(taken >= least, "seed {seed}, rate {rate}: {taken} of {due}");
            }
        }
    }

    #[test]
    fn a_slow_flow_is_not_woken_for_every_byte() {
        for rate in RATES {
            let began = Instant::now();
            let (mut now, mut bucket, mut waits) = (began, Bucket::new(rate, began), 0);
            bucket.take(bucket.burst(), now);
            while now < began + Duration::from_secs(1) {
                match bucket.wait_until(now) {
                    Some(at) => (now, waits) = (at, waits + 1),
                    None => bucket.take(bucket.available(now), now),
                }
            }
            assert!(waits <= WAKES_PER_SECOND + 2, "{waits} waits at {rate}");
        }
    }

    #[test]
    fn a_datagram_of_any_size_passes_a_bucket_that_is_not_empty() {
        let now = Instant::now();
        assert!(Bandwidth::of(0, now).is_none());
        let bandwidth = Bandwidth::of(1_024, now).expect("limited");
        assert!(bandwidth.carries(Direction::In, 65_507, now));
        assert!(!bandwidth.carries(Direction::In, 1, now));
        assert!(bandwidth.carries(Direction::Out, 1, now), "the other way");
        let later = now + Duration::from_secs(64);
        assert!(bandwidth.carries(Direction::In, 1, later));
    }
}
