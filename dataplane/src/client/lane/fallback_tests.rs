//! Rules of the fallback, one by one.

use super::*;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The next action for a lane that nobody has answered since this time.
pub(super) fn ask(
    lane: &mut Fallback,
    now: Instant,
    unanswered_since: Option<Instant>,
) -> Option<Action> {
    let signs = Signs {
        unanswered_since,
        ..Signs::default()
    };
    lane.next(now, signs)
}

pub(super) fn on_udp(now: Instant) -> Fallback {
    Fallback::new(Transport::Auto, Riding::Udp, now)
}

/// A lane that has moved to TLS, and whose QUIC probes have failed this many times.
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
    // Losses on TLS are none of its business.
    lane.loses_most(now + s(1));
    assert_eq!(ask(&mut lane, now + s(1), None), None);
    // A trickle lets the probe through.
    lane.probed(now + s(30), true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(&mut lane, now + s(30), None), Some(back));
    lane.loses_most(now + s(34));
    assert_eq!(ask(&mut lane, now + s(34), None), Some(ride));
    // QUIC is probed as often as ever, but that it passes counts after twice the time.
    let at = now + s(34) + QUIC_PAUSE;
    let probe = Some(Action::ProbeQuic(QUIC_PAUSE));
    assert_eq!(ask(&mut lane, at, None), probe);
    lane.probed(at, true);
    assert_eq!(ask(&mut lane, at, None), None);
    let at = at + QUIC_PAUSE;
    assert_eq!(ask(&mut lane, at, None), probe);
    lane.probed(at, true);
    assert_eq!(ask(&mut lane, at, None), Some(back));
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

/// A lane on TLS whose UDP has failed soon after a return.
fn relapsed(now: Instant) -> Fallback {
    let mut lane = on_tls(now - s(100));
    fail_after_return(&mut lane, now);
    lane
}

/// Lets a lane on TLS return to UDP, which fails.
fn fail_after_return(lane: &mut Fallback, now: Instant) {
    lane.probed(now - s(2), true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(lane, now - s(2), None), Some(back));
    let ride = Action::Ride(Riding::Tls, Why::UdpIsSilent);
    assert_eq!(ask(lane, now, Some(now - s(1))), Some(ride));
}

#[test]
fn quic_is_tried_every_30_s_however_often_udp_has_failed_after_a_return() {
    let start = Instant::now() + s(1_000);
    let mut lane = relapsed(start);
    let mut failed = start;
    for relapse in 0..20 {
        let mut now = failed;
        while ask(&mut lane, now, None).is_none() {
            now += ms(100);
        }
        let pause = now - failed;
        assert!(
            pause >= QUIC_PAUSE && pause <= QUIC_PAUSE + ms(100),
            "relapse {relapse}: {pause:?}"
        );
        failed = now + s(2);
        fail_after_return(&mut lane, failed);
    }
}

/// Makes the lane fall silent, so that it wants to probe QUIC; returns the time at which it does.
fn asks_in_silence(lane: &mut Fallback, since: Instant) -> Instant {
    let silent = since + SILENCE;
    let dials = ask(lane, silent, Some(since));
    assert_eq!(dials, Some(Action::DialTls));
    let asks = ask(lane, silent, Some(since));
    assert_eq!(asks, Some(Action::ProbeQuic(QUIC_PAUSE_SILENT)));
    silent
}

#[test]
fn a_silence_of_tls_that_is_over_is_no_reason_to_try_quic_sooner() {
    let now = Instant::now() + s(1_000);
    // Another lane is probing for all when this one asks.
    let mut lane = relapsed(now);
    let asked = asks_in_silence(&mut lane, now + s(5));
    lane.probe_later(asked + s(1));
    lane.dialled(asked + ms(100), false);
    assert_eq!(lane.deadline(), Some(asked + s(1)));
    let mut at = asked + ms(100);
    while at < now + QUIC_PAUSE {
        assert_eq!(ask(&mut lane, at, None), None);
        assert!(
            lane.deadline().is_some_and(|next| next > at),
            "no turn in vain"
        );
        at += ms(100);
    }
    assert_eq!(
        ask(&mut lane, at, None),
        Some(Action::ProbeQuic(QUIC_PAUSE))
    );
    // This lane probes itself. That QUIC gets through holds, although TLS is answered again.
    let mut lane = relapsed(now);
    let asked = asks_in_silence(&mut lane, now + s(5));
    lane.dialled(asked + ms(100), false);
    lane.probed(asked + ms(200), true);
    let back = Action::Ride(Riding::Udp, Why::QuicPasses);
    assert_eq!(ask(&mut lane, asked + ms(200), None), Some(back));
}

#[test]
fn a_lane_whose_tls_stays_silent_takes_udp_that_passes_whoever_has_tried_it() {
    let now = Instant::now() + s(1_000);
    let mut lane = relapsed(now);
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
    // The probe fails, but UDP is heard, so the lane stays there.
    lane.lost_tls(now + s(1), true);
    assert_eq!(ask(&mut lane, now + s(1), None), Some(ride));
    assert_eq!(ask(&mut lane, now + s(1), None), Some(Action::DialTls));
    lane.dialled(now + s(1) + LOST_FOR, false);
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
        // A second connection that is silent is not left at once for a third.
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
    // The connection stalls for as long as a dial takes, again and again.
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
    assert!((12..=15).contains(&dials), "with growing pauses: {dials}");
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
fn a_tls_connection_that_is_lost_is_dialled_often_for_as_long_as_the_server_keeps_the_flows() {
    for transport in [Transport::Auto, Transport::Tls] {
        let start = Instant::now();
        let mut lane = Fallback::new(transport, Riding::Tls, start);
        lane.lost_tls(start, true);
        let (mut now, mut dials) = (start, Vec::new());
        while now < start + s(60) {
            match ask(&mut lane, now, Some(start)) {
                Some(Action::DialTls) => {
                    dials.push(now - start);
                    lane.dialled(now, false);
                }
                Some(other) => assert_eq!(other, Action::Ride(Riding::Udp, Why::TlsIsLost)),
                None => now = lane.deadline().expect("it dials again"),
            }
        }
        let often: Vec<_> = (0..=10).map(|count| LOST_PAUSE * count).collect();
        assert_eq!(dials[..11], often, "{transport:?}");
        let seldom: Vec<_> = dials[10..].windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(seldom[..3], [s(1), s(2), s(4)], "{transport:?}");
        assert_eq!(dials.len(), 16, "{transport:?}: {dials:?}");
    }
}

#[test]
fn a_connection_that_was_in_vain_once_more_is_no_reason_to_dial_often_again() {
    let ride = Some(Action::Ride(Riding::Tls, Why::TlsIsBack));
    let mut now = Instant::now();
    let mut lane = Fallback::new(Transport::Tls, Riding::Tls, now);
    lane.lost_tls(now, true);
    for _ in 0..2 {
        assert_eq!(ask(&mut lane, now, Some(now)), Some(Action::DialTls));
        lane.dialled(now, true);
        assert_eq!(ask(&mut lane, now, Some(now)), ride);
        now += LOST_FOR;
        lane.lost_tls(now, false);
        now = lane.deadline().expect("it dials again");
    }
    // The server has long given the flows up.
    assert_eq!(ask(&mut lane, now, Some(now)), Some(Action::DialTls));
    lane.dialled(now, false);
    assert_eq!(lane.deadline(), Some(now + DIAL_PAUSE));
}

#[test]
fn connections_that_end_without_an_answer_are_not_dialled_often_for_ever() {
    let start = Instant::now();
    let mut lane = Fallback::new(Transport::Tls, Riding::Tls, start);
    let (mut now, mut dials) = (start, 0);
    lane.lost_tls(now, true);
    while now < start + s(300) {
        match ask(&mut lane, now, Some(start)) {
            // Every other connection can be opened, and ends at once.
            Some(Action::DialTls) => {
                dials += 1;
                lane.dialled(now, dials % 2 == 0);
            }
            Some(other) => {
                assert_eq!(other, Action::Ride(Riding::Tls, Why::TlsIsBack));
                lane.lost_tls(now, false);
            }
            None => now += ms(100),
        }
    }
    assert!(dials < 40, "{dials}");
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
