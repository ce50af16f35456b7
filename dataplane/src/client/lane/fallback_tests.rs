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

/// What is to be done with a lane that nobody has answered since then.
fn ask(lane: &mut Fallback, now: Instant, unanswered_since: Option<Instant>) -> Option<Action> {
    let signs = Signs {
        unanswered_since,
        ..Signs::default()
    };
    lane.next(now, signs)
}

fn on_udp(now: Instant) -> Fallback {
    Fallback::new(Transport::Auto, Riding::Udp, now)
}

/// A lane that has gone to TLS, whose QUIC was tried in vain as often as `failures` says.
fn on_tls(now: Instant) -> Fallback {
    let mut lane = on_udp(now);
    let since = Some(now);
    assert_eq!(ask(&mut lane, now + SILENCE, since), Some(Action::DialTls));
    lane.dialled(now + SILENCE, true);
    let ride = Action::Ride(Riding::Tls, Why::UdpIsSilent);
    assert_eq!(ask(&mut lane, now + SILENCE, since), Some(ride));
    assert_eq!(
        ask(&mut lane, now + SILENCE, since),
        None,
        "it is asked anew"
    );
    lane
}

#[test]
fn a_lane_that_is_answered_dials_nothing() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    for at in 0..3_600 {
        assert_eq!(ask(&mut lane, now + s(at), None), None);
    }
    assert_eq!(lane.deadline(), None);
}

#[test]
fn a_silence_that_ends_before_tls_is_there_moves_nothing_and_the_connection_goes() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    let since = Some(now);
    assert_eq!(ask(&mut lane, now + SILENCE - ms(1), since), None);
    assert_eq!(ask(&mut lane, now + SILENCE, since), Some(Action::DialTls));
    assert_eq!(ask(&mut lane, now + SILENCE + ms(1), since), None);
    let now = now + SILENCE + ms(100);
    lane.dialled(now, true);
    assert_eq!(ask(&mut lane, now, None), None);
    assert_eq!(
        ask(&mut lane, now + SPARE_FOR, None),
        Some(Action::CloseTls)
    );
    assert_eq!(ask(&mut lane, now + SPARE_FOR, None), None);
}

#[test]
fn a_lane_of_which_most_is_lost_goes_to_tls_although_it_is_answered() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    lane.loses_most(now);
    assert_eq!(ask(&mut lane, now, None), Some(Action::DialTls));
    assert_eq!(ask(&mut lane, now, None), None);
    lane.dialled(now + ms(100), true);
    let ride = Action::Ride(Riding::Tls, Why::UdpLosesMost);
    assert_eq!(ask(&mut lane, now + ms(100), None), Some(ride));
    // What is lost on TLS is none of its business.
    lane.loses_most(now + s(1));
    assert_eq!(ask(&mut lane, now + s(1), None), None);
    // A trickle lets the probe through: the next return waits twice as long.
    lane.probed(now + s(30), true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(&mut lane, now + s(30), None), Some(back));
    lane.loses_most(now + s(34));
    assert_eq!(ask(&mut lane, now + s(34), None), Some(ride));
    assert!(lane.probe_at >= now + s(34) + QUIC_PAUSE * 2);
}

#[test]
fn what_was_said_of_losses_is_forgotten_when_it_is_not_said_again() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    lane.loses_most(now);
    assert_eq!(ask(&mut lane, now, None), Some(Action::DialTls));
    lane.dialled(now + SAID_FOR, true);
    assert_eq!(ask(&mut lane, now + SAID_FOR, None), None, "it takes long");
}

#[test]
fn losses_that_were_said_long_ago_are_not_given_as_the_reason_of_a_move() {
    let now = Instant::now();
    let mut lane = on_udp(now);
    lane.loses_most(now);
    assert_eq!(ask(&mut lane, now, None), Some(Action::DialTls));
    let later = now + SAID_FOR + s(1);
    lane.dialled(later, true);
    let ride = Action::Ride(Riding::Tls, Why::UdpIsSilent);
    assert_eq!(ask(&mut lane, later + SILENCE, Some(later)), Some(ride));
}

#[test]
fn where_neither_passes_tls_is_dialled_with_growing_pauses() {
    let start = Instant::now();
    let mut lane = on_udp(start);
    let (mut now, mut dials) = (start, Vec::new());
    while now < start + s(300) {
        if let Some(action) = ask(&mut lane, now, Some(start)) {
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
fn quic_is_tried_every_30_s_for_as_long_as_it_does_not_pass() {
    let start = Instant::now();
    let mut lane = on_tls(start);
    let (mut now, mut tries) = (start, Vec::new());
    while now < start + s(2 * 3_600) {
        if let Some(action) = ask(&mut lane, now, None) {
            assert_eq!(action, Action::ProbeQuic(QUIC_PAUSE));
            tries.push(now);
            lane.probed(now, false);
        }
        now += ms(100);
    }
    assert!(tries[0] >= start + QUIC_PAUSE && tries[0] < start + QUIC_PAUSE + s(1));
    let mut pauses = tries.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(pauses.all(|pause| pause <= QUIC_PAUSE + ms(100)));
}

/// A lane on TLS whose UDP has failed soon after a return: QUIC is not tried for a minute.
fn damped(now: Instant) -> Fallback {
    let mut lane = on_tls(now - s(100));
    lane.probed(now - s(60), true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(&mut lane, now - s(60), None), Some(back));
    let ride = Action::Ride(Riding::Tls, Why::UdpIsSilent);
    let asked = ask(&mut lane, now, Some(now - s(1)));
    let asked = match asked {
        Some(Action::DialTls) => {
            lane.dialled(now, true);
            ask(&mut lane, now, Some(now - s(1)))
        }
        _ => asked,
    };
    assert_eq!(asked, Some(ride));
    assert_eq!(lane.probe_at, now + QUIC_PAUSE * 2);
    lane
}

/// Has the lane fall silent, so that it wants to know of QUIC: when it asks, which is returned.
fn asks_in_silence(lane: &mut Fallback, since: Instant) -> Instant {
    let silent = since + SILENCE;
    let dials = ask(lane, silent, Some(since));
    assert_eq!(dials, Some(Action::DialTls));
    let asks = ask(lane, silent, Some(since));
    assert_eq!(asks, Some(Action::ProbeQuic(QUIC_PAUSE_SILENT)));
    silent
}

#[test]
fn a_short_silence_of_tls_does_not_shorten_the_wait_for_udp_that_was_bad() {
    let now = Instant::now() + s(1_000);
    // Another lane tries for all when this one asks.
    let mut lane = damped(now);
    let asked = asks_in_silence(&mut lane, now + s(5));
    lane.probe_later(asked + s(1));
    lane.dialled(asked + ms(100), false);
    assert_eq!(lane.deadline(), Some(asked + s(1)));
    let mut at = asked + ms(100);
    while at < now + QUIC_PAUSE * 2 {
        assert_eq!(ask(&mut lane, at, None), None);
        assert!(lane.deadline().is_some_and(|next| next > at), "no turn in vain");
        at += ms(100);
    }
    assert_eq!(ask(&mut lane, at, None), Some(Action::ProbeQuic(QUIC_PAUSE)));
    // It tries itself, and what it finds comes when TLS is answered again.
    let mut lane = damped(now);
    let asked = asks_in_silence(&mut lane, now + s(5));
    lane.dialled(asked + ms(100), false);
    lane.probed(asked + ms(200), true);
    assert_eq!(ask(&mut lane, asked + ms(200), None), None);
    let at = now + QUIC_PAUSE * 2;
    assert_eq!(lane.probe_at, at);
    let due = ask(&mut lane, at, None);
    assert_eq!(due, Some(Action::ProbeQuic(QUIC_PAUSE)));
    lane.probed(at, true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(&mut lane, at, None), Some(back));
}

#[test]
fn a_lane_whose_tls_stays_silent_takes_udp_that_passes_whoever_has_tried_it() {
    let now = Instant::now() + s(1_000);
    let mut lane = damped(now);
    let since = now + s(5);
    let asked = asks_in_silence(&mut lane, since);
    lane.probe_later(asked + s(1));
    lane.dialled(asked + ms(100), false);
    assert_eq!(ask(&mut lane, asked + ms(999), Some(since)), None);
    let again = asked + s(1);
    let mut asks = ask(&mut lane, again, Some(since));
    if asks == Some(Action::DialTls) {
        asks = ask(&mut lane, again, Some(since));
    }
    assert_eq!(asks, Some(Action::ProbeQuic(QUIC_PAUSE_SILENT)));
    lane.probed(again, true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(&mut lane, again, Some(since)), Some(back));
}

#[test]
fn a_lane_whose_tls_connection_ends_goes_over_udp_until_there_is_another_one() {
    let now = Instant::now() + s(100);
    let mut lane = on_tls(now - s(1));
    lane.lost_tls(now, true);
    let ride = Action::Ride(Riding::Udp, Why::TlsIsLost);
    assert_eq!(ask(&mut lane, now, None), Some(ride));
    assert_eq!(ask(&mut lane, now, None), Some(Action::DialTls));
    lane.dialled(now + ms(50), true);
    let back = Action::Ride(Riding::Tls, Why::TlsIsBack);
    assert_eq!(ask(&mut lane, now + ms(50), None), Some(back));
    // In vain, and UDP is heard: it stays there.
    lane.lost_tls(now + s(1), true);
    assert_eq!(ask(&mut lane, now + s(1), None), Some(ride));
    assert_eq!(ask(&mut lane, now + s(1), None), Some(Action::DialTls));
    lane.dialled(now + s(2), false);
    assert_eq!(ask(&mut lane, now + s(60), None), None);
}

#[test]
fn a_lane_whose_tls_connection_ends_stays_on_udp_if_that_answers_before_there_is_another_one() {
    let now = Instant::now() + s(100);
    let mut lane = on_tls(now - s(1));
    lane.lost_tls(now, true);
    let ride = Action::Ride(Riding::Udp, Why::TlsIsLost);
    assert_eq!(ask(&mut lane, now, None), Some(ride));
    assert_eq!(ask(&mut lane, now, None), Some(Action::DialTls));
    assert!(lane.waits_for_answer());
    let answered = Signs {
        answered: true,
        ..Signs::default()
    };
    assert_eq!(lane.next(now + ms(30), answered), None);
    assert!(!lane.waits_for_answer());
    lane.dialled(now + ms(50), true);
    assert_eq!(ask(&mut lane, now + ms(50), None), None);
    let later = now + ms(50) + SPARE_FOR;
    assert_eq!(ask(&mut lane, later, None), Some(Action::CloseTls));
}

#[test]
fn a_lane_on_a_silent_tls_connection_dials_another_one_and_rides_it_if_still_unanswered() {
    for transport in [Transport::Auto, Transport::Tls] {
        let start = Instant::now();
        let mut lane = Fallback::new(transport, Riding::Tls, start);
        let since = Some(start + s(60));
        let silent = start + s(60) + SILENCE;
        assert_eq!(lane.next(start + s(1), Signs::default()), None);
        assert_eq!(
            ask(&mut lane, silent - ms(1), since),
            (transport == Transport::Auto).then_some(Action::ProbeQuic(QUIC_PAUSE))
        );
        assert_eq!(lane.deadline(), Some(silent));
        assert_eq!(ask(&mut lane, silent, since), Some(Action::DialTls));
        assert_eq!(ask(&mut lane, silent, since), None);
        let there = silent + ms(100);
        assert!(lane.dialled(there, true), "the second one");
        let ride = Action::Ride(Riding::Tls, Why::TlsIsSilent);
        assert_eq!(ask(&mut lane, there, since), Some(ride));
        assert_eq!(ask(&mut lane, there, since), None, "it is asked anew");
        // Another one that is silent is not left at once for a third.
        assert_eq!(ask(&mut lane, there + SILENCE, since), None);
        let next = there + DIAL_PAUSE;
        assert_eq!(lane.deadline(), Some(next));
        assert_eq!(ask(&mut lane, next, since), Some(Action::DialTls));
    }
}

#[test]
fn a_second_tls_connection_goes_again_if_the_first_is_answered_meanwhile() {
    let start = Instant::now();
    let mut lane = Fallback::new(Transport::Tls, Riding::Tls, start);
    let mut now = start;
    let mut dials = 0;
    // It stalls for as long as a dial takes, again and again.
    while now < start + s(50) {
        if ask(&mut lane, now + SILENCE, Some(now)) == Some(Action::DialTls) {
            dials += 1;
            lane.dialled(now + SILENCE, true);
            assert_eq!(
                ask(&mut lane, now + SILENCE, None),
                Some(Action::CloseSecond)
            );
        }
        assert_eq!(ask(&mut lane, now + SILENCE, None), None);
        now += s(1);
    }
    assert!((5..=7).contains(&dials), "with growing pauses: {dials}");
}

#[test]
fn a_second_tls_connection_takes_the_place_of_one_that_ends_meanwhile() {
    for transport in [Transport::Auto, Transport::Tls] {
        let start = Instant::now();
        let mut lane = Fallback::new(transport, Riding::Tls, start);
        let (since, now) = (Some(start), start + SILENCE);
        assert_eq!(ask(&mut lane, now, since), Some(Action::DialTls));
        lane.lost_tls(now + ms(10), true);
        if transport == Transport::Auto {
            let ride = Action::Ride(Riding::Udp, Why::TlsIsLost);
            assert_eq!(ask(&mut lane, now + ms(10), since), Some(ride));
        }
        assert_eq!(
            ask(&mut lane, now + ms(10), since),
            None,
            "one is on its way"
        );
        assert!(!lane.dialled(now + ms(20), true), "it is the first now");
        let back = Action::Ride(Riding::Tls, Why::TlsIsBack);
        assert_eq!(ask(&mut lane, now + ms(20), since), Some(back));
    }
}

#[test]
fn tls_connections_that_end_without_an_answer_are_dialled_with_growing_pauses() {
    let start = Instant::now();
    let mut lane = Fallback::new(Transport::Tls, Riding::Tls, start);
    let (mut now, mut dials) = (start, Vec::new());
    while now < start + s(300) {
        lane.lost_tls(now, false);
        if ask(&mut lane, now, None) == Some(Action::DialTls) {
            dials.push(now);
            lane.dialled(now, true);
            let back = Action::Ride(Riding::Tls, Why::TlsIsBack);
            assert_eq!(ask(&mut lane, now, None), Some(back));
        }
        now += ms(100);
    }
    assert_eq!(dials[0], start);
    assert!(dials.len() < 16, "{}", dials.len());
    now += s(60);
    assert_eq!(ask(&mut lane, now, None), Some(Action::DialTls));
    lane.dialled(now, true);
    for _ in 0..3 {
        assert!(ask(&mut lane, now, None).is_some(), "it rides");
        lane.lost_tls(now, true);
        let dials = ask(&mut lane, now, None);
        assert_eq!(dials, Some(Action::DialTls), "at once: it had carried");
        lane.dialled(now, true);
    }
}

#[test]
fn a_long_path_is_given_time_to_answer() {
    let start = Instant::now();
    for riding in [Riding::Udp, Riding::Tls] {
        let mut lane = Fallback::new(Transport::Auto, riding, start);
        let signs = |rtt| Signs {
            unanswered_since: Some(start),
            rtt,
            answered: false,
        };
        assert_eq!(lane.next(start + ms(1_399), signs(ms(700))), None);
        let dials = lane.next(start + ms(1_400), signs(ms(700)));
        assert_eq!(dials, Some(Action::DialTls));
        let mut lane = Fallback::new(Transport::Auto, riding, start);
        let dials = lane.next(start + SILENCE_MAX, signs(s(60)));
        assert_eq!(dials, Some(Action::DialTls));
    }
}

#[test]
fn a_lane_for_tls_alone_dials_it_again_and_never_goes_over_udp() {
    let now = Instant::now();
    let mut lane = Fallback::new(Transport::Tls, Riding::Tls, now);
    assert_eq!(ask(&mut lane, now + s(3_600), None), None);
    lane.lost_tls(now, true);
    for failures in 0..3 {
        let at = now + s(60 * failures);
        assert_eq!(ask(&mut lane, at, Some(now)), Some(Action::DialTls));
        lane.dialled(at, false);
    }
    let now = now + s(600);
    assert_eq!(ask(&mut lane, now, Some(now)), Some(Action::DialTls));
    lane.dialled(now, true);
    let back = Action::Ride(Riding::Tls, Why::TlsIsBack);
    assert_eq!(ask(&mut lane, now, Some(now)), Some(back));
    assert_eq!(ask(&mut lane, now, Some(now)), None);
}

#[test]
fn a_lane_for_quic_alone_does_nothing() {
    let now = Instant::now();
    let mut lane = Fallback::new(Transport::Quic, Riding::Udp, now);
    assert_eq!(ask(&mut lane, now + s(60), Some(now)), None);
    assert_eq!(lane.deadline(), None);
}

/// What the network does with UDP at a time after the start.
type Udp = fn(&mut StdRng, Passage) -> bool;

/// Whether a TLS connection that was dialled at the first time carries anything at the second one.
type Tls = fn(Duration, Duration) -> bool;

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

/// The same. A dial succeeds if the connection carries something at that time.
fn live_with(seed: u64, udp: Udp, tls: Tls) -> Life {
    let mut random = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let mut lane = on_udp(start);
    let (mut life, mut answered, mut rides_since) = (Life::default(), start, start);
    let (mut dialled_at, mut probed_at) = (None::<Instant>, None);
    // When the connection that is there was dialled, and the second one.
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

#[test]
fn udp_that_passes_again_after_hours_is_taken_back_within_half_a_minute() {
    let udp: Udp = |_, it| !(100..2_900).contains(&it.at.as_secs());
    assert_lives("dropped for 2,800 s", udp, |life| {
        life.moves == 2 && life.on_tls < Duration::from_secs(2_800 + 35)
    });
}

#[test]
fn where_udp_does_not_pass_connections_that_a_firewall_forgets_cost_a_pause_each() {
    // Each carries something for 5 minutes from its beginning.
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
    // From one network to another: what was dialled before is dead for good.
    let tls: Tls = |dialled, at| {
        let gap = |at: Duration| (1_000..1_060).contains(&at.as_secs());
        !gap(at) && (at.as_secs() < 1_000 || dialled.as_secs() >= 1_060)
    };
    for _ in 0..20 {
        let seed = rand::random();
        let life = live_with(seed, udp, tls);
        // Those that were dialled in vain have made the pauses grow.
        let most = Duration::from_secs(60 + 34);
        assert!(life.longest_pause <= most, "seed {seed}: {life:?}");
        assert!(
            life.on_udp < Duration::from_secs(30),
            "seed {seed}: {life:?}"
        );
    }
}
