//! The links with faults, as data.

use std::time::Duration;

use qmux_link::{Loss, Preset, Profile, QueueLimit};

const MBIT: u64 = 1_000_000;

/// One link, and what goes wrong on it beside what it is like for good.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    /// Both directions, changed from [`line()`].
    change: fn(&mut Profile),
    /// Packets get lost with this probability until the tunnel is up.
    pub(super) handshake_loss: f64,
    /// Packets get a wrong bit with this probability.
    pub(super) corruption: f64,
    /// Once, for this long, nothing passes.
    pub(super) black_hole: Duration,
    /// How often a NAT gives the client another port; never if this is zero.
    pub(super) rebinding: Duration,
}

impl Scenario {
    const fn new(name: &'static str, summary: &'static str, change: fn(&mut Profile)) -> Self {
        Self {
            name,
            summary,
            change,
            handshake_loss: 0.0,
            corruption: 0.0,
            black_hole: Duration::ZERO,
            rebinding: Duration::ZERO,
        }
    }

    pub(super) fn link(&self) -> Preset {
        let mut profile = line();
        (self.change)(&mut profile);
        Preset {
            name: self.name,
            summary: self.summary,
            left_to_right: profile.clone(),
            right_to_left: profile,
        }
    }
}

/// What every link is like unless it says something else.
fn line() -> Profile {
    Profile::line(50 * MBIT, Duration::from_millis(15))
}

/// All of them. Rates and delays are those of ordinary access lines; 2 % in bursts of three are
/// bursts that begin with a probability of 0.68 %.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        handshake_loss: 0.3,
        ..Scenario::new("handshake-loss", "30 % lost in the handshake", |_| {})
    },
    Scenario::new("bursts", "2 % lost in bursts of 3", |profile| {
        profile.loss = Loss::Bursts {
            p_enter: 0.006_8,
            p_leave: 1.0 / 3.0,
            p_loss: 1.0,
        };
    }),
    Scenario {
        corruption: 0.01,
        ..Scenario::new("corruption", "1 % of packets with a wrong bit", |_| {})
    },
    Scenario::new("reordering", "25 % of packets overtake others", |profile| {
        profile.reorder = 0.25;
        profile.reorder_ahead = Duration::from_millis(5);
    }),
    Scenario::new("duplication", "5 % of packets arrive twice", |profile| {
        profile.duplicate = 0.05;
    }),
    Scenario {
        black_hole: Duration::from_secs(5),
        ..Scenario::new("black-hole", "a black hole of 5 s", |_| {})
    },
    // Slow enough for several of them in one transfer.
    Scenario {
        rebinding: Duration::from_secs(5),
        ..Scenario::new(
            "rebinding",
            "a NAT that rebinds every 5 s, 8 Mbit/s",
            |it| {
                it.rate_bits_per_s = Some(8 * MBIT);
            },
        )
    },
    Scenario::new("long", "750 ms round trip", |profile| {
        profile.delay = Duration::from_millis(375);
    }),
    Scenario::new("small-mtu", "MTU 1,280 without ICMP", |profile| {
        profile.mtu = 1_280;
        profile.mtu_hidden = true;
    }),
    Scenario::new("small-queue", "a queue of 25 packets, 10 Mbit/s", |it| {
        it.rate_bits_per_s = Some(10 * MBIT);
        it.queue = QueueLimit::Bytes(25 * 1_500);
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_can_be_emulated_and_has_a_name_of_its_own() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            let (name, link) = (scenario.name, scenario.link());
            assert_eq!(link.left_to_right.check(), Ok(()), "{name}");
            assert!(
                SCENARIOS[..index].iter().all(|it| it.name != name),
                "{name}"
            );
            let loss = link.left_to_right.loss.mean();
            let wanted = if name == "bursts" { 0.02 } else { 0.0 };
            assert!((loss - wanted).abs() < 0.000_5, "{name}: {loss}");
        }
    }
}
