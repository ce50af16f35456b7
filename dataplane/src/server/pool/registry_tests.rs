//! Scenarios of one pool. What many of them do together is in `simulation`.

use std::collections::BTreeMap;
use std::time::Duration;

use qmux_config::LoadBalancer;
use qmux_proto::Protocol;

use super::*;
use crate::server::pool::balance::Tried;
use crate::server::pool::client::ALARM_PAUSE;
use crate::server::pool::fixture::OneService;
use crate::server::pool::service::{FlowTicket, Member};

const CORES: usize = 2;

fn pool(balancer: LoadBalancer) -> OneService {
    OneService::new(balancer, CORES)
}

fn address(last: u8) -> Option<SocketAddr> {
    Some(([192, 0, 2, last], 4_433).into())
}

/// Registers a lane of the instance with this byte, which is also its address.
fn apply(pool: &OneService, id: &str, instance: u8, core: usize) -> Result<Joined, NotJoined> {
    let instance_id = [instance; INSTANCE_ID_BYTES];
    pool.join(id, instance_id, address(instance), core, Instant::now())
}

fn join(pool: &OneService, id: &str, core: usize) -> LaneMembership {
    apply(pool, id, 0, core).expect("nobody else").membership
}

pub(super) fn pick(pool: &ClientPool) -> Option<FlowTicket> {
    pick_at(pool, Instant::now())
}

fn pick_at(pool: &ClientPool, now: Instant) -> Option<FlowTicket> {
    pool.pick(Protocol::Tcp, &Tried::default(), now)
}

fn member(lane: &LaneMembership) -> Arc<Member> {
    lane.member(0).expect("it serves the one service")
}

pub(super) fn counts(tickets: &[FlowTicket]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for ticket in tickets {
        *counts
            .entry(ticket.client().client_id.as_str())
            .or_default() += 1;
    }
    counts
}

#[test]
fn nobody_to_pick_in_an_empty_pool() {
    assert!(pick(&pool(LoadBalancer::LeastConnections)).is_none());
}

#[test]
fn both_balancers_spread_equal_clients_evenly() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        let pool = pool(balancer);
        let _lanes: Vec<_> = ["a", "b", "c"].map(|id| join(&pool, id, 0)).into();
        let tickets: Vec<_> = (0..30).filter_map(|_| pick(&pool)).collect();
        assert_eq!(
            counts(&tickets).into_values().collect::<Vec<_>>(),
            [10, 10, 10]
        );
    }
}

#[test]
fn visitors_of_both_protocols_by_turns_reach_every_client() {
    let pool = pool(LoadBalancer::RoundRobin);
    let _lanes = ["a", "b"].map(|id| join(&pool, id, 0));
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        tcp.extend(pool.pick(Protocol::Tcp, &Tried::default(), Instant::now()));
        udp.extend(pool.pick(Protocol::Udp, &Tried::default(), Instant::now()));
    }
    for tickets in [&tcp, &udp] {
        assert_eq!(counts(tickets), BTreeMap::from([("a", 5), ("b", 5)]));
    }
}

#[test]
fn a_client_that_cannot_serve_leaves_no_gap_in_the_turns() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        let pool = pool(balancer);
        let lanes = ["a", "b", "c"].map(|id| join(&pool, id, 0));
        lanes[1].service_health(0, false);
        // The flows end at once. The neighbour of a client that is passed over must not get its
        // share.
        let mut chosen = BTreeMap::<_, usize>::new();
        for _ in 0..30 {
            let ticket = pick(&pool).expect("two serve");
            *chosen.entry(ticket.client().client_id.clone()).or_default() += 1;
        }
        assert_eq!(
            chosen,
            BTreeMap::from([("a".to_owned(), 15), ("c".to_owned(), 15)])
        );
    }
}

#[test]
fn least_connections_fills_up_the_idle_client() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _a = join(&pool, "a", 0);
    let tickets: Vec<_> = (0..5).filter_map(|_| pick(&pool)).collect();
    let _b = join(&pool, "b", 1);
    let settled = Instant::now() + Duration::from_secs(60);
    let more: Vec<_> = (0..5).filter_map(|_| pick_at(&pool, settled)).collect();
    assert_eq!(counts(&more)["b"], 5);
    drop((tickets, more));
    assert!(pool.clients().iter().all(|entry| entry.flows() == 0));
}

#[test]
fn a_client_leaves_with_its_last_lane() {
    let pool = pool(LoadBalancer::RoundRobin);
    let first = join(&pool, "a", 0);
    let second = join(&pool, "a", 1);
    assert_eq!(first.client().number, second.client().number);
    assert_eq!(
        (first.client().lanes_on(0), first.client().lanes_on(1)),
        (1, 1)
    );
    drop(first);
    assert_eq!(
        pick(&pool).map(|ticket| ticket.client().other_core_with_lane(0)),
        Some(Some(1))
    );
    drop(second);
    assert_eq!(pool.clients().len(), 0);
    assert!(pick(&pool).is_none());
}

#[test]
fn cores_with_a_lane_are_asked_in_turn_up_to_the_one_that_chose() {
    let pool = OneService::new(LoadBalancer::RoundRobin, 4);
    let lanes: Vec<_> = [0, 1, 3].map(|core| join(&pool, "a", core)).into();
    let client = lanes[0].client();
    for chosen_by in 0..4 {
        let mut asked = Vec::new();
        let mut next = client.other_core_with_lane(chosen_by);
        while let Some(core) = next {
            asked.push(core);
            next = client.core_with_lane_between(core, chosen_by);
        }
        let all: Vec<_> = (1..4)
            .map(|step| (chosen_by + step) % 4)
            .filter(|core| *core != 2)
            .collect();
        assert_eq!(asked, all, "chosen by core {chosen_by}");
    }
}

#[test]
fn a_lane_that_drains_takes_no_new_flow_but_keeps_its_client() {
    let pool = pool(LoadBalancer::RoundRobin);
    let lane = join(&pool, "a", 0);
    lane.take_no_more();
    lane.take_no_more();
    assert!(pick(&pool).is_none());
    assert_eq!(pool.clients().len(), 1);
}

#[test]
fn a_visitor_is_not_sent_to_a_client_twice() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        let pool = pool(balancer);
        let _lanes = ["a", "b"].map(|id| join(&pool, id, 0));
        let mut tried = Tried::default();
        let mut been = Vec::new();
        while let Some(ticket) = pool.pick(Protocol::Tcp, &tried, Instant::now()) {
            tried.add(ticket.client().number);
            been.push(ticket.client().client_id.clone());
        }
        been.sort();
        assert_eq!(been, ["a", "b"]);
    }
}

// ---- services ----

#[test]
fn a_client_without_its_service_gets_tcp_visitors_only_if_no_other_has_one() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        let pool = pool(balancer);
        let (a, b) = (join(&pool, "a", 0), join(&pool, "b", 0));
        assert!(a.service_health(0, false), "that is news");
        let tickets: Vec<_> = (0..10).filter_map(|_| pick(&pool)).collect();
        assert_eq!(counts(&tickets), BTreeMap::from([("b", 10)]));
        let udp: Vec<_> = (0..20)
            .filter_map(|_| pool.pick(Protocol::Udp, &Tried::default(), Instant::now()))
            .collect();
        assert!(counts(&udp).contains_key("a"), "UDP does not care");
        drop((tickets, udp));
        b.service_health(0, false);
        let tickets: Vec<_> = (0..10).filter_map(|_| pick(&pool)).collect();
        assert_eq!(counts(&tickets), BTreeMap::from([("a", 5), ("b", 5)]));
        drop(tickets);
        a.service_health(0, true);
        let tickets: Vec<_> = (0..10).filter_map(|_| pick(&pool)).collect();
        assert_eq!(counts(&tickets), BTreeMap::from([("a", 10)]));
    }
}

#[test]
fn a_service_is_down_while_any_lane_says_so() {
    let pool = pool(LoadBalancer::RoundRobin);
    let (first, second) = (join(&pool, "a", 0), join(&pool, "a", 1));
    assert!(first.service_health(0, false));
    assert!(!second.service_health(0, false) && !second.service_health(0, false));
    assert!(!first.service_health(0, true));
    assert!(member(&second).service_is_down());
    assert!(second.service_health(0, true));
    assert!(!member(&second).service_is_down());
}

#[test]
fn what_a_lane_said_of_its_service_ends_with_it() {
    let pool = pool(LoadBalancer::RoundRobin);
    let (first, second) = (join(&pool, "a", 0), join(&pool, "a", 1));
    first.service_health(0, false);
    drop(first);
    assert!(!member(&second).service_is_down());
}

#[test]
fn a_service_is_up_again_when_the_only_lane_that_says_otherwise_takes_no_more() {
    let pool = pool(LoadBalancer::RoundRobin);
    let lanes: Vec<_> = (0..3).map(|_| join(&pool, "a", 0)).collect();
    lanes[0].service_health(0, false);
    lanes[1].service_health(0, false);
    assert!(
        lanes[0].take_no_more().is_empty(),
        "another lane says that it is down"
    );
    assert_eq!(lanes[1].take_no_more(), [0]);
    assert!(lanes[1].take_no_more().is_empty(), "once");
    lanes[2].service_health(0, false);
    assert!(lanes[2].take_no_more().is_empty(), "no lane is left");
}

#[test]
fn a_lane_that_has_ended_says_nothing_though_a_flow_still_holds_it() {
    let pool = pool(LoadBalancer::LeastConnections);
    let (old, successor) = (join(&pool, "a", 0), join(&pool, "a", 0));
    old.service_health(0, false);
    old.silence(true);
    old.lane_ended();
    let client = member(&successor);
    assert!(!client.service_is_down() && !client.is_silent());
    // A message that was read before the end and is processed after it.
    assert!(!old.service_health(0, false));
    old.silence(true);
    assert!(!client.service_is_down() && !client.is_silent());
    assert_eq!(pool.totals().lanes, 2, "until the flow lets go of it");
    drop(old);
    assert_eq!((pool.totals().lanes, client.lanes_on(0)), (1, 1));
    assert!(!client.service_is_down() && !client.is_silent());
}

#[test]
fn a_silent_client_gets_flows_only_if_all_are_silent() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        let pool = pool(balancer);
        let (a, b) = (join(&pool, "a", 0), join(&pool, "b", 0));
        a.silence(true);
        // A client that answers, even with a refusal, comes before one that does not.
        b.service_health(0, false);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ticket = pool
                .pick(protocol, &Tried::default(), Instant::now())
                .expect("b");
            assert_eq!(ticket.client().client_id, "b");
        }
        drop(b);
        assert!(pick(&pool).is_some_and(|ticket| ticket.client().client_id == "a"));
        let again = join(&pool, "a", 1);
        drop(a);
        assert!(!again.client().is_silent(), "it ends with the lane");
    }
}

#[test]
fn a_lane_that_is_silent_while_another_is_not_makes_its_client_no_worse() {
    let pool = pool(LoadBalancer::RoundRobin);
    let (broken, good) = (join(&pool, "a", 0), join(&pool, "a", 1));
    let _other = join(&pool, "b", 0);
    broken.silence(true);
    let client = good.client();
    assert!(!client.is_silent());
    assert_eq!((client.lanes_on(0), client.answering_on(0)), (1, 0));
    assert_eq!(client.other_core_that_answers(0), Some(1));
    assert_eq!(client.other_core_that_answers(1), None);
    let tickets: Vec<_> = (0..10).filter_map(|_| pick(&pool)).collect();
    assert_eq!(counts(&tickets), BTreeMap::from([("a", 5), ("b", 5)]));
    good.silence(true);
    assert!(client.is_silent(), "none is left that answers");
    broken.silence(false);
    assert!(!client.is_silent());
}

#[test]
fn a_visitor_who_was_left_unanswered_goes_only_where_somebody_answers() {
    let pool = pool(LoadBalancer::RoundRobin);
    let lanes = [join(&pool, "a", 0), join(&pool, "a", 1)];
    let number = lanes[0].client().number;
    let mut tried = Tried::default();
    tried.add(number);
    lanes[0].silence(true);
    tried.unanswered(number);
    let pick = |tried: &Tried| pool.pick(Protocol::Tcp, tried, Instant::now());
    assert!(pool.has_better(&tried) && pick(&tried).is_some());
    lanes[1].silence(true);
    assert!(!pool.has_better(&tried) && pick(&tried).is_none());
}

#[test]
fn one_lane_of_a_client_probes_it_at_a_time() {
    let pool = pool(LoadBalancer::RoundRobin);
    let (first, second) = (join(&pool, "a", 0), join(&pool, "a", 1));
    assert!(first.claim_probing() && first.claim_probing() && !second.claim_probing());
    first.lane_ended();
    assert!(!first.claim_probing() && second.claim_probing());
    let now = Instant::now() + Duration::from_secs(1);
    assert!(second.client().may_alarm(now) && !second.client().may_alarm(now));
    assert!(second.client().may_alarm(now + ALARM_PAUSE * 2));
}

// ---- who gets how many ----

#[test]
fn a_client_whose_service_ends_flows_at_once_gets_only_a_few() {
    for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
        let pool = pool(balancer);
        let _lanes = ["hole", "good"].map(|id| join(&pool, id, 0));
        let start = Instant::now() + Duration::from_secs(60);
        let mut staying = Vec::new();
        let mut lost = 0;
        for visitor in 0..100 {
            let now = start + Duration::from_millis(100) * visitor;
            let ticket = pick_at(&pool, now).expect("two clients");
            if ticket.client().client_id == "hole" {
                ticket.ended_early(now);
                lost += 1;
            } else {
                ticket.answered(now);
                staying.push(ticket);
            }
        }
        assert!((1..=10).contains(&lost), "{balancer:?}: {lost} of 100");
    }
}

#[test]
fn services_that_all_end_flows_at_once_share_the_visitors() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _lanes = ["a", "b"].map(|id| join(&pool, id, 0));
    let mut tickets = Vec::new();
    for _ in 0..100 {
        let ticket = pick(&pool).expect("two clients");
        ticket.ended_early(Instant::now());
        tickets.push(ticket);
    }
    assert!(counts(&tickets).into_values().all(|count| count >= 40));
}

#[test]
fn a_service_that_is_up_again_is_forgiven() {
    let pool = pool(LoadBalancer::RoundRobin);
    let a = join(&pool, "a", 0);
    let now = Instant::now();
    for _ in 0..10 {
        pick(&pool).expect("a client").ended_early(now);
    }
    assert!(member(&a).is_failing(now));
    a.service_health(0, false);
    a.service_health(0, true);
    assert!(!member(&a).is_failing(now));
}

#[test]
fn a_client_that_has_just_come_does_not_get_everybody() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _old = ["a", "b"].map(|id| join(&pool, id, 0));
    let mut tickets: Vec<_> = (0..200).filter_map(|_| pick(&pool)).collect();
    let came_at = Instant::now();
    let _new = join(&pool, "new", 0);
    let at_once: Vec<_> = (0..30).filter_map(|_| pick_at(&pool, came_at)).collect();
    let share = counts(&at_once)["new"];
    assert!((8..=12).contains(&share), "{share} of 30");
    tickets.extend(at_once);
    // After a while it has as many flows as the others.
    let settled = came_at + Duration::from_secs(60);
    tickets.extend((0..100).filter_map(|_| pick_at(&pool, settled)));
    let counts = counts(&tickets);
    assert!(counts.values().all(|count| *count >= 100), "{counts:?}");
}

// ---- one id, several instances ----

#[test]
fn a_new_instance_replaces_the_old_one_at_once() {
    let pool = pool(LoadBalancer::LeastConnections);
    let old = apply(&pool, "a", 1, 0).expect("the first");
    assert_eq!(old.replaced, []);
    let new = apply(&pool, "a", 2, 0).expect("the newer");
    let replaced = Replaced {
        client: old.membership.client().number,
        address: address(1),
        drains: false,
        silent: false,
    };
    assert_eq!(new.replaced, [replaced]);
    let ticket = pick(&pool).expect("the new one serves");
    assert_eq!(ticket.client().number, new.membership.client().number);
    drop(old);
    assert_eq!(pool.clients().len(), 1);
}

#[test]
fn an_instance_that_was_replaced_stays_out_while_its_successor_lives() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _old = apply(&pool, "a", 1, 0).expect("the first");
    let new = apply(&pool, "a", 2, 0).expect("the newer");
    for first in [true, false, false] {
        let refused = apply(&pool, "a", 1, 0).expect_err("it was replaced");
        assert_eq!(
            refused,
            NotJoined::Duplicate {
                address: address(2),
                first
            }
        );
    }
    let ticket = pick(&pool).expect("the new one serves");
    assert_eq!(ticket.client().number, new.membership.client().number);
    // Another id is not affected.
    apply(&pool, "b", 1, 0).expect("nobody else has this id");
}

#[test]
fn it_may_come_back_when_its_successor_has_gone() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _old = apply(&pool, "a", 1, 0).expect("the first");
    let new = apply(&pool, "a", 2, 0).expect("the newer");
    drop(new);
    let again = apply(&pool, "a", 1, 0).expect("its successor has gone");
    assert_eq!(again.replaced, []);
}

#[test]
fn it_may_come_back_when_its_successor_drains_and_cuts_off_none_of_its_flows() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _old = apply(&pool, "a", 1, 0).expect("the first");
    let new = apply(&pool, "a", 2, 0).expect("the newer");
    new.membership.take_no_more();
    let again = apply(&pool, "a", 1, 0).expect("its successor drains");
    assert!(again.replaced[0].drains);
    apply(&pool, "a", 2, 0).expect_err("now this one is replaced");
}

#[test]
fn among_three_the_latest_wins_and_both_others_stay_out() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _joined = [1, 2, 3].map(|instance| apply(&pool, "a", instance, 0).expect("newer"));
    for instance in [1, 2] {
        let refused = apply(&pool, "a", instance, 0).expect_err("replaced");
        let by = address(3);
        assert!(matches!(refused, NotJoined::Duplicate { address, .. } if address == by));
    }
    apply(&pool, "a", 3, 1).expect("another lane of the one that serves");
}

#[test]
fn a_successor_that_was_away_for_a_moment_is_the_successor_still() {
    let pool = pool(LoadBalancer::LeastConnections);
    let _old = apply(&pool, "a", 1, 0).expect("the first");
    drop(apply(&pool, "a", 2, 0).expect("the newer"));
    let _back = apply(&pool, "a", 2, 0).expect("nobody else is there");
    apply(&pool, "a", 1, 0).expect_err("it was replaced");
}

#[test]
fn replaced_instances_are_remembered_up_to_a_bound() {
    let mut change = State::default();
    for instance in 0..REPLACED_MAX as u64 + 5 {
        change.replaced(InstanceId::from(u128::from(instance).to_le_bytes()));
    }
    assert_eq!(change.replaced.len(), REPLACED_MAX);
    assert_eq!(
        change.replaced.front(),
        Some(&InstanceId::from(5_u128.to_le_bytes()))
    );
}

#[test]
fn a_client_that_could_not_serve_udp_comes_after_others_for_udp_alone() {
    let pool = pool(LoadBalancer::LeastConnections);
    let (bad, _good) = (join(&pool, "bad", 0), join(&pool, "good", 0));
    member(&bad).udp_refused(true, Instant::now());
    let udp = |tried: &Tried| pool.pick(Protocol::Udp, tried, Instant::now());
    let mut tickets: Vec<FlowTicket> = (0..5).filter_map(|_| udp(&Tried::default())).collect();
    assert_eq!(counts(&tickets), BTreeMap::from([("good", 5)]));
    tickets.push(pick(&pool).expect("TCP"));
    assert_eq!(counts(&tickets), BTreeMap::from([("bad", 1), ("good", 5)]));
    let mut tried = Tried::default();
    tried.add(tickets[0].client().number);
    let last = udp(&tried).expect("better than nobody");
    assert_eq!(last.client().client_id, "bad");
}

// ---- cores at the same time ----

#[test]
fn cores_that_choose_at_the_same_time_differ_by_at_most_one_flow_each() {
    const THREADS: usize = 4;
    let pool = pool(LoadBalancer::LeastConnections);
    let _lanes: Vec<_> = ["a", "b", "c"].map(|id| join(&pool, id, 0)).into();
    let tickets: Vec<FlowTicket> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| (0..5_000).filter_map(|_| pick(&pool)).collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let flows: Vec<usize> = pool.clients().iter().map(|entry| entry.flows()).collect();
    assert_eq!(flows.iter().sum::<usize>(), tickets.len());
    let (most, least) = (flows.iter().max(), flows.iter().min());
    assert!(
        most.zip(least)
            .is_some_and(|(most, least)| most - least <= THREADS),
        "{flows:?}"
    );
    drop(tickets);
    assert!(pool.clients().iter().all(|entry| entry.flows() == 0));
}
