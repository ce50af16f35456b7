//! Which addresses are on the roster, after which answers.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

fn roster(targets: usize) -> Roster {
    Roster::new((0..targets).map(|target| format!("server{target}")))
}

fn addresses(last: &[u8]) -> Vec<SocketAddr> {
    last.iter()
        .map(|last| SocketAddr::from(([192, 0, 2, *last], 8443)))
        .collect()
}

/// An answer at no particular time.
fn answer(roster: &mut Roster, target: usize, addresses: &[SocketAddr]) -> RosterChange {
    roster.answer(target, addresses, Instant::now())
}

fn listed(roster: &Roster) -> Vec<u8> {
    let mut last: Vec<u8> = roster
        .servers()
        .iter()
        .map(|server| match server.address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => panic!("not canonical"),
        })
        .collect();
    last.sort_unstable();
    last
}

#[test]
fn every_address_of_a_name_is_a_server() {
    let mut roster = roster(1);
    let news = answer(&mut roster, 0, &addresses(&[1, 2]));
    assert_eq!((news.appeared.len(), news.vanished.len()), (2, 0));
    assert_eq!(listed(&roster), [1, 2]);
    assert!(answer(&mut roster, 0, &addresses(&[2, 1])).is_empty());
}

#[test]
fn an_address_that_is_found_takes_the_place_of_its_stand_in_at_once() {
    let mut roster = roster(2);
    for target in 0..2 {
        let news = answer(&mut roster, target, &[stand_in::of(target, 8443)]);
        assert_eq!(news.appeared.len(), 1);
        assert!(answer(&mut roster, target, &[stand_in::of(target, 8443)]).is_empty());
    }
    let news = answer(&mut roster, 0, &addresses(&[7]));
    assert_eq!((news.appeared.len(), news.vanished.len()), (1, 1));
    assert_eq!(news.vanished[0].address, stand_in::of(0, 8443));
    let left: Vec<_> = roster.servers().iter().map(|it| it.address).collect();
    assert_eq!(left, [addresses(&[7])[0], stand_in::of(1, 8443)]);
    // One that serves stays beside the address that has been found.
    roster.servers()[1].lane_registered(1);
    let news = answer(&mut roster, 1, &addresses(&[8]));
    assert_eq!((news.appeared.len(), news.vanished.len()), (1, 0));
}

#[test]
fn a_stand_in_without_a_proxy_goes_once_its_lanes_have_ended_or_others_serve() {
    let stand_in = stand_in::of(0, 8443);
    let without_proxy = |roster: &mut Roster| roster.configure(0, "server0".into(), false);
    // Nobody serves there.
    let mut idle = roster(1);
    answer(&mut idle, 0, &[stand_in]);
    assert!(!idle.has_idle_stand_ins());
    assert_eq!(without_proxy(&mut idle).vanished.len(), 1);
    // Its lanes end.
    let mut ending = roster(1);
    answer(&mut ending, 0, &[stand_in]);
    let server = Arc::clone(&ending.servers()[0]);
    server.lane_registered(1);
    let news = without_proxy(&mut ending);
    assert_eq!((news.changed.len(), news.vanished.len()), (1, 0));
    assert!(ending.has_idle_stand_ins());
    assert!(ending.without_idle_stand_ins().is_empty());
    server.lane_ended();
    assert_eq!(ending.without_idle_stand_ins().vanished.len(), 1);
    // Another address is found, and serves.
    let mut found = roster(1);
    answer(&mut found, 0, &[stand_in]);
    found.servers()[0].lane_registered(1);
    without_proxy(&mut found);
    answer(&mut found, 0, &addresses(&[7]));
    assert!(
        found.without_idle_stand_ins().is_empty(),
        "nobody serves there"
    );
    let at = |roster: &Roster, address| {
        let mut servers = roster.servers().iter();
        servers.find(|it| it.address == address).cloned()
    };
    at(&found, addresses(&[7])[0])
        .expect("known")
        .lane_registered(1);
    assert_eq!(found.without_idle_stand_ins().vanished.len(), 1);
    assert_eq!(listed(&found), [7]);
    assert!(!found.has_idle_stand_ins());
}

#[test]
fn an_address_vanishes_when_three_answers_in_a_row_lack_it() {
    let mut roster = roster(1);
    answer(&mut roster, 0, &addresses(&[1, 2]));
    for _ in 0..2 {
        assert!(answer(&mut roster, 0, &addresses(&[1])).is_empty());
    }
    assert!(answer(&mut roster, 0, &addresses(&[1, 2])).is_empty());
    for _ in 0..2 {
        assert!(answer(&mut roster, 0, &addresses(&[1])).is_empty());
    }
    let news = answer(&mut roster, 0, &addresses(&[1]));
    assert_eq!(news.vanished.len(), 1);
    assert_eq!(listed(&roster), [1]);
}

#[test]
fn an_address_that_comes_back_is_a_new_server() {
    let mut roster = roster(1);
    let first = answer(&mut roster, 0, &addresses(&[1])).appeared;
    for _ in 0..3 {
        answer(&mut roster, 0, &addresses(&[2]));
    }
    let again = answer(&mut roster, 0, &addresses(&[1, 2])).appeared;
    assert_eq!(first[0].address, again[0].address);
    assert_ne!(first[0].number, again[0].number);
}

#[test]
fn an_empty_answer_changes_nothing() {
    let mut roster = roster(1);
    answer(&mut roster, 0, &addresses(&[1]));
    for _ in 0..10 {
        assert!(answer(&mut roster, 0, &[]).is_empty());
    }
    assert_eq!(listed(&roster), [1]);
}

#[test]
fn an_address_behind_two_names_is_one_server_named_by_the_first() {
    let mut roster = roster(2);
    answer(&mut roster, 1, &addresses(&[1, 2]));
    assert_eq!(listed(&roster), [1, 2]);
    let mapped: SocketAddr = "[::ffff:192.0.2.1]:8443".parse().expect("literal");
    let news = answer(&mut roster, 0, &[mapped]);
    assert_eq!(listed(&roster), [1, 2]);
    assert!(news.appeared.is_empty() && news.vanished.is_empty());
    assert_eq!(news.changed[0].configured().server_name, "server0");
    // The other name keeps the address alive when the first one loses it.
    for _ in 0..3 {
        answer(&mut roster, 0, &addresses(&[3]));
    }
    assert_eq!(listed(&roster), [1, 2, 3]);
}

#[test]
fn a_server_that_is_configured_anew_keeps_its_addresses_and_its_number() {
    let mut roster = roster(1);
    answer(&mut roster, 0, &addresses(&[1, 2]));
    let before: Vec<_> = roster.servers().to_vec();
    let news = roster.configure(0, "other".into(), false);
    assert!(news.appeared.is_empty() && news.vanished.is_empty());
    assert_eq!(news.changed.len(), 2);
    for (before, now) in before.iter().zip(roster.servers()) {
        assert!(Arc::ptr_eq(before, now));
        assert_eq!(now.configured().server_name, "other");
    }
    // A stand-in is nobody's address once no proxy is asked.
    answer(&mut roster, 0, &[stand_in::of(0, 8443)]);
    assert_eq!(roster.configure(0, "other".into(), true).vanished.len(), 0);
    assert_eq!(roster.configure(0, "other".into(), false).vanished.len(), 1);
}

#[test]
fn an_address_that_one_target_hands_to_another_is_the_same_server() {
    let mut roster = roster(1);
    answer(&mut roster, 0, &addresses(&[1]));
    let before = Arc::clone(&roster.servers()[0]);
    assert!(roster.configure(1, "server0".into(), false).is_empty());
    assert!(answer(&mut roster, 1, &addresses(&[1])).is_empty());
    let news = roster.remove(0);
    assert!(news.appeared.is_empty() && news.vanished.is_empty());
    assert!(Arc::ptr_eq(&news.changed[0], &before));
    assert_eq!(before.target(), 1);
}

#[test]
fn a_flood_of_addresses_is_bounded() {
    let mut roster = roster(2);
    for round in 0..10 {
        let flood: Vec<SocketAddr> = (0..1_000)
            .map(|port| SocketAddr::from(([192, 0, 2, round], 1 + port)))
            .collect();
        let news = answer(&mut roster, 0, &flood);
        assert_eq!(roster.servers().len(), SERVERS_MAX);
        assert!(news.surplus == 0 && roster.targets[0].known.len() == SERVERS_MAX);
    }
    assert_eq!(answer(&mut roster, 1, &addresses(&[1])).surplus, 1);
}

/// Brings a lane to each server up, or to none.
fn lanes_are_up(roster: &Roster, up: bool) {
    for server in roster.servers() {
        if up && !server.has_lanes() {
            server.lane_registered(1);
        } else if !up && server.has_lanes() {
            server.lane_ended();
        }
    }
}

#[test]
fn an_address_that_smaller_answers_lack_is_gone_though_its_lanes_are_up() {
    let mut roster = roster(1);
    answer(&mut roster, 0, &addresses(&[1, 2]));
    lanes_are_up(&roster, true);
    for _ in 0..2 {
        assert!(answer(&mut roster, 0, &addresses(&[1])).is_empty());
    }
    let news = answer(&mut roster, 0, &addresses(&[1, 1]));
    assert_eq!(news.vanished.len(), 1);
}

#[test]
fn an_address_that_others_replace_goes_when_its_lanes_are_down_or_after_long() {
    let start = Instant::now();
    let interval = Duration::from_secs(10);
    let replaced = |lanes_up_for: u32| {
        let mut roster = roster(1);
        roster.answer(0, &addresses(&[1, 2]), start);
        let mut count = 0;
        loop {
            lanes_are_up(&roster, count < lanes_up_for);
            count += 1;
            let news = roster.answer(0, &addresses(&[1, 3]), start + interval * count);
            if !news.vanished.is_empty() {
                assert_eq!(listed(&roster), [1, 3]);
                return count;
            }
        }
    };
    assert_eq!(replaced(0), 3);
    assert_eq!(replaced(20), 23, "three from when its lanes went down");
    assert_eq!(replaced(u32::MAX), 60, "ten minutes");
}

/// The answers are those of a headless service, which hold all pods that are ready.
#[test]
fn addresses_that_leave_full_answers_one_after_the_other_go_after_three_each() {
    let mut roster = roster(1);
    let mut all: Vec<u8> = (1..=5).collect();
    answer(&mut roster, 0, &addresses(&all));
    lanes_are_up(&roster, true);
    let mut left = Vec::new();
    for _ in 0..6 {
        if all.len() > 2 {
            all.pop();
        }
        let news = answer(&mut roster, 0, &addresses(&all));
        assert!(news.appeared.is_empty());
        left.push(news.vanished.len());
    }
    assert_eq!(left, [0, 0, 1, 1, 1, 0]);
    assert_eq!(listed(&roster), [1, 2]);
    // One more pod is ready, and one is not any more.
    answer(&mut roster, 0, &addresses(&[1, 2, 3]));
    lanes_are_up(&roster, true);
    for vanished in [0, 0, 1] {
        let news = answer(&mut roster, 0, &addresses(&[1, 3]));
        assert_eq!(news.vanished.len(), vanished);
    }
}

#[test]
fn a_part_proves_nothing_by_being_smaller_than_another_part() {
    let mut roster = roster(1);
    let of = |numbers: std::ops::Range<u8>| addresses(&numbers.collect::<Vec<_>>());
    answer(&mut roster, 0, &of(0..8));
    lanes_are_up(&roster, true);
    answer(&mut roster, 0, &of(8..16));
    lanes_are_up(&roster, true);
    for _ in 0..3 {
        assert!(answer(&mut roster, 0, &of(9..16)).is_empty());
        assert!(answer(&mut roster, 0, &of(8..15)).is_empty());
    }
    assert_eq!(listed(&roster).len(), 16);
}

/// Whatever part of the addresses a resolver shows, servers whose lanes are up stay, and one
/// that stops goes soon.
#[test]
fn simulated_resolvers_that_show_a_part_make_no_lane_flap() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut all: Vec<u8> = (0..16).collect();
        let shown_min = random.random_range(1..=12);
        // Each answer has the same number of addresses, or another one.
        let shown_max = if random.random_bool(0.5) {
            shown_min
        } else {
            random.random_range(shown_min..=12)
        };
        let by_turns = random.random_bool(0.5);
        let mut roster = roster(1);
        let mut now = Instant::now();
        let mut shown = 0;
        let mut stopped = None;
        for round in 0..4_000 {
            now += Duration::from_secs(10);
            if by_turns {
                all.rotate_left(shown);
            } else {
                all.shuffle(&mut random);
            }
            shown = random.random_range(shown_min..=shown_max);
            let news = roster.answer(0, &addresses(&all[..shown]), now);
            // By then each of them has been shown.
            assert!(
                round < 500 || news.appeared.is_empty(),
                "seed {seed}, round {round}: {news:?}"
            );
            for gone in &news.vanished {
                assert!(!gone.has_lanes(), "seed {seed}, round {round}: {gone}");
            }
            lanes_are_up(&roster, true);
            if round == 2_000 {
                stopped = all.pop();
            }
            let of_stopped = stopped.map(|last| addresses(&[last])[0]);
            for server in roster.servers() {
                if Some(server.address) == of_stopped {
                    assert!(round < 2_003, "seed {seed}, round {round}");
                    server.lane_ended();
                }
            }
        }
    }
}
