//! The client's decisions by seeded simulation, without a socket: roster, plans of several cores,
//! numbers of lanes, drains and back-off together. Hints between cores are lost, clocks jump,
//! servers drain, die and come back as others. Every run repeats by its seed:
//! `QMUX_SEED=7 cargo test --workspace client::simulation`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::Lanes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::lane::aim;
use super::lane::backoff::Backoff;
use super::lane::plan::{LaneId, Plan};
use super::servers::demand::Work;
use super::servers::roster::Roster;
use super::servers::server::ServerState;

/// Addresses that names may resolve to.
const ADDRESSES: u8 = 8;

/// Names of one client.
const TARGETS: usize = 3;

/// The core of the client's first lane: no server has a core with that index.
const BEGINS_AT: u8 = 201;

/// Number of runs.
const SEEDS: u64 = 1_000;
const STEPS: usize = 3_000;

/// Steps after which a run settles, and is compared as a whole.
const STEPS_PER_SETTLE: usize = 1_000;

/// The longest delay that a back-off gives.
const LONGEST: Duration = Duration::from_secs(10);

struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("QMUX_SEED={}", self.0);
        }
    }
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 8443))
}

/// The true state of what is behind an address.
#[derive(Clone, Copy)]
struct Host {
    state: HostState,
    cores: usize,
    /// Tells the instances of the host apart.
    instance: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum HostState {
    Up,
    Down,
    /// The host refuses registrations.
    Drains,
}

/// One supervised lane.
struct Supervised {
    core: usize,
    server: Arc<ServerState>,
    backoff: Backoff,
    /// The instance of the server that it is registered with.
    registered: Option<u64>,
    /// Whether nobody answers its questions.
    unanswered: bool,
    /// The time at which the next attempt is made.
    next: Duration,
    last_attempt: Duration,
}

struct World {
    random: StdRng,
    start: Instant,
    now: Duration,
    lanes: Lanes,
    cores: usize,
    roster: Roster,
    hosts: BTreeMap<SocketAddr, Host>,
    plans: Vec<Plan>,
    /// Messages that say "plan", per core.
    mail: Vec<VecDeque<()>>,
    /// For each server, the draining instance that last refused the lane that asks, and when.
    refused: BTreeMap<u64, (u64, Duration)>,
    supervised: BTreeMap<LaneId, Supervised>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let cores = random.random_range(1..=4);
        let lanes = match random.random_range(0..3) {
            0 => Lanes::Count(NonZeroU16::new(random.random_range(1..=6)).expect("not 0")),
            _ => Lanes::Auto,
        };
        let hosts = (0..ADDRESSES).map(|last| {
            let cores = random.random_range(1..=4);
            let host = Host {
                state: HostState::Up,
                cores,
                instance: 1,
            };
            (address(last), host)
        });
        World {
            hosts: hosts.collect(),
            random,
            start: Instant::now(),
            now: Duration::ZERO,
            lanes,
            cores,
            roster: Roster::new((0..TARGETS).map(|target| format!("server{}", target % 2))),
            plans: (0..cores).map(|core| Plan::new(core, cores)).collect(),
            mail: (0..cores).map(|_| VecDeque::new()).collect(),
            refused: BTreeMap::new(),
            supervised: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..15 => self.answer(),
            15..45 => self.deliver(),
            45..50 => self.change_host(),
            50 => self.pass_time(Duration::from_secs(3_600)),
            51..56 => self.silence(),
            56..60 => self.demand(),
            _ => {
                let by_ms = self.random.random_range(1..500);
                self.pass_time(Duration::from_millis(by_ms));
            }
        }
    }

    /// A resolver answers: with some addresses, with none, or with the same ones as before.
    fn answer(&mut self) {
        let target = self.random.random_range(0..TARGETS);
        let some: Vec<SocketAddr> = (0..ADDRESSES)
            .filter(|_| self.random.random_bool(0.4))
            .map(address)
            .collect();
        let now = self.start + self.now;
        if !self.roster.answer(target, &some, now).is_empty() {
            self.tell_all();
        }
        let listed: BTreeSet<_> = self
            .roster
            .servers()
            .iter()
            .map(|server| server.address)
            .collect();
        assert_eq!(
            listed.len(),
            self.roster.servers().len(),
            "an address twice"
        );
        assert!(
            some.iter().all(|address| listed.contains(address)),
            "an answer left out"
        );
    }

    fn tell_all(&mut self) {
        for mail in &mut self.mail {
            mail.push_back(());
        }
    }

    /// Some core reads one mail.
    fn deliver(&mut self) {
        let core = self.random.random_range(0..self.cores);
        if self.mail[core].pop_front().is_some() {
            self.plan(core);
        }
    }

    fn plan(&mut self, core: usize) {
        let servers = self.roster.servers().to_vec();
        let lanes = self.lanes;
        let numbers = servers
            .iter()
            .map(|server| (server.number, server.lanes_wanted(lanes)));
        let changes = self.plans[core].update(numbers);
        for lane in changes.retire {
            let retired = self.supervised.remove(&lane).expect("it runs");
            assert_eq!(retired.core, core, "another core's lane");
            if retired.unanswered {
                retired.server.lane_unanswered(false);
            }
            if retired.registered.is_some() {
                retired.server.lane_ended();
            }
        }
        for lane in changes.start {
            let server = servers.iter().find(|server| server.number == lane.0);
            let started = Supervised {
                core,
                server: Arc::clone(server.expect("a server of the roster")),
                backoff: Backoff::default(),
                registered: None,
                unanswered: false,
                next: self.now,
                last_attempt: self.now,
            };
            let earlier = self.supervised.insert(lane, started);
            assert!(earlier.is_none(), "{lane:?} has two supervisors");
        }
    }

    /// A host goes down, drains or comes up, perhaps with another number of cores.
    fn change_host(&mut self) {
        let changed = address(self.random.random_range(0..ADDRESSES));
        let state = match self.random.random_range(0..10) {
            0..6 => HostState::Up,
            6..8 => HostState::Down,
            _ => HostState::Drains,
        };
        let host = Host {
            state,
            cores: self.random.random_range(1..=4),
            instance: self.random.random(),
        };
        self.hosts.insert(changed, host);
        for ((_, lane), supervised) in &mut self.supervised {
            if supervised.server.address == changed && supervised.registered.take().is_some() {
                if std::mem::take(&mut supervised.unanswered) {
                    supervised.server.lane_unanswered(false);
                }
                supervised.server.lane_ended();
                supervised.last_attempt = self.now;
                supervised.backoff.reset();
                // A host that drains says so, and the lane that asks does so at once.
                let told = state == HostState::Drains && *lane != 0;
                let random = self.random.random();
                supervised.next = self.now
                    + if told {
                        Backoff::next_while_draining(false, random)
                    } else {
                        supervised.backoff.next(random)
                    };
            }
        }
    }

    /// A registered lane is not answered any more, or is again; in between another may be dialled
    /// beside it, from the first lane or from one that knows the fault to be its own.
    fn silence(&mut self) {
        let registered: Vec<LaneId> = self
            .supervised
            .iter()
            .filter(|(_, lane)| lane.registered.is_some())
            .map(|(id, _)| *id)
            .collect();
        if registered.is_empty() {
            return;
        }
        let id = registered[self.random.random_range(0..registered.len())];
        let takes_over = self.random.random_bool(0.5);
        let others_answered = self.supervised.iter().any(|(other, lane)| {
            other.0 == id.0 && *other != id && lane.registered.is_some() && !lane.unanswered
        });
        let Some(lane) = self.supervised.get_mut(&id) else {
            return;
        };
        let instance = lane.registered.expect("chosen so");
        lane.unanswered = !lane.unanswered;
        lane.server.lane_unanswered(lane.unanswered);
        if !lane.unanswered {
            return;
        }
        assert_eq!(
            lane.server.is_heard_elsewhere(instance),
            others_answered,
            "whose fault it is"
        );
        if takes_over && (id.1 == 0 || others_answered) {
            // The new lane registers before the old one is given up.
            let host = self.hosts[&lane.server.address];
            lane.server.lane_registered(host.instance);
            lane.server.lane_unanswered(false);
            lane.server.lane_ended();
            lane.unanswered = false;
        }
    }

    /// A server has handed much over, lanes have carried little, or a server is of an old version.
    fn demand(&mut self) {
        let servers = self.roster.servers();
        if servers.is_empty() {
            return;
        }
        let server = Arc::clone(&servers[self.random.random_range(0..servers.len())]);
        let now = self.start + self.now;
        let work = Work {
            visitors: self.random.random_range(0..1_000),
            datagrams: self.random.random_range(0..10_000),
        };
        let change = match self.random.random_range(0..5) {
            0..2 => server.handed_over(work, now),
            2..4 => server.carried(Work::default(), Duration::from_secs(1), now),
            _ => server.tells_nothing(),
        };
        if change.is_some() {
            self.tell_all();
        }
    }

    fn pass_time(&mut self, by: Duration) {
        self.now += by;
        let due: Vec<LaneId> = self
            .supervised
            .iter()
            .filter(|(_, lane)| lane.registered.is_none() && lane.next <= self.now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.attempt(id);
        }
        for (id, lane) in &self.supervised {
            let waited = self.now.saturating_sub(lane.last_attempt);
            let waits = lane.registered.is_none();
            assert!(!waits || waited <= LONGEST + by, "{id:?} starves");
        }
    }

    fn attempt(&mut self, id: LaneId) {
        let random = self.random.random();
        let Some(lane) = self.supervised.get_mut(&id) else {
            return;
        };
        lane.last_attempt = self.now;
        let host = self.hosts[&lane.server.address];
        match host.state {
            HostState::Up => {}
            HostState::Down => {
                lane.next = self.now + lane.backoff.next(random);
                return;
            }
            HostState::Drains => {
                let asks = id.1 == 0;
                lane.next = self.now + Backoff::next_while_draining(asks, random);
                return self.note_refusal(id, host.instance);
            }
        }
        let mut found = false;
        let arrives = |knows| aim::core_of(aim::first_byte(BEGINS_AT, id.1, knows), host.cores);
        if arrives(lane.server.cores()) == arrives(host.cores) {
            lane.registered = Some(host.instance);
            found = lane.server.lane_registered(host.instance).back;
        }
        let now = self.start + self.now;
        if lane.server.has_cores(host.cores, self.cores, now) {
            self.tell_all();
        }
        if found {
            self.found(id.0);
        }
    }

    /// However many lanes there are, one run of a draining server is asked at most once a second by
    /// the one that asks.
    fn note_refusal(&mut self, (server, lane): LaneId, instance: u64) {
        if lane == 0
            && let Some((before, at)) = self.refused.insert(server, (instance, self.now))
        {
            let pause = self.now - at;
            assert!(
                before != instance || pause >= Duration::from_secs(1),
                "server {server} was asked again after {pause:?}"
            );
        }
    }

    /// Lanes that wait are told that the server is there; some hints are lost.
    fn found(&mut self, server: u64) {
        for ((of, _), lane) in &mut self.supervised {
            if *of == server && lane.registered.is_none() && self.random.random_bool(0.9) {
                let left = lane.next.saturating_sub(self.now);
                let delay = lane.backoff.found(self.random.random()).min(left);
                lane.next = self.now + delay;
            }
        }
    }

    /// Everything that is under way arrives, and nothing else happens for a while.
    fn settle(&mut self) {
        // Attempts may bring news about cores, and those bring further attempts.
        for _ in 0..200 {
            for core in 0..self.cores {
                while self.mail[core].pop_front().is_some() {
                    self.plan(core);
                }
            }
            self.pass_time(Duration::from_millis(100));
        }
        let mut wanted = BTreeSet::new();
        for server in self.roster.servers() {
            let count = server.lanes_wanted(self.lanes);
            wanted.extend((0..count).map(|lane| (server.number, lane)));
        }
        let running: BTreeSet<LaneId> = self.supervised.keys().copied().collect();
        assert_eq!(
            running, wanted,
            "one supervisor for each wanted lane, none else"
        );
        for ((server, lane), supervised) in &self.supervised {
            assert_eq!(supervised.core, lane % self.cores);
            let host = self.hosts[&supervised.server.address];
            let instance = (host.state == HostState::Up).then_some(host.instance);
            assert_eq!(
                supervised.registered, instance,
                "lane {lane} of server {server}"
            );
            if instance.is_some() {
                assert_eq!(supervised.server.cores(), host.cores, "all lanes aim right");
            }
            let lanes = self.supervised.iter().filter(|((of, _), _)| of == server);
            let registered = lanes.filter(|(_, lane)| lane.registered.is_some());
            assert_eq!(supervised.server.has_lanes(), registered.count() > 0);
        }
    }
}

#[test]
fn every_wanted_lane_has_one_supervisor_whatever_resolvers_and_servers_do() {
    let seeds = match std::env::var("QMUX_SEED") {
        Ok(seed) => vec![seed.parse().expect("QMUX_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        let _seed = PrintSeed(seed);
        let mut world = World::new(seed);
        for step in 1..=STEPS {
            world.step();
            if step % STEPS_PER_SETTLE == 0 {
                world.settle();
            }
        }
    }
}
