//! Known links by name.

use std::time::Duration;

use super::profile::{Loss, Profile, QueueLimit};

/// A link with a name. Left is the public side, right is the side behind the access line: left to
/// right is "down".
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// The name of the link on a command line.
    pub name: &'static str,
    /// The kind of link that it stands for, in one line.
    pub summary: &'static str,
    /// The direction towards the access line.
    pub left_to_right: Profile,
    /// The direction from the access line.
    pub right_to_left: Profile,
}

impl Preset {
    /// The round-trip time of the two delays, without queues and jitter.
    pub fn round_trip(&self) -> Duration {
        self.left_to_right.delay + self.right_to_left.delay
    }
}

/// The names that [`preset`] knows, with the kinds of link that they stand for.
///
/// The figures are those of ordinary links of the kind, rounded; none is a measurement of a certain
/// network. Delays are one way: a ping takes both.
pub const PRESETS: &[(&str, &str)] = &[
    ("reference", "200 Mbit/s, 20 ms, 1 % random loss"),
    ("transatlantic", "500 Mbit/s, 40 ms, 0.01 % loss"),
    (
        "policer",
        "50 Mbit/s cut by a policer instead of a queue, 15 ms",
    ),
];

const MBIT: u64 = 1_000_000;

/// The link of this name, alike in both directions; [`PRESETS`] lists them.
pub fn preset(name: &str) -> Option<Preset> {
    let (name, summary) = *PRESETS.iter().find(|(known, _)| *known == name)?;
    let ms = Duration::from_millis;
    let profile = match name {
        "reference" => Profile {
            loss: Loss::Random { p: 0.01 },
            ..Profile::line(200 * MBIT, ms(20))
        },
        "transatlantic" => Profile {
            jitter: Duration::from_micros(500),
            loss: Loss::Random { p: 0.000_1 },
            ..Profile::line(500 * MBIT, ms(40))
        },
        "policer" => Profile {
            queue: QueueLimit::Policer {
                burst_bytes: 128 * 1024,
            },
            ..Profile::line(50 * MBIT, ms(15))
        },
        _ => return None,
    };
    Some(Preset {
        name,
        summary,
        left_to_right: profile.clone(),
        right_to_left: profile,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_a_link_that_can_be_emulated() {
        for (name, _) in PRESETS {
            let preset = preset(name).unwrap_or_else(|| panic!("{name} is listed but not defined"));
            assert_eq!(preset.left_to_right.check(), Ok(()), "{name}");
        }
        assert_eq!(preset("carrier-pigeon"), None);
    }
}
