//! The number of lanes by seeded simulation: load that grows, shrinks and swings, servers that
//! restart with another number of cores, peers that lie.

use std::time::{Duration, Instant};

use qmux_config::LANES_MAX;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::demand::{Change, Demand, Work};
use crate::sys::CORES_MAX;

const BEAT: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);
const HOUR_S: u64 = 3_600;

/// A client with its server, second by second.
struct World {
    demand: Demand,
    server_cores: usize,
    client_cores: usize,
    start: Instant,
    second: u64,
    /// The changes of the number of lanes, each with its time.
    changes: Vec<(u64, Change)>,
    /// Lanes left to flows that do not end.
    left: usize,
}

impl World {
    fn new(server_cores: usize, client_cores: usize) -> World {
        let mut world = World {
            demand: Demand::default(),
            server_cores: 0,
            client_cores,
            start: Instant::now(),
            second: 0,
            changes: Vec::new(),
            left: 0,
        };
        world.restart(server_cores);
        world
    }

    fn now(&self) -> Instant {
        self.start + SECOND * u32::try_from(self.second).expect("some hours")
    }

    fn most(&self) -> usize {
        self.server_cores.max(self.client_cores)
    }

    fn restart(&mut self, server_cores: usize) {
        self.server_cores = server_cores;
        let now = self.now();
        self.demand.has_cores(server_cores, self.client_cores, now);
        self.check();
    }

    /// A second in which visitors and datagrams come, equally many to each server core.
    fn second(&mut self, visitors: u64, datagrams: u64) {
        self.second += 1;
        let (wanted, cores) = (self.demand.wanted(), self.server_cores as u64);
        let lacking = cores - cores.min(wanted as u64);
        let handed_over = Work {
            visitors: visitors * lacking / cores,
            datagrams: datagrams * lacking / cores,
        };
        if handed_over != Work::default() {
            let change = self.demand.handed_over(handed_over, self.left, self.now());
            self.note(change);
        }
        // One lane after the other sends a heartbeat, each once in ten seconds.
        let carried = Work {
            visitors,
            datagrams,
        };
        let change = self.demand.carried(carried, BEAT, self.now());
        self.note(change);
    }

    fn note(&mut self, change: Option<Change>) {
        if let Some(change) = change {
            self.changes.push((self.second, change));
        }
        self.check();
    }

    fn check(&self) {
        let wanted = self.demand.wanted();
        assert!(
            (self.client_cores..=self.most()).contains(&wanted),
            "{wanted} lanes from {} to {} cores",
            self.client_cores,
            self.server_cores
        );
        assert!(wanted <= usize::from(LANES_MAX));
    }

    fn changes_since(&self, second: u64) -> usize {
        self.changes.iter().filter(|it| it.0 >= second).count()
    }
}

#[test]
fn a_client_begins_with_its_own_cores_and_keeps_them_while_little_comes() {
    let mut world = World::new(64, 2);
    assert_eq!(world.demand.wanted(), 2);
    for _ in 0..HOUR_S {
        world.second(100, 1_000);
    }
    assert!(world.changes.is_empty(), "{:?}", world.changes);
}

#[test]
fn many_hand_overs_bring_a_lane_for_each_server_core_within_seconds() {
    for (visitors, datagrams) in [(1_000, 0), (0, 10_000)] {
        let mut world = World::new(64, 1);
        for _ in 0..7 {
            world.second(visitors, datagrams);
        }
        assert_eq!(world.demand.wanted(), 64);
        assert_eq!(world.changes[0], (2, Change::Grown(1)));
    }
}

#[test]
fn one_burst_of_visitors_brings_no_lane() {
    let mut world = World::new(64, 1);
    for _ in 0..100 {
        world.second(100_000, 0);
        for _ in 0..59 {
            world.second(1, 0);
        }
    }
    assert!(world.changes.is_empty(), "{:?}", world.changes);
}

#[test]
fn lanes_go_again_when_little_comes_and_not_while_much_does() {
    let mut world = World::new(64, 1);
    for _ in 0..HOUR_S {
        world.second(1_000, 0);
    }
    assert_eq!(world.demand.wanted(), 64);
    for _ in 0..600 {
        world.second(10, 0);
    }
    assert_eq!(world.demand.wanted(), 1);
    let shrunk = world.changes.iter().map(|(_, change)| match change {
        Change::Shrunk(by) => *by,
        Change::Grown(_) => 0,
    });
    assert_eq!(shrunk.sum::<usize>(), 63);
}

#[test]
fn a_steady_load_leads_to_a_number_that_stays() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let cores = random.random_range(1..=CORES_MAX);
        let own = random.random_range(1..=8);
        let (visitors, datagrams) = (
            random.random_range(0..8_000),
            random.random_range(0..80_000),
        );
        let mut world = World::new(cores, own);
        for _ in 0..HOUR_S {
            world.second(visitors, datagrams);
        }
        assert_eq!(
            world.changes_since(60),
            0,
            "seed {seed}, {cores} cores, {visitors} visitors, {datagrams} datagrams"
        );
        let per_core = (visitors * 10 + datagrams) / cores as u64;
        if per_core >= 110 {
            assert_eq!(world.demand.wanted(), world.most(), "seed {seed}");
        } else if per_core < 100 {
            assert_eq!(world.demand.wanted(), own, "seed {seed}");
        }
    }
}

/// However the load swings, an hour brings a bounded number of changes; none if it swings faster
/// than lanes come and go.
#[test]
fn a_load_that_swings_soon_moves_no_lane() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let period = random.random_range(2..=1_800);
        let mut world = World::new(64, 1);
        for second in 0..12 * HOUR_S {
            let much = second / period % 2 == 0;
            world.second(if much { 5_000 } else { 0 }, 0);
        }
        let steps = 2 * 6; // Up to 64 lanes and back.
        let late = world.changes_since(11 * HOUR_S);
        assert!(late <= 5 * steps, "seed {seed}, period {period}: {late}");
        if period <= 240 {
            assert_eq!(late, 0, "seed {seed}, period {period}: lanes come and go");
        }
    }
}

#[test]
fn a_server_that_restarts_with_another_number_of_cores_keeps_what_fits() {
    let mut world = World::new(64, 2);
    for _ in 0..60 {
        world.second(5_000, 0);
    }
    assert_eq!(world.demand.wanted(), 64);
    world.restart(16);
    assert_eq!(world.demand.wanted(), 16);
    world.restart(1);
    assert_eq!(world.demand.wanted(), 2);
    world.restart(64);
    assert_eq!(world.demand.wanted(), 2, "as many as it had");
}

#[test]
fn an_old_server_gets_a_lane_for_each_core_and_keeps_it() {
    let mut world = World::new(64, 2);
    assert_eq!(world.demand.is_told_nothing(), Some(Change::Grown(62)));
    assert_eq!(world.demand.is_told_nothing(), None);
    for _ in 0..HOUR_S {
        let now = world.now();
        assert_eq!(world.demand.carried(Work::default(), BEAT, now), None);
        world.second += 1;
    }
    world.restart(32);
    assert_eq!(world.demand.wanted(), 32);
    // The next version of the server reports hand-overs, and lanes that are not needed go.
    let now = world.now();
    world.demand.handed_over(Work::default(), 0, now);
    for _ in 0..600 {
        world.second(1, 0);
    }
    assert_eq!(world.demand.wanted(), 2);
}

#[test]
fn lanes_left_to_long_flows_count_so_that_there_are_never_more_than_twice_as_many() {
    let mut world = World::new(64, 1);
    for round in 0..200 {
        let before = world.demand.wanted();
        for _ in 0..30 {
            world.second(5_000, 0);
        }
        assert!(world.demand.wanted() + world.left <= 128, "round {round}");
        assert!(world.demand.wanted() >= before);
        let most = world.demand.wanted();
        for _ in 0..2_000 {
            world.second(0, 0);
        }
        // None of the lanes that are given up ever ends.
        world.left += most - world.demand.wanted();
    }
    assert!(world.left <= 128);
}

/// Whatever a server says, there are never more lanes than it has said that it has cores (but the
/// client's own), and each step takes its time.
#[test]
fn a_lying_server_gets_no_more_than_its_cores_and_not_at_once() {
    for seed in 0..500 {
        let mut random = StdRng::seed_from_u64(seed);
        let own = random.random_range(1..=8);
        let mut world = World::new(random.random_range(1..=CORES_MAX), own);
        let mut grown = Vec::new();
        let mut ms = 0_u64;
        for _ in 0..5_000 {
            ms += random.random_range(0..500);
            let now = world.start + Duration::from_millis(ms);
            let lie = |random: &mut StdRng| match random.random_range(0..3) {
                0 => 0,
                1 => u64::MAX,
                _ => random.random(),
            };
            let work = Work {
                visitors: lie(&mut random),
                datagrams: lie(&mut random),
            };
            let earlier = Work {
                visitors: lie(&mut random),
                datagrams: lie(&mut random),
            };
            let left = random.random_range(0..300);
            let change = match random.random_range(0..10) {
                0..6 => world.demand.handed_over(work.since(earlier), left, now),
                6..9 => world.demand.carried(work.since(earlier), BEAT, now),
                _ => {
                    let cores = random.random_range(0..=2 * CORES_MAX);
                    world.server_cores = cores.min(CORES_MAX);
                    world.demand.has_cores(cores, own, now);
                    None
                }
            };
            if let Some(Change::Grown(_)) = change {
                grown.push(ms);
            }
            world.check();
        }
        let hasty = grown.windows(2).find(|two| two[1] - two[0] < 1_000);
        assert_eq!(hasty, None, "seed {seed}: grown at {hasty:?} ms");
    }
}
