//! The links with faults, as data.

use std::time::Duration;

use qmux_link::{Faults, Loss, Preset, Profile, QueueLimit};

const MBIT: u64 = 1_000_000;

/// What goes wrong beside what the link is like for good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Disturbance {
    /// Nothing.
    None,
    /// Packets get lost with this probability until the tunnel is up.
    LossInHandshake(f64),
    /// Packets get a wrong bit with this probability.
    Corruption(f64),
    /// Once, for so long, nothing passes.
    BlackHole(Duration),
    /// A NAT gives the client another port, time and again.
    Rebinding(Duration),
}

impl Disturbance {
    pub(super) fn before_the_handshake(&self, faults: &Faults) {
        match *self {
            Self::LossInHandshake(p) => faults.set_loss(p),
            Self::Corruption(p) => faults.set_corruption(p),
            Self::None | Self::BlackHole(_) | Self::Rebinding(_) => {}
        }
    }

    pub(super) fn after_the_handshake(&self, faults: &Faults) {
        if let Self::LossInHandshake(_) = self {
            faults.set_loss(0.0);
        }
    }

    /// For a load of another size: rebinding as often per byte, but a black hole as long as ever.
    pub(super) fn scaled(&self, scale: f64) -> Self {
        match *self {
            Self::Rebinding(every) => Self::Rebinding(every.mul_f64(scale.clamp(0.02, 1.0))),
            other => other,
        }
    }
}

/// One link.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    /// Both directions, changed from [`line`].
    change: fn(&mut Profile),
    pub(super) disturbance: Disturbance,
}

impl Scenario {
    const fn new(name: &'static str, summary: &'static str, change: fn(&mut Profile)) -> Self {
        Self {
            name,
            summary,
            change,
            disturbance: Disturbance::None,
        }
    }

    const fn with(mut self, disturbance: Disturbance) -> Self {
        self.disturbance = disturbance;
        self
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
    Scenario::new("handshake-loss", "30 % lost in the handshake", |_| {})
        .with(Disturbance::LossInHandshake(0.3)),
    Scenario::new("bursts", "2 % lost in bursts of 3", |profile| {
        profile.loss = Loss::Bursts {
            p_enter: 0.006_8,
            p_leave: 1.0 / 3.0,
            p_loss: 1.0,
        };
    }),
    Scenario::new("corruption", "1 % of packets with a wrong bit", |_| {})
        .with(Disturbance::Corruption(0.01)),
    Scenario::new("reordering", "25 % of packets overtake others", |profile| {
        profile.reorder = 0.25;
        profile.reorder_ahead = Duration::from_millis(5);
    }),
    Scenario::new("duplication", "5 % of packets arrive twice", |profile| {
        profile.duplicate = 0.05;
    }),
    Scenario::new("black-hole", "a black hole of 5 s", |_| {})
        .with(Disturbance::BlackHole(Duration::from_secs(5))),
    // Slow enough for several of them in one transfer.
    Scenario::new(
        "rebinding",
        "a NAT that rebinds every 5 s, 8 Mbit/s",
        |profile| {
            profile.rate_bits_per_s = Some(8 * MBIT);
        },
    )
    .with(Disturbance::Rebinding(Duration::from_secs(5))),
    Scenario::new("long", "750 ms round trip", |profile| {
        profile.delay = Duration::from_millis(375);
    }),
    Scenario::new("small-mtu", "MTU 1,280 without ICMP", |profile| {
        profile.mtu = 1_280;
        profile.mtu_hidden = true;
    }),
    Scenario::new(
        "small-queue",
        "a queue of 25 packets, 10 Mbit/s",
        |profile| {
            profile.rate_bits_per_s = Some(10 * MBIT);
            profile.queue = QueueLimit::Bytes(25 * 1_500);
        },
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_can_be_emulated_and_has_a_name_of_its_own() {
        let mut names: Vec<&str> = SCENARIOS.iter().map(|it| it.name).collect();
        for scenario in SCENARIOS {
            let link = scenario.link();
            assert_eq!(link.left_to_right.check(), Ok(()), "{}", scenario.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
    }

    #[test]
    fn bursts_lose_two_percent() {
        let scenario = SCENARIOS.iter().find(|it| it.name == "bursts");
        let loss = scenario.expect("listed").link().left_to_right.loss;
        assert!((loss.mean() - 0.02).abs() < 0.000_5, "{}", loss.mean());
    }
}
