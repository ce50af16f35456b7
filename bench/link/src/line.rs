//! The bottleneck of a link: it says when a packet has left the line, or that the packet is dropped
//! because there is no room for it.

use super::profile::{Profile, QueueLimit};

const NANOS_PER_S: u64 = 1_000_000_000;
const BITS_PER_BYTE: u64 = 8;

/// The state of the line. Times are nanoseconds since the link came up.
#[derive(Debug)]
pub(super) enum Line {
    /// Packets pass at once.
    Unlimited,
    /// Packets pass one after the other, each for its length divided by the rate.
    Serial(Serial),
    /// Packets pass at once while there are tokens.
    Policer(Policer),
}

impl Line {
    /// The line of a checked profile.
    pub(super) fn new(profile: &Profile) -> Self {
        match (profile.rate_bits_per_s, profile.queue) {
            (None, _) => Self::Unlimited,
            (Some(rate), QueueLimit::Policer { burst_bytes }) => Self::Policer(Policer {
                rate_bits_per_s: rate,
                tokens_max: burst_bytes * TOKENS_PER_BYTE,
                tokens: burst_bytes * TOKENS_PER_BYTE,
                filled_at: 0,
            }),
            (Some(rate), _) => Self::Serial(Serial {
                rate_bits_per_s: rate,
                queue_bytes: profile.queue_bytes(),
                free_at: 0,
                remainder: 0,
            }),
        }
    }

    /// The time at which a packet that arrives at `now` has left the line; `None` if there is no
    /// room for the packet.
    pub(super) fn pass(&mut self, now: u64, bytes: usize) -> Option<u64> {
        let bytes = bytes as u64;
        match self {
            Self::Unlimited => Some(now),
            Self::Serial(serial) => serial.pass(now, bytes),
            Self::Policer(policer) => policer.pass(now, bytes).then_some(now),
        }
    }
}

/// A line that sends one packet after the other.
#[derive(Debug)]
pub(super) struct Serial {
    rate_bits_per_s: u64,
    queue_bytes: u64,
    /// The time at which the last bit of the packets taken so far leaves. It is the whole state of
    /// the queue, so nothing has to be simulated between two packets.
    free_at: u64,
    /// The remainder of the last division by the rate, which the next one adds, so that the rate is
    /// exact for small packets too.
    remainder: u64,
}

impl Serial {
    fn pass(&mut self, now: u64, bytes: u64) -> Option<u64> {
        if self.free_at <= now {
            self.free_at = now;
            self.remainder = 0;
        } else if self.backlog_bytes(now) + bytes > self.queue_bytes {
            return None;
        }
        // At most 65,535 × 8 × 10^9 plus a rate: within 64 bits.
        let scaled = bytes * BITS_PER_BYTE * NANOS_PER_S + self.remainder;
        self.free_at += scaled / self.rate_bits_per_s;
        self.remainder = scaled % self.rate_bits_per_s;
        Some(self.free_at)
    }

    /// The bytes that are still to be sent, with the rest of the packet that is on the line.
    fn backlog_bytes(&self, now: u64) -> u64 {
        let busy = u128::from(self.free_at - now);
        let bytes =
            busy * u128::from(self.rate_bits_per_s) / u128::from(BITS_PER_BYTE * NANOS_PER_S);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// The price of a byte in tokens. A token is a billionth of a bit, so the tokens that come in are
/// nanoseconds times bits per second, without any rounding.
const TOKENS_PER_BYTE: u64 = BITS_PER_BYTE * NANOS_PER_S;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Policer {
    rate_bits_per_s: u64,
    tokens_max: u64,
    tokens: u64,
    filled_at: u64,
}

impl Policer {
    fn pass(&mut self, now: u64, bytes: u64) -> bool {
        let earned = (now - self.filled_at).saturating_mul(self.rate_bits_per_s);
        self.tokens = self.tokens.saturating_add(earned).min(self.tokens_max);
        self.filled_at = now;
        match self.tokens.checked_sub(bytes * TOKENS_PER_BYTE) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}
