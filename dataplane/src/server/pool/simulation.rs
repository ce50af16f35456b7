//! Thousands of seeded steps of what can happen to the clients of a listener, with what must always
//! hold.
//!
//! The pool, the lane tables and the choice of a route are the real ones; lanes, cores and clients
//! are made up. Mail between cores is lost, lanes fall silent and are heard again, news comes late
//! and out of order, clocks jump. A failure prints its seed; `QMUX_SEED=7 cargo test --workspace
//! pool::simulation` repeats it.

mod visitors;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_config::LoadBalancer;
use qmux_proto::Protocol;
use qmux_proto::control::INSTANCE_ID_BYTES;

use super::balance::Tried;
use super::fixture::OneService;
use super::lanes::{CarriesFlows, LaneTable};
use super::membership::LaneMembership;
use super::registry::Joined;
use visitors::Flow;

/// Number of seeds for both balancers together; each seed uses one of them.
const SEEDS: u64 = 1_000;
const STEPS: usize = 3_000;
/// Steps after which all counts are compared; a full comparison costs more than ten steps.
const STEPS_PER_CHECK: usize = 8;
const CORES: usize = 3;
const CLIENT_IDS: usize = 5;
const LANES_PER_CLIENT_MAX: usize = 6;

/// splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

struct PrintSeed(u64, LoadBalancer);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} with {:?}", self.0, self.1);
        }
    }
}

/// A lane on the server.
struct Lane {
    client: u64,
    /// False once it has begun to end, as its core knows.
    open: Cell<bool>,
    /// Whether it has said that it takes no more flows.
    drains: Cell<bool>,
    silent: Cell<bool>,
    flows: Cell<usize>,
}

impl CarriesFlows for Lane {
    fn is_open(&self) -> bool {
        self.open.get()
    }

    fn is_silent(&self) -> bool {
        self.silent.get()
    }

    fn flows(&self) -> usize {
        self.flows.get()
    }
}

/// A lane with what its core holds of it.
struct Registered {
    id: usize,
    instance: u64,
    core: usize,
    lane: Rc<Lane>,
    membership: LaneMembership,
    service_up: bool,
}

/// A client program.
struct Program {
    instance: u64,
    service_up: bool,
}

struct World {
    random: Random,
    now: Instant,
    balancer: LoadBalancer,
    pool: OneService,
    tables: Vec<RefCell<LaneTable<Lane>>>,
    programs: Vec<Program>,
    /// Programs that run beside the one that was started last, or try to come back.
    ousted: Vec<(usize, u64)>,
    /// Instances that the server has seen replaced.
    replaced: BTreeSet<u64>,
    instances: u64,
    lanes: Vec<Registered>,
    flows: Vec<Flow>,
    /// Number of visitors, and what became of them.
    visitors: usize,
    served: usize,
    refused: usize,
}

fn instance_id(instance: u64) -> [u8; INSTANCE_ID_BYTES] {
    let mut id = [0; INSTANCE_ID_BYTES];
    id[..8].copy_from_slice(&instance.to_le_bytes());
    id
}

impl World {
    fn new(seed: u64, balancer: LoadBalancer) -> World {
        World {
            random: Random(seed),
            now: Instant::now(),
            balancer,
            pool: OneService::new(balancer, CORES),
            tables: (0..CORES).map(|_| RefCell::new(LaneTable::new())).collect(),
            programs: (0..CLIENT_IDS)
                .map(|id| Program {
                    instance: id as u64,
                    service_up: true,
                })
                .collect(),
            ousted: Vec::new(),
            replaced: BTreeSet::new(),
            instances: CLIENT_IDS as u64,
            lanes: Vec::new(),
            flows: Vec::new(),
            visitors: 0,
            served: 0,
            refused: 0,
        }
    }

    fn step(&mut self) {
        self.pass_time();
        match self.random.below(100) {
            0..8 => self.register(),
            8..12 => self.end_a_lane(),
            12..14 => self.kill(),
            14..16 => self.drain(),
            16..19 => self.restart_without_a_word(),
            19..22 => self.ousted_comes_back(),
            22..26 => self.service_changes(),
            26..28 => self.silence_changes(),
            28..67 => self.visitor(),
            67..69 => self.settled_choices(),
            _ => self.end_a_flow(),
        }
    }

    /// Lets time pass: mostly some milliseconds; now and then a machine sleeps for an hour.
    fn pass_time(&mut self) {
        self.now += match self.random.below(1_000) {
            0 => Duration::from_secs(3_600),
            1..100 => Duration::from_secs(1),
            _ => Duration::from_millis(5),
        };
    }

    /// The time as one of the cores has read it, a moment ago.
    fn some_now(&mut self) -> Instant {
        self.now - Duration::from_millis(self.random.below(30) as u64)
    }

    // ---- clients ----

    /// A client opens one more lane.
    fn register(&mut self) {
        let id = self.random.below(CLIENT_IDS);
        let instance = self.programs[id].instance;
        let lanes = self.lanes.iter().filter(|lane| lane.instance == instance);
        if lanes.count() < LANES_PER_CLIENT_MAX {
            self.join(id, instance);
        }
    }

    fn join(&mut self, id: usize, instance: u64) -> bool {
        let core = self.random.below(CORES);
        let name = format!("client {id}");
        let holder = self.holder(&name);
        let takes_flows = |of: u64| {
            let mut lanes = self.lanes.iter().filter(|lane| lane.instance == of);
            lanes.any(|lane| !lane.lane.drains.get())
        };
        let must_stay_out = self.replaced.contains(&instance)
            && holder.is_some_and(|holder| holder != instance && takes_flows(holder));
        let joined = self
            .pool
            .join(&name, instance_id(instance), None, core, self.now);
        let Ok(Joined {
            membership,
            replaced,
            ..
        }) = joined
        else {
            assert!(must_stay_out, "refused although it may serve");
            return false;
        };
        assert!(!must_stay_out, "it drove out its successor");
        self.replaced.remove(&instance);
        self.replaced
            .extend(holder.filter(|holder| *holder != instance));
        for replaced in replaced {
            self.evict(replaced.client, core);
        }
        let lane = Rc::new(Lane {
            client: membership.client().number,
            open: Cell::new(true),
            drains: Cell::new(false),
            silent: Cell::new(false),
            flows: Cell::new(0),
        });
        self.tables[core]
            .borrow_mut()
            .add(lane.client, Rc::clone(&lane));
        let service_up = self.programs[id].service_up;
        membership.service_health(0, service_up);
        self.lanes.push(Registered {
            id,
            instance,
            core,
            lane,
            membership,
            service_up,
        });
        true
    }

    /// The lanes of a replaced client take no more, and those that do not answer are closed; other
    /// cores may not be told.
    fn evict(&mut self, client: u64, by_core: usize) {
        let told: Vec<bool> = (0..CORES)
            .map(|core| core == by_core || self.random.chance(80))
            .collect();
        for index in 0..self.lanes.len() {
            if self.lanes[index].lane.client == client && told[self.lanes[index].core] {
                self.take_no_more(index);
                let lane = &self.lanes[index].lane;
                lane.open.set(lane.open.get() && !lane.silent.get());
            }
        }
    }

    /// The instance that has an id now, as the server sees it.
    fn holder(&self, name: &str) -> Option<u64> {
        let clients = self.pool.clients();
        let entry = clients.iter().find(|entry| entry.client_id == name)?;
        let lane = |lane: &&Registered| lane.lane.client == entry.number;
        self.lanes.iter().find(lane).map(|lane| lane.instance)
    }

    fn take_no_more(&self, index: usize) {
        let Registered {
            core,
            lane,
            membership,
            ..
        } = &self.lanes[index];
        lane.drains.set(true);
        membership.take_no_more();
        self.tables[*core].borrow_mut().remove(lane.client, lane);
    }

    /// The core has noticed that a lane has ended.
    fn lane_ended(&mut self, index: usize) {
        self.lanes[index].lane.open.set(false);
        self.take_no_more(index);
        let gone = self.lanes.swap_remove(index);
        self.flows
            .retain(|flow| !Rc::ptr_eq(&flow.lane, &gone.lane));
    }

    fn end_a_lane(&mut self) {
        if !self.lanes.is_empty() {
            let index = self.random.below(self.lanes.len());
            // Often it is known before that the lane is about to end.
            if self.random.chance(50) {
                self.lanes[index].lane.open.set(false);
            } else {
                self.lane_ended(index);
            }
        }
    }

    /// All lanes of a client end; it comes back as another instance, or not soon.
    fn kill(&mut self) {
        let id = self.random.below(CLIENT_IDS);
        let instance = self.programs[id].instance;
        while let Some(index) = self.lanes.iter().position(|lane| lane.instance == instance) {
            self.lane_ended(index);
        }
        self.new_instance(id);
    }

    fn drain(&mut self) {
        let id = self.random.below(CLIENT_IDS);
        let instance = self.programs[id].instance;
        for index in 0..self.lanes.len() {
            if self.lanes[index].instance == instance {
                self.take_no_more(index);
            }
        }
    }

    /// The old instance is dead, or a second program uses its id: the server cannot know.
    fn restart_without_a_word(&mut self) {
        let id = self.random.below(CLIENT_IDS);
        let old = self.programs[id].instance;
        self.instances += 1;
        let new = self.instances;
        assert!(self.join(id, new), "a new instance is never refused");
        self.programs[id].instance = new;
        self.ousted.push((id, old));
    }

    fn new_instance(&mut self, id: usize) {
        self.instances += 1;
        self.programs[id].instance = self.instances;
    }

    fn ousted_comes_back(&mut self) {
        if self.ousted.is_empty() {
            return;
        }
        let index = self.random.below(self.ousted.len());
        let (id, instance) = self.ousted[index];
        if self.join(id, instance) {
            self.ousted.swap_remove(index);
            let holder = std::mem::replace(&mut self.programs[id].instance, instance);
            self.ousted.push((id, holder));
        }
    }

    /// The service of a client changes; its lanes tell so, one after the other, some of them late.
    fn service_changes(&mut self) {
        let id = self.random.below(CLIENT_IDS);
        if self.random.chance(50) {
            self.programs[id].service_up = !self.programs[id].service_up;
        }
        let up = self.programs[id].service_up;
        for index in 0..self.lanes.len() {
            if self.lanes[index].id == id && self.random.chance(80) {
                self.lanes[index].service_up = up;
                self.lanes[index].membership.service_health(0, up);
            }
        }
    }

    fn silence_changes(&mut self) {
        if !self.lanes.is_empty() {
            let index = self.random.below(self.lanes.len());
            let silent = self.random.chance(30);
            let Registered {
                lane, membership, ..
            } = &self.lanes[index];
            lane.silent.set(silent);
            membership.silence(silent);
            if silent && membership.client().is_replaced() {
                lane.open.set(false);
            }
        }
    }

    // ---- what always holds ----

    fn check_counts(&self) {
        let clients = self.pool.clients();
        let mut names: Vec<&str> = clients.iter().map(|entry| &*entry.client_id).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), clients.len(), "an id is in the list twice");
        for entry in clients.iter() {
            let flows = self
                .flows
                .iter()
                .filter(|flow| flow.ticket.client().number == entry.number);
            assert_eq!(entry.flows(), flows.count());
            for core in 0..CORES {
                let lanes = self.lanes.iter().filter(|lane| {
                    lane.lane.client == entry.number && lane.core == core && !lane.lane.drains.get()
                });
                assert_eq!(entry.lanes_on(core), lanes.clone().count());
                let answering = lanes.filter(|lane| !lane.lane.silent.get());
                assert_eq!(entry.answering_on(core), answering.count());
            }
            assert!(
                self.lanes
                    .iter()
                    .any(|lane| lane.lane.client == entry.number),
                "a client without lanes is in the list"
            );
        }
    }

    fn end(mut self) {
        let entries = self.pool.clients();
        while !self.lanes.is_empty() {
            self.lane_ended(0);
        }
        self.flows.clear();
        for entry in entries.iter() {
            assert_eq!(entry.flows(), 0);
            assert!((0..CORES).all(|core| entry.lanes_on(core) == 0));
            assert!(!entry.usable() && !entry.service_is_down() && !entry.is_silent());
        }
        assert!(self.pool.clients().is_empty());
        assert!(self.tables.iter().all(|table| table.borrow().is_empty()));
        let tried = Tried::default();
        assert!(self.pool.pick(Protocol::Tcp, &tried, self.now).is_none());
        assert!(!self.pool.has_better(&tried));
        assert_eq!(
            self.visitors,
            self.served + self.refused,
            "each visitor is served or refused, and not both"
        );
    }
}

/// Runs every second seed, with this balancer.
fn run(balancer: LoadBalancer, first_seed: u64) {
    let seeds: Vec<u64> = match std::env::var("QMUX_SEED") {
        Ok(seed) => vec![seed.parse().expect("QMUX_SEED is a number")],
        Err(_) => (first_seed..SEEDS).step_by(2).collect(),
    };
    for seed in seeds {
        let _seed = PrintSeed(seed, balancer);
        let mut world = World::new(seed, balancer);
        for step in 0..STEPS {
            world.step();
            if step % STEPS_PER_CHECK == 0 {
                world.check_counts();
            }
        }
        world.end();
    }
}

#[test]
fn least_connections_holds_whatever_comes_and_goes() {
    run(LoadBalancer::LeastConnections, 0);
}

#[test]
fn round_robin_holds_whatever_comes_and_goes() {
    run(LoadBalancer::RoundRobin, 1);
}
