//! Known links by name.

use std::time::Duration;

use serde::Serialize;

use super::profile::{Loss, MTU_BYTES_DEFAULT, Profile, QueueLimit};

/// A link with a name. Left is the public side, right is the side behind the access line: left to right is "down".
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preset {
    /// What it is called on a command line.
    pub name: &'static str,
    /// What it stands for, in one line.
    pub summary: &'static str,
    /// Towards the access line.
    pub left_to_right: Profile,
    /// From the access line.
    pub right_to_left: Profile,
}

impl Preset {
    /// The round-trip time of the two delays, without queues and jitter.
    pub fn round_trip(&self) -> Duration {
        self.left_to_right.delay + self.right_to_left.delay
    }
}

/// The names that [`preset`] knows, with what they stand for.
///
/// The figures are those of ordinary links of the kind, rounded; none is a measurement of a certain network. Delays are
/// one way: a ping takes both.
pub const PRESETS: &[(&str, &str)] = &[
    ("reference", "200 Mbit/s, 20 ms, 1 % random loss"),
    ("lan", "1 Gbit/s, 0.1 ms"),
    ("datacenter", "2 Gbit/s, 0.25 ms, packets of 9000 bytes"),
    (
        "wifi",
        "100 Mbit/s, 3 ms with jitter, 0.3 % loss in bursts, some reordering",
    ),
    (
        "lte",
        "40 Mbit/s down, 15 up, 25 ms with jitter, a deep queue, rare bursts of loss",
    ),
    ("dsl", "50 Mbit/s down, 10 up, 10 ms, packets of 1492 bytes"),
    ("transatlantic", "500 Mbit/s, 40 ms, 0.01 % loss"),
    (
        "satellite",
        "150 Mbit/s down, 15 up, 25 ms with much jitter, 0.5 % loss in bursts",
    ),
    (
        "lossy",
        "50 Mbit/s, 25 ms, 3 % loss, reordering and duplicates",
    ),
    (
        "policer",
        "50 Mbit/s cut by a policer instead of a queue, 15 ms",
    ),
];

const MBIT: u64 = 1_000_000;

/// The link of this name; [`PRESETS`] lists them.
pub fn preset(name: &str) -> Option<Preset> {
    let (name, summary) = *PRESETS.iter().find(|(known, _)| *known == name)?;
    let (left_to_right, right_to_left) = profiles(name)?;
    Some(Preset {
        name,
        summary,
        left_to_right,
        right_to_left,
    })
}

fn profiles(name: &str) -> Option<(Profile, Profile)> {
    let pair = match name {
        "reference" => both(Profile {
            loss: Loss::Random { p: 0.01 },
            ..Profile::line(200 * MBIT, ms(20))
        }),
        "lan" => both(Profile::line(1_000 * MBIT, Duration::from_micros(100))),
        "datacenter" => both(Profile {
            mtu: 9_000,
            ..Profile::line(2_000 * MBIT, Duration::from_micros(250))
        }),
        "wifi" => both(Profile {
            jitter: ms(2),
            loss: bursts(0.001, 3.0),
            reorder: 0.001,
            queue: QueueLimit::Bytes(512 * 1024),
            ..Profile::line(100 * MBIT, ms(3))
        }),
        // The queue of a base station is deep: half a second at the rate of the direction.
        "lte" => {
            let direction = |rate| Profile {
                jitter: ms(8),
                loss: bursts(0.000_1, 8.0),
                mtu: 1_428,
                queue: QueueLimit::Bytes(rate / 8 / 2),
                ..Profile::line(rate, ms(25))
            };
            (direction(40 * MBIT), direction(15 * MBIT))
        }
        // PPPoE takes 8 bytes of each Ethernet frame (RFC 2516).
        "dsl" => {
            let direction = |rate| Profile {
                mtu: MTU_BYTES_DEFAULT - 8,
                ..Profile::line(rate, ms(10))
            };
            (direction(50 * MBIT), direction(10 * MBIT))
        }
        "transatlantic" => both(Profile {
            jitter: Duration::from_micros(500),
            loss: Loss::Random { p: 0.000_1 },
            ..Profile::line(500 * MBIT, ms(40))
        }),
        "satellite" => {
            let direction = |rate| Profile {
                jitter: ms(12),
                loss: bursts(0.000_25, 20.0),
                queue: QueueLimit::Bytes(rate / 8 / 10),
                ..Profile::line(rate, ms(25))
            };
            (direction(150 * MBIT), direction(15 * MBIT))
        }
        "lossy" => both(Profile {
            loss: Loss::Random { p: 0.03 },
            reorder: 0.01,
            duplicate: 0.002,
            ..Profile::line(50 * MBIT, ms(25))
        }),
        "policer" => both(Profile {
            queue: QueueLimit::Policer {
                burst_bytes: 128 * 1024,
            },
            ..Profile::line(50 * MBIT, ms(15))
        }),
        _ => return None,
    };
    Some(pair)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn both(profile: Profile) -> (Profile, Profile) {
    (profile.clone(), profile)
}

/// Bursts of a mean length in packets that lose everything.
fn bursts(p_enter: f64, mean_packets: f64) -> Loss {
    Loss::Bursts {
        p_enter,
        p_leave: 1.0 / mean_packets,
        p_loss: 1.0,
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_a_link_that_can_be_emulated() {
        for (name, _) in PRESETS {
            let preset = preset(name).unwrap_or_else(|| panic!("{name} is listed but not defined"));
            preset.left_to_right.check().unwrap();
            preset.right_to_left.check().unwrap();
        }
        assert_eq!(preset("carrier-pigeon"), None);
    }
}
