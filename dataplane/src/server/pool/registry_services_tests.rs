//! Scenarios of a door with several services, and of clients that have entries.

use std::collections::BTreeMap;

use qmux_config::LoadBalancer;
use qmux_proto::Protocol;

use super::tests::{counts, pick};
use super::*;
use crate::server::pool::balance::Tried;

/// Cores of the process.
const CORES: usize = 2;

/// A door with this many services.
fn door(services: usize) -> (Arc<Registry>, Vec<Arc<ClientPool>>) {
    let pools = (0..services).map(|_| Arc::new(ClientPool::new(LoadBalancer::RoundRobin)));
    let pools: Vec<_> = pools.collect();
    (Arc::new(Registry::of_pools(&pools, CORES)), pools)
}

fn offers(services: &[usize]) -> Vec<Offered> {
    let offer = |service: &usize| Offered {
        service: *service,
        protocols: Protocols::BOTH,
    };
    services.iter().map(offer).collect()
}

/// A lane on core 0 of a client that has an entry.
fn enter(
    registry: &Arc<Registry>,
    name: &str,
    instance: u8,
    services: &[Offered],
) -> Result<Joined, NotJoined> {
    let applicant = Applicant {
        name,
        has_entry: true,
        instance_id: [instance; INSTANCE_ID_BYTES],
        address: None,
        services,
        claim: None,
        generation: 0,
    };
    registry.join(&applicant, 0, Instant::now())
}

#[test]
fn a_client_gets_visitors_of_the_services_that_it_serves_and_of_no_other() {
    let (registry, pools) = door(3);
    let a = enter(&registry, "a", 1, &offers(&[0, 1])).expect("a client");
    let _b = enter(&registry, "b", 2, &offers(&[1])).expect("a client");
    let clients = |service: usize| {
        let tickets: Vec<_> = (0..4).filter_map(|_| pick(&pools[service])).collect();
        let counts = counts(&tickets).into_iter();
        counts
            .map(|(id, count)| (id.to_owned(), count))
            .collect::<Vec<_>>()
    };
    assert_eq!(clients(0), [("a".to_owned(), 4)]);
    assert_eq!(clients(1), [("a".to_owned(), 2), ("b".to_owned(), 2)]);
    assert_eq!(clients(2), []);
    drop(a);
    assert_eq!(clients(0), []);
    assert_eq!(clients(1), [("b".to_owned(), 4)]);
    assert_eq!(registry.clients().len(), 1);
}

#[test]
fn a_service_that_is_down_marks_only_itself() {
    let (registry, pools) = door(2);
    let a = enter(&registry, "a", 1, &offers(&[0, 1]))
        .expect("a client")
        .membership;
    let b = enter(&registry, "b", 2, &offers(&[0, 1]))
        .expect("a client")
        .membership;
    assert!(a.service_health(1, false), "that is news");
    assert!(!a.service_health(2, false), "of no service of its");
    let tickets = |service: usize| {
        (0..4)
            .filter_map(|_| pick(&pools[service]))
            .collect::<Vec<_>>()
    };
    assert_eq!(counts(&tickets(0)), BTreeMap::from([("a", 2), ("b", 2)]));
    assert_eq!(counts(&tickets(1)), BTreeMap::from([("b", 4)]));
    assert_eq!(
        (pools[0].totals().reachable, pools[1].totals().reachable),
        (2, 1)
    );
    // Flows of one service count for that one alone, and so does passive health.
    let now = Instant::now();
    for _ in 0..20 {
        pick(&pools[0]).expect("a client").ended_early(now);
    }
    let failing =
        |lane: &LaneMembership, service| lane.member(service).map(|it| it.is_failing(now));
    assert_eq!((failing(&b, 0), failing(&b, 1)), (Some(true), Some(false)));
    a.lane_ended();
    drop(a);
    assert_eq!(pools[1].totals().clients, 1);
}

#[test]
fn a_client_that_speaks_one_protocol_gets_visitors_of_that_one_alone() {
    let (registry, pools) = door(1);
    let protocols = Protocols {
        tcp: true,
        udp: false,
    };
    let offer = [Offered {
        service: 0,
        protocols,
    }];
    let _tcp = enter(&registry, "tcp", 1, &offer).expect("a client");
    let tried = Tried::default();
    assert!(pick(&pools[0]).is_some());
    assert!(
        pools[0]
            .pick(Protocol::Udp, &tried, Instant::now())
            .is_none()
    );
    let _both = enter(&registry, "both", 2, &offers(&[0])).expect("a client");
    let udp = pools[0].pick(Protocol::Udp, &tried, Instant::now());
    assert_eq!(udp.expect("one of them").client().client_id, "both");
}

#[test]
fn instances_of_a_client_with_an_entry_serve_side_by_side() {
    let (registry, pools) = door(1);
    let first = enter(&registry, "a", 1, &offers(&[0])).expect("an instance");
    let second = enter(&registry, "a", 2, &offers(&[0])).expect("another");
    assert!(second.replaced.is_empty());
    // If the first one is its dead predecessor, that is found out at once.
    assert_eq!(second.beside.len(), 1);
    assert!(Arc::ptr_eq(&second.beside[0], first.membership.client()));
    let more = enter(&registry, "a", 2, &offers(&[0])).expect("one more lane of it");
    assert!(more.beside.is_empty() && !more.membership.is_first());
    let tickets: Vec<_> = (0..4).filter_map(|_| pick(&pools[0])).collect();
    let numbers: Vec<u64> = tickets.iter().map(|it| it.client().number).collect();
    assert_eq!(numbers, [0, 1, 0, 1]);
}

#[test]
fn instances_of_one_entry_are_bounded() {
    let (registry, _pools) = door(1);
    let most = u8::try_from(INSTANCES_MAX).expect("few");
    let enter = |instance| enter(&registry, "a", instance, &offers(&[0]));
    let mut joined: Vec<_> = (0..most).map(|it| enter(it).expect("few enough")).collect();
    assert_eq!(
        enter(most).expect_err("too many"),
        NotJoined::TooManyInstances
    );
    enter(0).expect("one more lane of one that is there");
    joined.pop();
    joined.push(enter(most).expect("one has gone"));
    enter(most + 1).expect_err("too many again");
    joined[0].membership.silence(true);
    enter(most + 1).expect("one does not answer, and is about to go");
}

#[test]
fn who_names_itself_takes_nothing_from_a_client_with_an_entry_of_that_name() {
    let (registry, pools) = door(2);
    let entry = enter(&registry, "tenant-a", 1, &offers(&[0])).expect("by its entry");
    let offered = offers(&[1]);
    let claim = Applicant {
        name: "tenant-a",
        has_entry: false,
        instance_id: [2; INSTANCE_ID_BYTES],
        address: None,
        services: &offered,
        claim: None,
        generation: 0,
    };
    let claimed = registry
        .join(&claim, 0, Instant::now())
        .expect("another client");
    assert!(claimed.replaced.is_empty() && claimed.beside.is_empty());
    assert!(!entry.membership.client().is_replaced());
    let ticket = pick(&pools[0]).expect("the one with the entry");
    assert_eq!(ticket.client().number, entry.membership.client().number);
}

#[test]
fn an_instance_that_offers_other_services_than_before_keeps_its_old_lanes_until_they_end() {
    for has_entry in [false, true] {
        let (registry, pools) = door(2);
        let (before, after) = (offers(&[0]), offers(&[0, 1]));
        let applicant = |services| Applicant {
            name: "a",
            has_entry,
            instance_id: [1; INSTANCE_ID_BYTES],
            address: None,
            services,
            claim: None,
            generation: 0,
        };
        let join = |services| registry.join(&applicant(services), 0, Instant::now());
        let old = join(&before).expect("the first");
        let new = join(&after).expect("the same instance");
        assert!(new.replaced.is_empty() && !old.membership.client().is_replaced());
        assert_eq!(registry.lanes_of(&applicant(&after)), 2, "a bound for both");
        assert_eq!(
            (pools[0].totals().clients, pools[1].totals().clients),
            (2, 1)
        );
        drop(old);
        assert_eq!(
            (pools[0].totals().clients, pools[1].totals().clients),
            (1, 1)
        );
    }
}

#[test]
fn a_new_instance_that_names_itself_takes_over_whatever_the_old_one_served() {
    let (registry, pools) = door(2);
    let join = |instance: u8, services: &[Offered]| {
        let applicant = Applicant {
            name: "a",
            has_entry: false,
            instance_id: [instance; INSTANCE_ID_BYTES],
            address: None,
            services,
            claim: None,
            generation: 0,
        };
        registry.join(&applicant, 0, Instant::now())
    };
    let _one = join(1, &offers(&[0])).expect("the first");
    let _other = join(1, &offers(&[1])).expect("the same");
    let new = join(2, &offers(&[0])).expect("its successor");
    assert_eq!(new.replaced.len(), 2);
    assert_eq!(
        (pools[0].totals().clients, pools[1].totals().clients),
        (1, 0)
    );
    assert!(matches!(
        join(1, &offers(&[1])),
        Err(NotJoined::Duplicate { .. })
    ));
}
