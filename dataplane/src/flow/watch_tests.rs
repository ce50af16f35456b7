//! The table of flows: scenarios, and thousands of seeded steps of flows that come, stall, go on
//! and go, with looks that come late or after the process has stood still. A failure prints its
//! seed.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const SEEDS: u64 = 1_000;
const STEPS: usize = 3_000;
const FLOWS_MAX: usize = 24;
const TIMEOUT: Duration = Duration::from_secs(60);
const STEP: Duration = LOOK_INTERVAL;

fn flows() -> Rc<TcpFlows> {
    TcpFlows::new(Arc::default())
}

/// One round of the sweep.
fn round(flows: &TcpFlows, round: usize, step: Duration) {
    let mut next = Some(0);
    while let Some(from) = next {
        next = flows.tell_to_look(round, from, step);
    }
}

#[test]
fn a_stall_ends_when_the_peer_has_taken_nothing_for_the_whole_timeout() {
    let flows = flows();
    let watch = flows.register(TIMEOUT);
    watch.socket_is_full();
    // The first look only notes where the socket stands.
    assert!(!watch.has_stalled(STEP, 1_000));
    for _ in 1..TIMEOUT.as_secs() {
        assert!(!watch.has_stalled(STEP, 1_000));
    }
    assert!(watch.has_stalled(STEP, 1_000));
}

#[test]
fn a_flow_that_moves_nothing_for_the_whole_idle_timeout_is_told_to_end() {
    let flows = flows();
    let watch = flows.register(TIMEOUT).with_idle_timeout(TIMEOUT);
    let other = flows.register(TIMEOUT);
    let mut rounds = (0..).inspect(|it| round(&flows, *it, STEP));
    let mut pass = |seconds| rounds.by_ref().take(seconds).last();
    let seconds = usize::try_from(TIMEOUT.as_secs()).expect("few");
    for _ in 0..3 {
        watch.has_moved();
        // The first round only notes that it has moved something.
        pass(seconds);
        assert_eq!(watch.told(), None);
    }
    // A flow that waits for nothing but its socket and its stream, which looks more seldom, too.
    watch.inward().set(Waits::Socket);
    watch.outward().set(Waits::Stream);
    pass(1);
    assert_eq!(watch.told(), Some(FlowError::Expired));
    pass(10 * seconds);
    assert_eq!(other.told(), None, "without an idle timeout");
    assert_eq!(flows.counters.tcp_flows_idle.get(), 1, "told once");
}

#[test]
fn a_peer_that_takes_one_byte_starts_the_time_anew() {
    let flows = flows();
    let watch = flows.register(TIMEOUT);
    watch.socket_is_full();
    let mut untaken = 10_000;
    for second in 0..10 * TIMEOUT.as_secs() {
        if second % (TIMEOUT.as_secs() - 1) == 0 {
            untaken -= 1;
        }
        assert!(!watch.has_stalled(STEP, untaken), "after {second} s");
    }
}

#[test]
fn with_zero_as_timeout_a_flow_may_stall_for_ever() {
    let flows = flows();
    let watch = flows.register(Duration::ZERO);
    watch.socket_is_full();
    for _ in 0..100_000 {
        assert!(!watch.has_stalled(STEP, 1));
    }
}

#[test]
fn the_flow_that_has_stalled_longest_ends_first() {
    let flows = flows();
    let watches: Vec<_> = (0..4).map(|_| flows.register(TIMEOUT)).collect();
    for (stream, watch) in [2, 0, 3, 1].into_iter().map(|at| (at, &watches[at])) {
        watch.rides(7, stream as u64);
        watch.socket_is_full();
    }
    // 0 takes something and is full again: the last now.
    watches[0].socket_took();
    watches[0].socket_is_full();
    let ended = || flows.end_most_stalled(FlowError::LimitReached);
    let order: Vec<u64> = std::iter::from_fn(ended).map(|flow| flow.stream).collect();
    assert_eq!(order, [2, 3, 1, 0]);
    assert_eq!(flows.counters.tcp_flows_ended_for_memory.get(), 4);
    for watch in &watches {
        assert_eq!(watch.told(), Some(FlowError::LimitReached));
        // A flow that was told once is not told again.
        watch.socket_is_full();
    }
    assert_eq!(ended(), None);
}

#[test]
fn idle_flows_look_seldom_and_others_in_each_round() {
    let flows = flows();
    let watches: Vec<_> = (0..100).map(|_| flows.register(TIMEOUT)).collect();
    let (idle, opening) = watches.split_at(50);
    for watch in idle {
        watch.inward().set(Waits::Socket);
        watch.outward().set(Waits::Stream);
    }
    let mut looks = 0;
    for at in 0..IDLE_ROUNDS {
        round(&flows, at, STEP);
        assert!(opening.iter().all(|watch| watch.take_look() == Some(STEP)));
        looks += idle.iter().filter_map(FlowWatch::take_look).count();
    }
    assert_eq!(looks, idle.len());
}

#[test]
fn looks_that_a_busy_flow_has_missed_count_together() {
    let flows = flows();
    let watch = flows.register(TIMEOUT);
    for at in 0..3 {
        round(&flows, at, STEP);
    }
    assert_eq!(watch.take_look(), Some(3 * STEP));
    assert_eq!(watch.take_look(), None);
}

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
}

struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// A flow as the simulation knows it.
struct Flow {
    watch: FlowWatch,
    /// Bytes of the socket that its peer has not taken.
    untaken: u32,
    /// Whether bytes wait for the full socket.
    full: bool,
    /// Time that the core was awake, from the first look of this stall on, or since the peer last
    /// took something.
    stalled_for: Option<Duration>,
    told: bool,
}

struct World {
    flows: Rc<TcpFlows>,
    alive: BTreeMap<u64, Flow>,
    /// Streams of the stalled flows, in the order in which they must end.
    order: VecDeque<u64>,
    next: u64,
    rounds: usize,
    timed_out: u64,
    ended_for_memory: u64,
    random: Random,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            flows: flows(),
            alive: BTreeMap::new(),
            order: VecDeque::new(),
            next: 0,
            rounds: 0,
            timed_out: 0,
            ended_for_memory: 0,
            random: Random(seed),
        }
    }

    fn any(&mut self) -> Option<u64> {
        let at = self.random.below(self.alive.len().max(1));
        self.alive.keys().nth(at).copied()
    }

    fn flow(&mut self, stream: u64) -> &mut Flow {
        self.alive.get_mut(&stream).expect("alive")
    }

    fn comes(&mut self) {
        if self.alive.len() == FLOWS_MAX {
            return;
        }
        let watch = self.flows.register(TIMEOUT);
        watch.rides(1, self.next);
        let flow = Flow {
            watch,
            untaken: 0,
            full: false,
            stalled_for: None,
            told: false,
        };
        self.alive.insert(self.next, flow);
        self.next += 1;
    }

    fn goes(&mut self, stream: u64) {
        self.order.retain(|other| *other != stream);
        self.alive.remove(&stream);
    }

    fn becomes_full(&mut self, stream: u64) {
        let bytes = 1 + self.random.below(1 << 20) as u32;
        let flow = self.flow(stream);
        flow.untaken = flow.untaken.saturating_add(bytes);
        flow.watch.socket_is_full();
        let begins = !std::mem::replace(&mut flow.full, true) && !flow.told;
        if begins {
            self.order.push_back(stream);
        }
    }

    /// The socket has room again and takes the bytes that wait.
    fn takes(&mut self, stream: u64) {
        let flow = self.flow(stream);
        flow.watch.socket_took();
        flow.full = false;
        flow.stalled_for = None;
        flow.untaken /= 2;
        self.order.retain(|other| *other != stream);
    }

    /// The peer takes too little for the socket to have room.
    fn peer_takes_a_little(&mut self, stream: u64) {
        let flow = self.flow(stream);
        flow.untaken = flow.untaken.saturating_sub(1);
    }

    /// The sweep comes, perhaps late, and the flows' tasks run, or some of them only after the next
    /// one.
    fn sweep(&mut self, passed: Duration) {
        let step = passed.min(LOOK_COUNTS_MAX);
        round(&self.flows, self.rounds, step);
        self.rounds += 1;
        let streams: Vec<u64> = self.alive.keys().copied().collect();
        let lazy = self.random.below(4);
        for stream in streams {
            if self.random.below(8) >= lazy {
                self.look(stream);
            }
        }
    }

    fn look(&mut self, stream: u64) {
        let flow = self.flow(stream);
        if flow.watch.told().is_some() {
            return self.goes(stream);
        }
        let Some(step) = flow.watch.take_look() else {
            return;
        };
        assert_eq!(flow.watch.is_stalled(), flow.full);
        if !flow.full {
            return;
        }
        let before = flow.seen();
        let over = flow.watch.has_stalled(step, flow.untaken);
        let progress = before.is_some_and(|before| flow.untaken < before);
        flow.stalled_for = match flow.stalled_for {
            Some(so_far) if !progress => Some(so_far + step),
            _ => Some(Duration::ZERO),
        };
        assert_eq!(over, flow.stalled_for >= Some(TIMEOUT));
        if progress {
            self.order.retain(|other| *other != stream);
            self.order.push_back(stream);
        }
        if over {
            self.timed_out += 1;
            self.goes(stream);
        }
    }

    fn memory_is_short(&mut self) {
        let ended = self.flows.end_most_stalled(FlowError::LimitReached);
        let expected = self.order.pop_front();
        assert_eq!(ended.map(|ended| ended.stream), expected);
        if let Some(stream) = expected {
            self.ended_for_memory += 1;
            self.flow(stream).told = true;
        }
    }

    fn step(&mut self) {
        let what = self.random.below(100);
        if what < 10 {
            return self.comes();
        }
        let Some(stream) = self.any() else { return };
        match what {
            10..14 => self.goes(stream),
            14..34 => self.becomes_full(stream),
            34..44 => self.takes(stream),
            44..54 => self.peer_takes_a_little(stream),
            54..94 => self.sweep(STEP),
            94..97 => {
                // The core was busy, or the machine was suspended for a day.
                let seconds = [2, 10, 86_400][self.random.below(3)];
                self.sweep(Duration::from_secs(seconds));
            }
            _ => self.memory_is_short(),
        }
    }

    fn check(&self) {
        let table = self.flows.table.borrow();
        assert_eq!(table.entries.len(), self.alive.len(), "flows leak");
        assert_eq!(table.stalled, self.order.len());
        let mut keys = Vec::new();
        let mut next = table.first;
        while let Some(key) = next {
            keys.push(key);
            assert!(keys.len() <= FLOWS_MAX, "the list has a ring");
            next = table.entries[key].after;
        }
        let streams = keys
            .iter()
            .map(|key| table.entries[*key].state.carried_by.get().1);
        assert!(streams.eq(self.order.iter().copied()));
        let mut backwards = Vec::new();
        let mut next = table.last;
        while let Some(key) = next {
            backwards.push(key);
            next = table.entries[key].before;
        }
        backwards.reverse();
        assert_eq!(keys, backwards);
        drop(table);
        for flow in self.alive.values().filter(|flow| flow.told) {
            assert!(flow.watch.told().is_some() && !flow.watch.is_stalled());
        }
        let counted = self.flows.counters.tcp_flows_ended_for_memory.get();
        assert_eq!(counted, self.ended_for_memory);
    }
}

impl Flow {
    /// The result of the last look.
    fn seen(&self) -> Option<u32> {
        self.watch
            .state
            .stall
            .get()
            .and_then(|stall| stall.untaken_bytes)
    }
}

#[test]
fn whatever_happens_the_longest_stalled_flow_is_first_and_nothing_is_left_behind() {
    let (mut timed_out, mut ended_for_memory) = (0, 0);
    for seed in 0..SEEDS {
        let _print = PrintSeed(seed);
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            if world.random.below(16) == 0 {
                world.check();
            }
        }
        world.check();
        timed_out += world.timed_out;
        ended_for_memory += world.ended_for_memory;
        world.alive.clear();
        assert!(world.flows.table.borrow().entries.is_empty());
        assert_eq!(world.flows.stalled(), 0);
    }
    assert!(timed_out > SEEDS && ended_for_memory > SEEDS, "too tame");
}

#[test]
fn looks_of_many_flows_cost_no_more_than_those_of_some() {
    let flows = flows();
    let count = FLOWS_PER_ROUND * ROUNDS_MAX;
    let all: Vec<_> = (0..count).map(|_| flows.register(TIMEOUT)).collect();
    let stalled = flows.register(TIMEOUT);
    stalled.socket_is_full();
    let mut seen = vec![0; count];
    for number in 0..2 * ROUNDS_MAX {
        round(&flows, number, STEP);
        let looks = all.iter().map(FlowWatch::take_look);
        let mut looked = 0;
        for (seen, _) in seen
            .iter_mut()
            .zip(looks)
            .filter(|(_, look)| look.is_some())
        {
            *seen += 1;
            looked += 1;
        }
        assert!(looked <= FLOWS_PER_ROUND, "{looked}");
        assert_eq!(stalled.take_look(), Some(STEP), "its time is measured");
    }
    assert!(seen.iter().all(|looks| *looks == 2), "none is left out");
}
