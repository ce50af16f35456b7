//! Rules of the fallback, one by one, and lanes through networks that change.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn on_udp(now: Instant) -> Fallback {
    Fallback::new(Transport::Auto, Riding::Udp, now)
}

/// A lane that has gone to TLS, whose QUIC was tried in vain as often as `failures` says.
fn on_tls(now: Instant) -> Fallback {
    let mut lane = on_udp(now);
    let since = Some(now);
    assert_eq!(lane.next(now + SILENCE, since), Some(Action::DialTls));
    lane.dialled(now + SILENCE, true);
    let ride = Action::Ride(Riding::Tls, Why::UdpIsSilent);
    assert_eq!(lane.next(now + SILENCE, since), Some(ride));
    assert_eq!(lane.next(now + SILENCE, since), None, "it is asked anew");
    lane
}

#[test]
fn a_lane_that_is_answered_dials_nothing() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    for at in 0..3_600 {
        assert_eq!(lane.next(now + s(at), None), None);
    }
    assert_eq!(lane.deadline(), None);
}

#[test]
fn a_silence_that_ends_before_tls_is_there_moves_nothing_and_the_connection_goes() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    let since = Some(now);
    assert_eq!(lane.next(now + SILENCE - ms(1), since), None);
    assert_eq!(lane.next(now + SILENCE, since), Some(Action::DialTls));
    assert_eq!(lane.next(now + SILENCE + ms(1), since), None);
    let now = now + SILENCE + ms(100);
    lane.dialled(now, true);
    assert_eq!(lane.next(now, None), None);
    assert_eq!(lane.next(now + SPARE_FOR, None), Some(Action::CloseTls));
    assert_eq!(lane.next(now + SPARE_FOR, None), None);
}

#[test]
fn where_neither_passes_tls_is_dialled_with_growing_pauses() {
    let start = Instant::now();
    let mut lane = on_udp(start);
    let (mut now, mut dials) = (start, Vec::new());
    while now < start + s(300) {
        if let Some(action) = lane.next(now, Some(start)) {
            assert_eq!(action, Action::DialTls);
            dials.push(now);
            lane.dialled(now, false);
        }
        now += ms(100);
    }
    let pauses: Vec<_> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted() && *pauses.last().expect("several") == s(32));
    assert!(pauses[0] <= DIAL_PAUSE + ms(100));
}

#[test]
fn quic_is_tried_after_30_s_and_in_vain_with_growing_pauses() {
    let start = Instant::now();
    let mut lane = on_tls(start);
    let (mut now, mut tries) = (start, Vec::new());
    while now < start + s(2 * 3_600) {
        if let Some(action) = lane.next(now, None) {
            assert_eq!(action, Action::ProbeQuic);
            tries.push(now);
            lane.probed(now, false);
        }
        now += ms(100);
    }
    assert!(tries[0] >= start + QUIC_PAUSE && tries[0] < start + QUIC_PAUSE + s(1));
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted());
    assert_eq!(*pauses.last().expect("several"), s(30 << DOUBLINGS_MAX));
}

#[test]
fn a_lane_whose_tls_connection_ends_goes_over_udp_until_there_is_another_one() {
    let now = Instant::now() + s(100);
    let mut lane = on_tls(now - s(1));
    lane.lost_tls(now);
    let ride = Action::Ride(Riding::Udp, Why::TlsIsLost);
    assert_eq!(lane.next(now, None), Some(ride));
    assert_eq!(lane.next(now, None), Some(Action::DialTls));
    lane.dialled(now + ms(50), true);
    let back = Action::Ride(Riding::Tls, Why::TlsIsBack);
    assert_eq!(lane.next(now + ms(50), None), Some(back));
    // In vain, and UDP is heard: it stays there.
    lane.lost_tls(now + s(1));
    assert_eq!(lane.next(now + s(1), None), Some(ride));
    assert_eq!(lane.next(now + s(1), None), Some(Action::DialTls));
    lane.dialled(now + s(2), false);
    assert_eq!(lane.next(now + s(60), None), None);
}

#[test]
fn a_lane_for_tls_alone_dials_it_again_and_never_goes_over_udp() {
    let now = Instant::now();
    let mut lane = Fallback::new(Transport::Tls, Riding::Tls, now);
    assert_eq!(lane.next(now + s(3_600), Some(now)), None);
    lane.lost_tls(now);
    for failures in 0..3 {
        let at = now + s(60 * failures);
        assert_eq!(lane.next(at, Some(now)), Some(Action::DialTls));
        lane.dialled(at, false);
    }
    let now = now + s(600);
    assert_eq!(lane.next(now, Some(now)), Some(Action::DialTls));
    lane.dialled(now, true);
    let back = Action::Ride(Riding::Tls, Why::TlsIsBack);
    assert_eq!(lane.next(now, Some(now)), Some(back));
    assert_eq!(lane.next(now, Some(now)), None);
}

#[test]
fn a_lane_for_quic_alone_does_nothing() {
    let now = Instant::now();
    let mut lane = Fallback::new(Transport::Quic, Riding::Udp, now);
    assert_eq!(lane.next(now + s(60), Some(now)), None);
    assert_eq!(lane.deadline(), None);
}

/// What the network does with UDP at a time after the start.
type Udp = fn(&mut StdRng, Passage) -> bool;

/// A question that wants to pass.
#[derive(Clone, Copy)]
struct Passage {
    at: Duration,
    /// Since the lane has come to UDP.
    ridden: Duration,
    /// From another port than the lane's.
    scout: bool,
}

/// What came of a lane.
#[derive(Debug, Default)]
struct Life {
    moves: usize,
    /// The longest time without an answer while one of the two ways was good.
    longest_pause: Duration,
    on_tls: Duration,
    on_udp: Duration,
}

/// Step of the simulated time, which is also a round trip.
const STEP: Duration = Duration::from_millis(50);

/// A lane that asks a question in each step, for an hour.
fn live(seed: u64, udp: Udp, tcp_passes: bool) -> Life {
    let mut random = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let mut lane = on_udp(start);
    let (mut life, mut answered, mut rides_since) = (Life::default(), start, start);
    let (mut dialled_at, mut probed_at) = (None, None);
    let mut asked_since = None;
    for step in 1..72_000 {
        let now = start + STEP * step;
        if dialled_at.is_some_and(|at| now >= at) {
            dialled_at = None;
            lane.dialled(now, tcp_passes);
        }
        let at = now - start;
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
            Riding::Tls => true,
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
        while let Some(action) = lane.next(now, asked_since) {
            match action {
                Action::DialTls => dialled_at = Some(now + STEP * 3),
                Action::ProbeQuic => probed_at = Some(now + STEP * 5),
                Action::CloseTls => {}
                Action::Ride(..) => {
                    life.moves += 1;
                    rides_since = now;
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
        life.moves == 2 && life.on_tls < Duration::from_secs(300)
    });
}

#[test]
fn udp_that_passes_for_half_a_minute_only_is_tried_less_and_less_often() {
    let udp: Udp = |_, it| it.scout || it.ridden < Duration::from_secs(30);
    assert_lives("30 s of each flow", udp, |life| {
        life.moves <= 20 && life.on_tls > life.on_udp * 5
    });
}

#[test]
fn handshakes_that_pass_where_nothing_else_does_do_not_shake_a_lane() {
    let udp: Udp = |_, it| it.scout || it.at < Duration::from_secs(10);
    assert_lives("handshakes alone", udp, |life| {
        life.moves <= 20 && life.on_tls > life.on_udp * 20
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
