//! What one direction of a link does to packets.

use std::fmt::Display;
use std::time::Duration;

use thiserror::Error;

/// The MTU of Ethernet, which most paths have, in bytes of IP packet.
pub const MTU_BYTES_DEFAULT: u16 = 1_500;

/// The smallest MTU of a profile: QUIC needs 1,200 bytes of UDP payload (RFC 9000, section 14),
/// IPv6 needs 1,280 bytes.
const MTU_BYTES_MIN: u16 = 1_280;

/// The lowest rate of a profile. It is slower than any link of today, and a packet still passes
/// within some seconds.
const RATE_BITS_PER_S_MIN: u64 = 1_000;

/// The highest rate of a profile. No emulated link needs more, and up to this rate the arithmetic
/// of the line stays within 64 bits.
const RATE_BITS_PER_S_MAX: u64 = 100_000_000_000;

/// The longest one-way delay of a profile. It is far longer than a round trip over a geostationary
/// satellite.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// The smallest default queue. A sender with segmentation offload hands over 64 KiB at once, and
/// each end may have two such bursts on their way; a smaller queue would measure the offload.
const QUEUE_BYTES_MIN: u64 = 128 * 1024;

/// The most bytes of a queue or of a burst: what a direction may hold in memory without a rate that
/// bounds it.
pub(super) const QUEUE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How much earlier a reordered packet arrives unless the profile says something else: about the
/// time for which a Wi-Fi retransmission delays the packets behind it.
const REORDER_AHEAD_DEFAULT: Duration = Duration::from_millis(1);

/// One direction of a link. Rates, queues and the MTU count bytes of IP packets.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The rate of the line; `None` for a line as fast as this machine.
    pub rate_bits_per_s: Option<u64>,
    /// The one-way delay from the end of the line to the other side.
    pub delay: Duration,
    /// The delay wanders between `delay - jitter` and `delay + jitter`, slowly enough to keep
    /// packets in order.
    pub jitter: Duration,
    /// Which packets get lost. They get lost behind the line, so they have used its time.
    pub loss: Loss,
    /// The probability that a packet overtakes those before it.
    pub reorder: f64,
    /// How much earlier a packet that overtakes arrives, at most by its delay. It overtakes the
    /// packets that were sent less than this time before it.
    pub reorder_ahead: Duration,
    /// The probability that a packet arrives twice.
    pub duplicate: f64,
    /// The largest packet that passes.
    pub mtu: u16,
    /// Hosts do not know the MTU: their interface has [`MTU_BYTES_DEFAULT`] and larger packets are
    /// dropped silently, as behind a firewall that drops ICMP. Otherwise the interface has the MTU
    /// of the link.
    pub mtu_hidden: bool,
    /// What happens to packets that arrive faster than the line takes them.
    pub queue: QueueLimit,
}

/// How packets get lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// No packet gets lost.
    None,
    /// Each packet gets lost with this probability, independently of the others.
    Random {
        /// The probability.
        p: f64,
    },
    /// Packets get lost in bursts (the Gilbert-Elliott model): the link is good or bad, and a bad
    /// link loses packets.
    Bursts {
        /// The probability that a good link turns bad, per packet.
        p_enter: f64,
        /// The probability that a bad link turns good, per packet; the inverse of a burst's mean
        /// length.
        p_leave: f64,
        /// The probability that a packet gets lost while the link is bad.
        p_loss: f64,
    },
}

impl Loss {
    /// The share of packets that get lost in the long run.
    pub fn mean(&self) -> f64 {
        match *self {
            Self::None | Self::Bursts { p_enter: 0.0, .. } => 0.0,
            Self::Random { p } => p,
            Self::Bursts {
                p_enter,
                p_leave,
                p_loss,
            } => p_loss * p_enter / (p_enter + p_leave),
        }
    }
}

/// How many packets may wait in front of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueLimit {
    /// A queue of rate × two delays, at least 128 KiB; packets that do not fit are dropped.
    BandwidthDelayProduct,
    /// A queue of this many bytes.
    Bytes(u64),
    /// No queue: packets pass at once while tokens last and are dropped otherwise, as by a
    /// provider's policer.
    Policer {
        /// How many bytes may pass at once after a pause.
        burst_bytes: u64,
    },
}

/// A profile that cannot be emulated: one of its fields has a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{field} is {value}; allowed is {allowed}")]
pub struct ProfileError {
    field: &'static str,
    value: String,
    allowed: String,
}

impl Default for Profile {
    /// A link that does nothing but pass packets on.
    fn default() -> Self {
        Self {
            rate_bits_per_s: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Loss::None,
            reorder: 0.0,
            reorder_ahead: REORDER_AHEAD_DEFAULT,
            duplicate: 0.0,
            mtu: MTU_BYTES_DEFAULT,
            mtu_hidden: false,
            queue: QueueLimit::BandwidthDelayProduct,
        }
    }
}

impl Profile {
    /// A line with a rate and a one-way delay and nothing else.
    pub fn line(rate_bits_per_s: u64, delay: Duration) -> Self {
        Self {
            rate_bits_per_s: Some(rate_bits_per_s),
            delay,
            ..Self::default()
        }
    }

    /// The MTU that the interface of the sending side has.
    pub fn interface_mtu(&self) -> u16 {
        if self.mtu_hidden {
            self.mtu.max(MTU_BYTES_DEFAULT)
        } else {
            self.mtu
        }
    }

    /// How many bytes wait in front of the line at most.
    pub fn queue_bytes(&self) -> u64 {
        match (self.queue, self.rate_bits_per_s) {
            (QueueLimit::Bytes(bytes), _) => bytes,
            (QueueLimit::Policer { .. }, _) => 0,
            (QueueLimit::BandwidthDelayProduct, None) => QUEUE_BYTES_MAX,
            (QueueLimit::BandwidthDelayProduct, Some(rate)) => {
                let product = u128::from(rate) / 8 * (2 * self.delay.as_micros()) / 1_000_000;
                u64::try_from(product)
                    .unwrap_or(QUEUE_BYTES_MAX)
                    .clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX)
            }
        }
    }

    /// Checks that the profile can be emulated.
    ///
    /// # Errors
    ///
    /// The first field with a value that is not allowed.
    pub fn check(&self) -> Result<(), ProfileError> {
        for (field, p) in self.probabilities() {
            let allowed = &"a probability from 0 to 1";
            require((0.0..=1.0).contains(&p), field, &p, allowed)?;
        }
        if let Some(rate) = self.rate_bits_per_s {
            require(
                (RATE_BITS_PER_S_MIN..=RATE_BITS_PER_S_MAX).contains(&rate),
                "rate_bits_per_s",
                &rate,
                &format_args!("{RATE_BITS_PER_S_MIN} to {RATE_BITS_PER_S_MAX}"),
            )?;
        }
        require(
            self.delay <= DELAY_MAX,
            "delay",
            &format_args!("{:?}", self.delay),
            &format_args!("up to {DELAY_MAX:?}"),
        )?;
        require(
            self.jitter <= self.delay,
            "jitter",
            &format_args!("{:?}", self.jitter),
            &format_args!("up to the delay, {:?}", self.delay),
        )?;
        require(
            self.mtu >= MTU_BYTES_MIN,
            "mtu",
            &self.mtu,
            &format_args!("at least {MTU_BYTES_MIN} bytes"),
        )?;
        self.check_queue()
    }

    fn check_queue(&self) -> Result<(), ProfileError> {
        let (field, bytes) = match self.queue {
            QueueLimit::BandwidthDelayProduct => return Ok(()),
            QueueLimit::Bytes(bytes) => ("queue", bytes),
            QueueLimit::Policer { burst_bytes } => {
                require(
                    self.rate_bits_per_s.is_some(),
                    "queue",
                    &"a policer",
                    &"a policer on a link with a rate",
                )?;
                ("burst_bytes", burst_bytes)
            }
        };
        require(
            (u64::from(self.mtu)..=QUEUE_BYTES_MAX).contains(&bytes),
            field,
            &bytes,
            &format_args!("one packet of {} bytes to {QUEUE_BYTES_MAX}", self.mtu),
        )
    }

    fn probabilities(&self) -> Vec<(&'static str, f64)> {
        let mut all = vec![("reorder", self.reorder), ("duplicate", self.duplicate)];
        match self.loss {
            Loss::None => {}
            Loss::Random { p } => all.push(("loss.p", p)),
            Loss::Bursts {
                p_enter,
                p_leave,
                p_loss,
            } => all.extend([
                ("loss.p_enter", p_enter),
                ("loss.p_leave", p_leave),
                ("loss.p_loss", p_loss),
            ]),
        }
        all
    }
}

fn require(
    holds: bool,
    field: &'static str,
    value: &dyn Display,
    allowed: &dyn Display,
) -> Result<(), ProfileError> {
    if holds {
        return Ok(());
    }
    Err(ProfileError {
        field,
        value: value.to_string(),
        allowed: allowed.to_string(),
    })
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]
mod tests {
    use super::*;

    #[test]
    fn the_default_queue_is_the_bandwidth_delay_product_with_a_floor() {
        let long = Profile::line(200_000_000, Duration::from_millis(20));
        assert_eq!(long.queue_bytes(), 1_000_000);
        let short = Profile::line(10_000_000, Duration::from_millis(1));
        assert_eq!(short.queue_bytes(), QUEUE_BYTES_MIN);
    }

    #[test]
    fn an_error_names_the_field_its_value_and_what_is_allowed() {
        let cases = [
            (
                Profile {
                    loss: Loss::Random { p: 1.5 },
                    ..Profile::default()
                },
                "loss.p is 1.5; allowed is a probability from 0 to 1",
            ),
            (
                Profile {
                    loss: Loss::Random { p: f64::NAN },
                    ..Profile::default()
                },
                "loss.p is NaN; allowed is a probability from 0 to 1",
            ),
            (
                Profile {
                    rate_bits_per_s: Some(0),
                    ..Profile::default()
                },
                "rate_bits_per_s is 0; allowed is 1000 to 100000000000",
            ),
            (
                Profile {
                    jitter: Duration::from_millis(2),
                    delay: Duration::from_millis(1),
                    ..Profile::default()
                },
                "jitter is 2ms; allowed is up to the delay, 1ms",
            ),
            (
                Profile {
                    mtu: 576,
                    ..Profile::default()
                },
                "mtu is 576; allowed is at least 1280 bytes",
            ),
            (
                Profile {
                    queue: QueueLimit::Policer { burst_bytes: 9_000 },
                    ..Profile::default()
                },
                "queue is a policer; allowed is a policer on a link with a rate",
            ),
            (
                Profile {
                    queue: QueueLimit::Bytes(100),
                    ..Profile::default()
                },
                "queue is 100; allowed is one packet of 1500 bytes to 268435456",
            ),
        ];
        for (profile, message) in cases {
            assert_eq!(profile.check().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_mean_loss_of_bursts_is_the_loss_in_the_share_of_time_that_the_link_is_bad() {
        let loss = Loss::Bursts {
            p_enter: 0.01,
            p_leave: 0.09,
            p_loss: 0.5,
        };
        assert!((loss.mean() - 0.05).abs() < 1e-12);
    }
}
