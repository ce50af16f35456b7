//! The table's indexes against a model of them, by seeded simulation. Expiry and eviction are
//! simulated in `lifetimes_tests.rs`. Every run repeats by its seed: `QMUX_SEED=7 cargo test
//! --workspace udp::table`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);
const LIMIT: usize = 12;
const SEEDS: u64 = 100;
const STEPS: usize = 3_000;

/// Counts itself, as a ticket does.
struct Ticket {
    open: Rc<Cell<usize>>,
    /// Whether the flow lives elsewhere too, and must not expire here.
    kept: bool,
}

impl Ticket {
    fn new(open: &Rc<Cell<usize>>, kept: bool) -> Ticket {
        open.set(open.get() + 1);
        Ticket {
            open: Rc::clone(open),
            kept,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

#[derive(Debug, Clone, Copy)]
struct Expected {
    lane: LaneToken,
    id: u64,
    known: bool,
    stage: Stage,
    last_activity: Instant,
    kept: bool,
}

#[derive(Debug, Default)]
struct Seen {
    opened: usize,
    full: usize,
    evicted: usize,
    expired: usize,
    kept: usize,
    closed: usize,
    ended_with_lane: usize,
    known: usize,
}

struct Simulation {
    random: StdRng,
    now: Instant,
    table: Table<Ticket>,
    open: Rc<Cell<usize>>,
    last_lane: LaneToken,
    lanes: Vec<LaneToken>,
    ended: Vec<LaneToken>,
    model: BTreeMap<SocketAddr, Expected>,
    ids: BTreeMap<LaneToken, u64>,
    seen: Seen,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        Simulation {
            random: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            table: Table::new(
                Limits {
                    flows_max: LIMIT,
                    unanswered_timeout: TIMEOUT,
                    session_timeout: TIMEOUT,
                },
                Rc::default(),
            ),
            open: Rc::default(),
            last_lane: LaneToken::ELSEWHERE,
            lanes: Vec::new(),
            ended: Vec::new(),
            model: BTreeMap::new(),
            ids: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..1_000) {
            0..550 => self.packet(),
            550..750 => self.reply(),
            750..780 => self.introduce_again(),
            780..850 => self.close(),
            850..860 => self.close_visitor(),
            860..870 => self.add_lane(),
            870..874 => self.end_lane(),
            874..960 => self.now += Duration::from_millis(self.random.random_range(0..2_000)),
            _ => self.sweep(),
        }
    }

    fn visitor(&mut self) -> SocketAddr {
        let host = self.random.random_range(0..4);
        let port = self.random.random_range(1..25);
        (Ipv4Addr::new(192, 0, 2, host), port).into()
    }

    fn lane(&mut self) -> Option<LaneToken> {
        let from = if self.random.random_bool(0.02) {
            &self.ended
        } else {
            &self.lanes
        };
        (!from.is_empty()).then(|| from[self.random.random_range(0..from.len())])
    }

    /// A flow that exists, or an id that does not.
    fn flow(&mut self) -> Option<(LaneToken, u64)> {
        let lane = self.lane()?;
        let known: Vec<u64> = self
            .model
            .values()
            .filter(|flow| flow.lane == lane)
            .map(|flow| flow.id)
            .collect();
        let id = if known.is_empty() || self.random.random_bool(0.1) {
            self.random.random_range(0..1_000)
        } else {
            known[self.random.random_range(0..known.len())]
        };
        Some((lane, id))
    }

    fn visitor_of(&self, lane: LaneToken, id: u64) -> Option<SocketAddr> {
        self.model
            .iter()
            .find(|(_, flow)| (flow.lane, flow.id) == (lane, id))
            .map(|(visitor, _)| *visitor)
    }

    fn packet(&mut self) {
        let visitor = self.visitor();
        let found = self
            .table
            .packet_from(visitor, self.now)
            .map(|flow| (flow.visitor, flow.lane, flow.id, flow.known));
        if let Some(expected) = self.model.get_mut(&visitor) {
            expected.last_activity = self.now;
            if expected.stage == Stage::Answered {
                expected.stage = Stage::Established;
            }
            let &mut Expected {
                lane, id, known, ..
            } = expected;
            assert_eq!(found, Some((visitor, lane, id, known)));
            return;
        }
        assert_eq!(found, None);
        if let Some(lane) = self.lane() {
            self.open(visitor, lane);
        }
    }

    fn open(&mut self, visitor: SocketAddr, lane: LaneToken) {
        if self.ended.contains(&lane) {
            // Nobody opens a flow there.
            return;
        }
        self.make_room(visitor);
        let next = self.ids.entry(lane).or_default();
        let kept = self.random.random_bool(0.1);
        let ticket = Ticket::new(&self.open, kept);
        let opened = self
            .table
            .open(visitor, lane, *next, ticket, self.now)
            .map(|flow| (flow.id, flow.known));
        if self.model.len() == LIMIT {
            assert_eq!(opened, Err(TableFull));
            self.seen.full += 1;
        } else {
            assert_eq!(opened, Ok((*next, false)));
            let expected = Expected {
                lane,
                id: *next,
                known: false,
                stage: Stage::Unanswered,
                last_activity: self.now,
                kept,
            };
            *next += 1;
            self.model.insert(visitor, expected);
            self.seen.opened += 1;
        }
    }

    fn make_room(&mut self, visitor: SocketAddr) {
        let full = self.model.len() == LIMIT;
        match self.table.make_room(visitor, self.now, |_| false) {
            Admission::Free => assert!(!full),
            Admission::Instead(flow, _) => {
                let gone = self.model.remove(&flow.visitor).expect("it was there");
                assert_eq!((gone.lane, gone.id), (flow.lane, flow.id));
                assert_ne!(gone.stage, Stage::Established);
                self.seen.evicted += 1;
            }
            Admission::None => {
                assert!(full);
                let mut flows = self.model.values();
                assert!(flows.all(|flow| flow.stage == Stage::Established));
            }
        }
    }

    fn reply(&mut self) {
        let Some((lane, id)) = self.flow() else {
            return;
        };
        let found = self
            .table
            .packet_through(lane, id, self.now)
            .map(|(flow, first)| (flow.visitor, flow.known, first));
        let visitor = self.visitor_of(lane, id);
        let first = visitor.is_some_and(|at| self.model[&at].stage == Stage::Unanswered);
        assert_eq!(found, visitor.map(|visitor| (visitor, true, first)));
        if let Some(expected) = visitor.and_then(|visitor| self.model.get_mut(&visitor)) {
            expected.known = true;
            if first {
                expected.stage = Stage::Answered;
            }
            expected.last_activity = self.now;
            self.seen.known += 1;
        }
    }

    fn introduce_again(&mut self) {
        let Some((lane, id)) = self.flow() else {
            return;
        };
        let visitor = self.visitor_of(lane, id);
        assert_eq!(self.table.introduce_again(lane, id), visitor.is_some());
        if let Some(expected) = visitor.and_then(|visitor| self.model.get_mut(&visitor)) {
            expected.known = false;
        }
    }

    fn close(&mut self) {
        let Some((lane, id)) = self.flow() else {
            return;
        };
        let closed = self.table.close(lane, id).map(|flow| flow.visitor);
        assert_eq!(closed, self.visitor_of(lane, id));
        if let Some(visitor) = closed {
            self.model.remove(&visitor);
            self.seen.closed += 1;
        }
    }

    fn close_visitor(&mut self) {
        let visitor = self.visitor();
        let Some(lane) = self.lane() else { return };
        let there = self
            .model
            .get(&visitor)
            .is_some_and(|flow| flow.lane == lane);
        let closed = self.table.close_visitor(visitor, lane);
        assert_eq!(closed.is_some(), there);
        if there {
            self.model.remove(&visitor);
        }
    }

    fn add_lane(&mut self) {
        self.last_lane = self.last_lane.next();
        self.lanes.push(self.last_lane);
    }

    fn end_lane(&mut self) {
        if self.lanes.is_empty() {
            return;
        }
        let lane = self
            .lanes
            .swap_remove(self.random.random_range(0..self.lanes.len()));
        self.ended.push(lane);
        let mut ended: Vec<SocketAddr> = self
            .table
            .end_lane(lane)
            .iter()
            .map(|flow| flow.visitor)
            .collect();
        ended.sort();
        let expected: Vec<SocketAddr> = self
            .model
            .iter()
            .filter(|(_, flow)| flow.lane == lane)
            .map(|(visitor, _)| *visitor)
            .collect();
        assert_eq!(ended, expected);
        self.seen.ended_with_lane += ended.len();
        self.model.retain(|_, flow| flow.lane != lane);
    }

    fn sweep(&mut self) {
        while let Some((flow, stage)) = self.table.expire_next(self.now, |ticket| ticket.kept) {
            let expected = self
                .model
                .remove(&flow.visitor)
                .expect("it was in the table");
            assert_eq!((expected.lane, expected.id), (flow.lane, flow.id));
            assert_eq!(expected.stage, stage);
            assert!(!expected.kept, "a flow that is kept expired");
            assert!(
                expected.last_activity + TIMEOUT <= self.now,
                "an active flow expired"
            );
            self.seen.expired += 1;
        }
        for (visitor, flow) in &self.model {
            let due = flow.last_activity + TIMEOUT <= self.now;
            self.seen.kept += usize::from(due && flow.kept);
            assert!(!due || flow.kept, "{visitor} outlived its timeout");
        }
    }

    /// Both indexes name each flow once, and nothing else; tickets, lanes and deadlines agree.
    fn check(&self) {
        let table = &self.table;
        assert_eq!(table.len(), self.model.len());
        assert_eq!(table.by_visitor.len(), self.model.len());
        assert_eq!(self.open.get(), self.model.len(), "tickets");
        assert!(table.len() <= LIMIT);
        for (visitor, expected) in &self.model {
            let key = table.by_visitor[visitor];
            assert_eq!(table.lanes[&expected.lane][&expected.id], key);
            let flow = table.flows.get(key).expect("indexed");
            assert_eq!(flow.visitor, *visitor);
            assert_eq!((flow.lane, flow.id), (expected.lane, expected.id));
            assert_eq!(flow.known, expected.known);
            assert_eq!(table.stage_of(*visitor), Some(expected.stage));
        }
        let by_lane: usize = self.lanes.iter().map(|lane| table.lane_len(*lane)).sum();
        assert_eq!(by_lane, self.model.len());
        assert!(
            self.ended
                .iter()
                .all(|lane| !table.lanes.contains_key(lane))
        );
        let empty = |by_id: &ById| by_id.is_empty();
        assert!(!table.lanes.values().any(empty), "a lane without flows");
    }

    fn finish(mut self, seen: &mut Seen) {
        for lane in std::mem::take(&mut self.lanes) {
            drop(self.table.end_lane(lane));
        }
        assert_eq!(self.table.len(), 0);
        assert_eq!(self.open.get(), 0, "each ticket was dropped");
        seen.opened += self.seen.opened;
        seen.full += self.seen.full;
        seen.evicted += self.seen.evicted;
        seen.expired += self.seen.expired;
        seen.kept += self.seen.kept;
        seen.closed += self.seen.closed;
        seen.ended_with_lane += self.seen.ended_with_lane;
        seen.known += self.seen.known;
    }
}

#[test]
fn the_table_agrees_with_its_model() {
    let seeds = match std::env::var("QMUX_SEED") {
        Ok(seed) => vec![seed.parse().expect("QMUX_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    let all = seeds.len() > 1;
    let mut seen = Seen::default();
    for seed in seeds {
        println!("QMUX_SEED={seed}"); // Shown if the test fails.
        let mut simulation = Simulation::new(seed);
        simulation.add_lane();
        for _ in 0..STEPS {
            simulation.step();
            simulation.check();
        }
        simulation.finish(&mut seen);
    }
    for (count, what) in [
        (seen.opened, "a flow that opened"),
        (seen.evicted, "a flow that made room"),
        (seen.expired, "a flow that expired"),
        (seen.kept, "a flow kept beyond its timeout"),
        (seen.closed, "a flow that closed"),
        (seen.ended_with_lane, "a flow that ended with its lane"),
        (seen.known, "a flow that became known"),
    ] {
        assert!(
            count > 0 || !all,
            "the simulation never saw {what}: {seen:?}"
        );
    }
}

/// Flows of a flood, for which the tables that there are must grow.
const FLOOD: u32 = 40_000;

fn visitor(number: u32) -> SocketAddr {
    // Each comes from a network of its own, so none is bounded by its source.
    (Ipv4Addr::from(0x0a00_0000 + number), 4_000).into()
}

#[test]
fn a_flood_leaves_no_memory_behind_at_a_socket_and_who_was_there_before_stays() {
    let limits = Limits {
        flows_max: FLOOD as usize + 8,
        unanswered_timeout: TIMEOUT,
        session_timeout: TIMEOUT,
    };
    let (start, lane) = (Instant::now(), LaneToken::ELSEWHERE.next());
    let mut table: Table<u32> = Table::new(limits, Rc::default());
    let open = |table: &mut Table<u32>, number: u32, now| {
        let opened = table.open(visitor(number), lane, number.into(), number, now);
        opened.expect("there is room");
    };
    let establish = |table: &mut Table<u32>, number: u32, now| {
        table
            .packet_through(lane, number.into(), now)
            .expect("a flow");
        table.packet_from(visitor(number), now).expect("a flow");
    };
    for number in 0..4 {
        open(&mut table, number, start);
        establish(&mut table, number, start);
    }
    for number in 4..FLOOD {
        open(&mut table, number, start);
        // Answered strangers are a flood as well.
        if number % 2 == 0 {
            establish(&mut table, number, start);
        }
    }
    assert!(table.places() >= FLOOD as usize);
    let later = start + TIMEOUT;
    for number in 0..4 {
        table.packet_from(visitor(number), later).expect("a flow");
    }
    while let Some((flow, _)) = table.expire_next(later, |_| false) {
        assert!(flow.data >= 4, "{} was active", flow.data);
    }
    assert_eq!(table.len(), 4);
    let places = table.places();
    assert!(places <= 4 * room::CAPACITY_KEPT, "room for {places}");

    for number in 4..1_000 {
        open(&mut table, number, later);
    }
    for number in 0..1_000 {
        let flow = table.packet_from(visitor(number), later);
        assert_eq!(flow.map(|flow| flow.data), Some(number));
    }
    let mut expired = Vec::new();
    while let Some((flow, _)) = table.expire_next(later + TIMEOUT, |_| false) {
        expired.push(flow.data);
    }
    expired.sort_unstable();
    assert!(expired.into_iter().eq(0..1_000));
}
