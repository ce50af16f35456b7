//! Peers that change their addresses, honest and not.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn way(port: u16) -> Way {
    Way {
        peer: ([192, 0, 2, 1], port).into(),
        local: None,
        tls: None,
    }
}

fn answering(port: u16) -> Roaming {
    let mut roaming = Roaming::new(way(port));
    roaming.peer_answers();
    roaming
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn packets_follow_a_peer_that_was_silent_at_once_and_little_is_sent_before_the_proof() {
    let now = Instant::now();
    let mut roaming = answering(1);
    assert_eq!(roaming.budget(), None);
    roaming.heard(now);
    let now = now + STILL_THERE;
    assert_eq!(
        roaming.strayed(way(2), 100, now, 7, 0),
        Some(Moved::Challenge(7))
    );
    assert_eq!(roaming.current(), way(2));
    assert_eq!(roaming.budget(), Some(300));
    roaming.sent(250);
    roaming.received(10);
    assert_eq!(roaming.budget(), Some(80));
    assert!(!roaming.answered(8), "another nonce");
    assert!(roaming.answered(7));
    assert_eq!(roaming.budget(), None);
    assert!(!roaming.expire(now + PROOF_TIMEOUT * 2));
    assert_eq!(roaming.current(), way(2));
}

#[test]
fn a_peer_that_comes_along_tcp_needs_no_budget_but_has_to_prove_who_it_is() {
    let now = Instant::now();
    let mut roaming = answering(1);
    let over_tls = Way {
        tls: Some(TlsId::new(5)),
        ..way(2)
    };
    let moved = roaming.strayed(over_tls, 100, now, 7, 0);
    assert_eq!(moved, Some(Moved::Challenge(7)));
    assert_eq!((roaming.current(), roaming.budget()), (over_tls, None));
    assert!(roaming.expire(now + PROOF_TIMEOUT), "nobody has answered");
    assert_eq!(roaming.current(), way(1));
    // Another connection from the same port is another path.
    let next = Way {
        tls: Some(TlsId::new(6)),
        ..way(2)
    };
    assert_eq!(
        roaming.strayed(over_tls, 100, now, 8, 0),
        Some(Moved::Challenge(8))
    );
    assert!(roaming.answered(8));
    let later = now + STILL_THERE;
    assert_eq!(
        roaming.strayed(next, 100, later, 9, 0),
        Some(Moved::Challenge(9))
    );
}

#[test]
fn a_client_sends_where_it_chooses_and_needs_no_proof_of_its_server() {
    let mut roaming = Roaming::new(way(1));
    let over_tls = Way {
        tls: Some(TlsId::new(5)),
        ..way(1)
    };
    roaming.choose(over_tls);
    assert_eq!((roaming.current(), roaming.budget()), (over_tls, None));
    roaming.choose(way(1));
    assert_eq!((roaming.current(), roaming.deadline()), (way(1), None));
}

#[test]
fn a_peer_that_is_still_heard_is_followed_after_several_packets_in_a_row() {
    let mut now = Instant::now();
    let mut roaming = answering(1);
    // The packets come from both addresses by turns, and the lane stays where it is.
    for heard in 0..100 {
        roaming.heard(now);
        now += MS;
        for nonce in 0..2 {
            assert_eq!(roaming.strayed(way(2), 100, now, nonce, heard), None);
        }
        assert_eq!(roaming.strayed(way(3), 100, now, 9, heard), None);
    }
    for nonce in 1..3 {
        assert_eq!(roaming.strayed(way(2), 100, now, nonce, 100), None);
    }
    assert_eq!(
        roaming.strayed(way(2), 100, now, 3, 100),
        Some(Moved::Challenge(3))
    );
    assert_eq!(roaming.budget(), Some(900), "all three count");
}

#[test]
fn late_packets_do_not_take_the_lane_back() {
    let now = Instant::now();
    let mut roaming = answering(1);
    roaming.strayed(way(2), 100, now, 7, 0);
    for heard in 1..10 {
        assert_eq!(roaming.strayed(way(1), 100, now + MS, 8, heard), None);
    }
    assert!(roaming.answered(7), "the nonce is good still");
}

#[test]
fn a_peer_with_two_ways_out_proves_each_once() {
    let mut now = Instant::now();
    let mut roaming = answering(1);
    roaming.strayed(way(2), 100, now, 7, 0);
    assert!(roaming.answered(7));
    for turn in 0..100 {
        now += STILL_THERE;
        let to = way(1 + turn % 2);
        assert_eq!(roaming.strayed(to, 100, now, 8, 0), Some(Moved::Known));
        assert_eq!((roaming.current(), roaming.budget()), (to, None));
    }
    // An address that was left lately is valid; one that was left long ago is proved anew.
    now += PROVED_FOR - MS;
    let moved = roaming.strayed(way(1), 100, now, 9, 0);
    assert_eq!(moved, Some(Moved::Known));
    now += PROVED_FOR;
    let moved = roaming.strayed(way(2), 100, now, 9, 0);
    assert_eq!(moved, Some(Moved::Challenge(9)));
}

#[test]
fn so_many_proved_addresses_are_remembered() {
    let mut now = Instant::now();
    let mut roaming = answering(0);
    for port in 1..100 {
        now += STILL_THERE;
        roaming.strayed(way(port), 100, now, port.into(), 0);
        assert!(roaming.answered(port.into()));
        assert!(roaming.proved.len() <= PROVED_MAX);
    }
    now += STILL_THERE;
    assert_eq!(roaming.strayed(way(96), 1, now, 1, 0), Some(Moved::Known));
    now += STILL_THERE;
    assert_eq!(
        roaming.strayed(way(95), 1, now, 1, 0),
        Some(Moved::Challenge(1))
    );
}

#[test]
fn without_a_proof_the_lane_goes_back() {
    let now = Instant::now();
    let mut roaming = answering(1);
    roaming.strayed(way(2), 100, now, 7, 0);
    assert!(!roaming.expire(now));
    assert!(roaming.expire(now + PROOF_TIMEOUT));
    assert_eq!(roaming.current(), way(1));
    assert_eq!(roaming.budget(), None);
    assert!(!roaming.answered(7), "too late");
}

#[test]
fn a_peer_that_moves_on_without_a_proof_does_not_put_off_the_return() {
    let begin = Instant::now();
    let mut roaming = answering(1);
    roaming.strayed(way(2), 100, begin, 7, 0);
    let mut now = begin;
    for port in 3..20 {
        now += PROOF_TIMEOUT / 20;
        let moved = roaming.strayed(way(port), 100, now, port.into(), 0);
        assert_eq!(moved, Some(Moved::Challenge(port.into())));
    }
    assert_eq!(roaming.deadline(), Some(begin + PROOF_TIMEOUT));
    assert!(roaming.expire(begin + PROOF_TIMEOUT));
    assert_eq!(roaming.current(), way(1));
}

#[test]
fn a_forged_address_costs_the_peer_little_and_only_once() {
    let now = Instant::now();
    let mut roaming = answering(1);
    roaming.strayed(way(666), 100, now, 7, 0);
    for _ in 1..IN_A_ROW {
        assert_eq!(roaming.strayed(way(1), 100, now, 8, 0), None);
    }
    assert_eq!(roaming.strayed(way(1), 100, now, 8, 0), Some(Moved::Known));
    assert_eq!(roaming.current(), way(1));
    assert_eq!(roaming.budget(), None);
    assert!(!roaming.answered(7));
    for _ in 0..10 {
        assert_eq!(roaming.strayed(way(666), 100, now, 9, 0), None, "wary");
    }
    let later = now + STILL_THERE;
    assert_eq!(
        roaming.strayed(way(666), 100, later, 9, 0),
        Some(Moved::Challenge(9)),
        "nobody is heard elsewhere"
    );
}

#[test]
fn an_answer_to_an_earlier_challenge_proves_nothing() {
    let now = Instant::now();
    let mut roaming = answering(1);
    roaming.strayed(way(2), 100, now, 7, 0);
    let now = now + STILL_THERE;
    roaming.strayed(way(3), 100, now, 8, 0);
    assert!(!roaming.answered(7));
    assert_eq!(roaming.budget(), Some(300));
    assert!(roaming.answered(8));
}

#[test]
fn a_peer_that_cannot_answer_is_not_followed() {
    let mut roaming = Roaming::new(way(1));
    let moved = roaming.strayed(way(2), 100, Instant::now(), 7, 0);
    assert_eq!(moved, None);
    assert_eq!(roaming.current(), way(1));
    assert!(!roaming.follows());
}

/// Whatever the order of packets, answers and time: what goes to an unproved address is
/// bounded, and without probation the lane is where a proof was given.
#[test]
fn simulated_peers_are_followed_within_bounds() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut now = Instant::now();
        let mut roaming = answering(0);
        let (mut received, mut sent) = ([0u64; 4], [0u64; 4]);
        let mut proved = [true, false, false, false];
        let mut nonces = Vec::new();
        let mut heard = 0;
        for step in 0..500u64 {
            now += Duration::from_millis(rng.random_range(0..150));
            let at = usize::from(roaming.current().peer.port());
            match rng.random_range(0..4) {
                0 => {
                    let port = rng.random_range(0..4u16);
                    let bytes = rng.random_range(20..1_500usize);
                    received[usize::from(port)] += bytes as u64;
                    let moved = if at == usize::from(port) {
                        heard += bytes as u64;
                        roaming.received(bytes);
                        roaming.heard(now);
                        None
                    } else {
                        roaming.strayed(way(port), bytes, now, step, heard)
                    };
                    if let Some(Moved::Challenge(nonce)) = moved {
                        nonces.push((nonce, port));
                    }
                }
                1 => {
                    let bytes = rng
                        .random_range(1..2_000)
                        .min(roaming.budget().unwrap_or(2_000));
                    roaming.sent(bytes);
                    sent[at] += bytes as u64;
                }
                2 if !nonces.is_empty() => {
                    let (nonce, port) = nonces[rng.random_range(0..nonces.len())];
                    if roaming.answered(nonce) {
                        assert_eq!(port, roaming.current().peer.port(), "seed {seed}");
                        proved[usize::from(port)] = true;
                    }
                }
                _ => {
                    roaming.expire(now);
                }
            }
            let at = usize::from(roaming.current().peer.port());
            assert!(
                proved[at] || roaming.budget().is_some(),
                "seed {seed}, step {step}"
            );
            for port in 0..4 {
                assert!(
                    proved[port] || sent[port] <= received[port] * AMPLIFICATION_MAX,
                    "seed {seed}, step {step}"
                );
            }
        }
    }
}
