//! Lanes through networks that change, by the rules of the fallback.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::tests::{ask, on_udp};
use super::*;

/// Whether the network lets a UDP packet pass.
type Udp = fn(&mut StdRng, Passage) -> bool;

/// Whether a TLS connection that was dialled at the first time carries anything at the second one.
type Tls = fn(Duration, Duration) -> bool;

/// A question that is sent.
#[derive(Clone, Copy)]
struct Passage {
    at: Duration,
    /// How long the lane has been on UDP.
    ridden: Duration,
    /// Whether it is sent from another port than the lane's.
    scout: bool,
}

/// The record of a lane.
#[derive(Debug, Default)]
struct Life {
    moves: usize,
    /// The longest time without an answer while one of the two transports was good.
    longest_pause: Duration,
    on_tls: Duration,
    on_udp: Duration,
}

/// Step of the simulated time, which is also a round trip.
const STEP: Duration = Duration::from_millis(50);

/// A lane that asks a question in each step, for an hour.
fn live(seed: u64, udp: Udp, tcp_passes: bool) -> Life {
    live_with(
        seed,
        udp,
        if tcp_passes {
            |_, _| true
        } else {
            |_, _| false
        },
    )
}

/// Runs a lane like [`live`]. A dial succeeds if the connection carries something at that time.
fn live_with(seed: u64, udp: Udp, tls: Tls) -> Life {
    let mut random = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let mut lane = on_udp(start);
    let (mut life, mut answered, mut rides_since) = (Life::default(), start, start);
    let (mut dialled_at, mut probed_at) = (None::<Instant>, None);
    // When the connection that exists was dialled, and the second one.
    let (mut first, mut second) = (start, start);
    let mut asked_since = None;
    for step in 1..72_000 {
        let now = start + STEP * step;
        let at = now - start;
        if dialled_at.is_some_and(|at| now >= at) {
            dialled_at = None;
            if lane.dialled(now, tls(at, at)) {
                second = now;
            } else {
                first = now;
            }
        }
        let mut passes = |scout| {
            let ridden = now - rides_since;
            udp(&mut random, Passage { at, ridden, scout })
        };
        if probed_at.is_some_and(|at| now >= at) {
            probed_at = None;
            let scouted = (0..4).all(|_| passes(true));
            lane.probed(now, scouted);
        }
        let heard = match lane.riding() {
            Riding::Udp => passes(false),
            Riding::Tls => tls(first - start, at),
        };
        asked_since = if heard {
            None
        } else {
            asked_since.or(Some(now))
        };
        if heard {
            life.longest_pause = life.longest_pause.max(now - answered);
            answered = now;
        }
        while let Some(action) = ask(&mut lane, now, asked_since) {
            match action {
                Action::DialTls => dialled_at = Some(now + STEP * 3),
                Action::ProbeQuic(_) => probed_at = Some(now + STEP * 5),
                Action::CloseTls | Action::CloseSecond => {}
                Action::Ride(_, why) => {
                    life.moves += 1;
                    rides_since = now;
                    if why == Why::TlsIsSilent {
                        first = second;
                    }
                }
            }
        }
        match lane.riding() {
            Riding::Udp => life.on_udp += STEP,
            Riding::Tls => life.on_tls += STEP,
        }
    }
    life
}

/// The longest pause that a change of the network may cost: the silence, the dial, and the move.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// The longest pause where the TLS connection is still there.
const SHORT_PAUSE_MAX: Duration = Duration::from_secs(1);

fn assert_lives(name: &str, udp: Udp, holds: impl Fn(&Life) -> bool) {
    for _ in 0..20 {
        let seed = rand::random();
        let life = live(seed, udp, true);
        assert!(
            life.longest_pause <= PAUSE_MAX,
            "{name}, seed {seed}: {life:?}"
        );
        assert!(holds(&life), "{name}, seed {seed}: {life:?}");
    }
}

#[test]
fn lost_packets_move_no_lane() {
    assert_lives(
        "1 in 5 is lost",
        |random, _| random.random_bool(0.8),
        |life| life.moves == 0,
    );
}

#[test]
fn short_outages_of_udp_cost_little_and_few_moves() {
    let udp: Udp = |_, it| it.at.as_secs() % 600 != 0;
    assert_lives("an outage of a second every 10 minutes", udp, |life| {
        life.moves <= 12 && life.on_udp > life.on_tls
    });
}

#[test]
fn udp_that_is_dropped_for_good_is_left_once() {
    let udp: Udp = |_, it| it.at < Duration::from_secs(100);
    assert_lives("dropped for good", udp, |life| life.moves == 1);
}

#[test]
fn udp_that_passes_again_is_taken_back() {
    let udp: Udp = |_, it| !(100..200).contains(&it.at.as_secs());
    assert_lives("dropped for 100 s", udp, |life| {
        life.moves == 2 && life.on_tls < Duration::from_secs(100 + 35)
    });
}

#[test]
fn udp_that_passes_for_half_a_minute_only_costs_a_short_pause_each_minute() {
    let udp: Udp = |_, it| it.scout || it.ridden < Duration::from_secs(30);
    assert_lives("30 s of each flow", udp, |life| {
        life.moves <= 122 && life.longest_pause <= SHORT_PAUSE_MAX
    });
}

#[test]
fn handshakes_that_pass_where_nothing_else_does_cost_a_short_pause_each_half_minute() {
    let udp: Udp = |_, it| it.scout || it.at < Duration::from_secs(10);
    assert_lives("handshakes alone", udp, |life| {
        life.moves <= 242 && life.longest_pause <= SHORT_PAUSE_MAX && life.on_tls > life.on_udp * 20
    });
}

#[test]
fn a_network_that_is_away_altogether_moves_nothing() {
    for _ in 0..20 {
        let udp: Udp = |_, it| !(100..160).contains(&it.at.as_secs());
        let seed = rand::random();
        let life = live(seed, udp, false);
        assert_eq!(life.moves, 0, "seed {seed}: {life:?}");
    }
}

#[test]
fn udp_that_passes_again_after_hours_is_taken_back_within_half_a_minute() {
    let udp: Udp = |_, it| !(100..2_900).contains(&it.at.as_secs());
    assert_lives("dropped for 2,800 s", udp, |life| {
        life.moves == 2 && life.on_tls < Duration::from_secs(2_800 + 35)
    });
}

#[test]
fn where_udp_does_not_pass_connections_that_a_firewall_forgets_cost_a_pause_each() {
    // Each connection works for 5 minutes from its beginning.
    let udp: Udp = |_, it| it.at < Duration::from_secs(10);
    let tls: Tls = |dialled, at| at < dialled + Duration::from_secs(300);
    for _ in 0..20 {
        let seed = rand::random();
        let life = live_with(seed, udp, tls);
        assert!(life.longest_pause <= PAUSE_MAX, "seed {seed}: {life:?}");
        assert_eq!(life.moves, 12, "seed {seed}: {life:?}");
    }
}

#[test]
fn where_nothing_passes_for_a_while_a_lane_on_tls_is_back_soon_after() {
    let udp: Udp = |_, it| it.at < Duration::from_secs(10);
    // The client moves from one network to another: earlier connections are dead for good.
    let tls: Tls = |dialled, at| {
        let gap = |at: Duration| (1_000..1_060).contains(&at.as_secs());
        !gap(at) && (at.as_secs() < 1_000 || dialled.as_secs() >= 1_060)
    };
    for _ in 0..20 {
        let seed = rand::random();
        let life = live_with(seed, udp, tls);
        // The dials that failed have made the pauses grow.
        let most = Duration::from_secs(60 + 8);
        assert!(life.longest_pause <= most, "seed {seed}: {life:?}");
        assert!(
            life.on_udp < Duration::from_secs(30),
            "seed {seed}: {life:?}"
        );
    }
}
