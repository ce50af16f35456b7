//! The decisions when memory is short, and a simulation of cores whose flows stall.

use std::collections::BTreeSet;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use slab::Slab;

use super::*;

const LIMIT: usize = 64 << 20;
/// A limit that flows reach which do not stall.
const LOW_LIMIT: usize = 2 << 20;
const SECOND: Option<Duration> = Some(Duration::from_secs(1));
const MOMENT: Option<Duration> = Some(Duration::ZERO);
const LONG: Option<Duration> = Some(Duration::from_secs(9));

#[test]
fn nothing_ends_while_there_is_memory() {
    assert_eq!(Supply::of(LIMIT / 4 * 3 - 1, LIMIT), Supply::Ample);
    assert_eq!(decide(Supply::Ample, LONG, None), Order::Rest);
    assert_eq!(Supply::of(0, usize::MAX), Supply::Ample, "no limit");
}

#[test]
fn the_core_with_the_longest_stall_ends_a_flow_and_moments_do_not_count() {
    assert_eq!(Supply::of(LIMIT / 4 * 3, LIMIT), Supply::Short);
    assert_eq!(decide(Supply::Short, SECOND, None), Order::End(1));
    assert_eq!(decide(Supply::Short, SECOND, SECOND), Order::End(1));
    assert_eq!(decide(Supply::Short, SECOND, LONG), Order::Rest);
    assert_eq!(decide(Supply::Short, MOMENT, None), Order::Rest);
    assert_eq!(decide(Supply::Short, None, None), Order::Rest);
}

#[test]
fn with_hardly_any_left_every_socket_that_is_full_counts() {
    assert_eq!(Supply::of(LIMIT - 1, LIMIT), Supply::Out);
    assert_eq!(decide(Supply::Out, MOMENT, None), Order::End(ENDED_AT_ONCE));
    assert_eq!(decide(Supply::Out, MOMENT, SECOND), Order::Rest);
    assert_eq!(Supply::of(LIMIT, LIMIT), Supply::Over);
    assert_eq!(
        decide(Supply::Over, MOMENT, SECOND),
        Order::End(ENDED_AT_ONCE)
    );
}

#[test]
fn visitors_are_refused_only_if_nothing_is_left_and_nothing_stalls_anywhere() {
    assert_eq!(decide(Supply::Out, None, None), Order::Rest);
    assert_eq!(decide(Supply::Over, None, MOMENT), Order::Rest);
    assert_eq!(decide(Supply::Over, None, None), Order::Refuse);
    let supplies = [Supply::Ample, Supply::Short, Supply::Out, Supply::Over];
    let refused = supplies.map(|supply| refuses(true, supply));
    assert_eq!(refused, [false, false, false, true]);
    assert!(!refuses(false, Supply::Over), "a flow stalls, and will end");
}

#[test]
fn a_flow_is_given_less_to_send_the_less_is_left_and_waits_only_for_what_it_holds() {
    let holdings = [0, 1, TAKEN_WHILE_SHORT_BYTES, LIMIT];
    let given = |supply| holdings.map(|holds| spare(supply, holds));
    let (small, little) = (TAKEN_WHILE_SHORT_BYTES, TAKEN_WHILE_OUT_BYTES);
    assert!(little < small);
    assert_eq!(given(Supply::Ample), [usize::MAX; 4]);
    assert_eq!(given(Supply::Short), [small, small, 0, 0]);
    assert_eq!(given(Supply::Out), [little, 0, 0, 0]);
    assert_eq!(given(Supply::Over), [little, 0, 0, 0]);
}

/// The most bytes of one turn of receiving.
const TURN_BYTES: usize = 256 << 10;
/// The most bytes that a stalled flow holds.
const WINDOW_BYTES: usize = 8 << 20;
/// Bytes that a moving flow holds.
const MOVING_BYTES: usize = 16 << 10;
const FLOWS_MAX: usize = 300;

#[derive(Clone, Copy)]
struct Flow {
    held: usize,
    /// The time since which the flow's socket has taken nothing.
    stalled_at_ms: Option<u64>,
}

/// A core's flows by key, and those that stall by the time since which they do.
#[derive(Default)]
struct Core {
    flows: Slab<Flow>,
    stalls: BTreeSet<(u64, usize)>,
    /// The longest stall that it has reported.
    said: Option<Duration>,
    refuses: bool,
}

struct World {
    rng: SmallRng,
    now_ms: u64,
    cores: Vec<Core>,
    /// Bytes that all flows hold.
    held: usize,
    /// Number of flows that do not stall.
    moving: usize,
    limit: usize,
    ended: usize,
    refused: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let cores = rng.random_range(1..=4);
        let limit = if rng.random_bool(0.25) {
            LOW_LIMIT
        } else {
            LIMIT
        };
        World {
            rng,
            now_ms: 1,
            cores: (0..cores).map(|_| Core::default()).collect(),
            held: 0,
            moving: 0,
            limit,
            ended: 0,
            refused: 0,
        }
    }

    fn supply(&self) -> Supply {
        Supply::of(self.held, self.limit)
    }

    fn longest_stall(&self, core: usize) -> Option<Duration> {
        let (since, _) = self.cores[core].stalls.first()?;
        Some(Duration::from_millis(self.now_ms.saturating_sub(*since)))
    }

    fn longest_stall_of_others(&self, core: usize) -> Option<Duration> {
        let others = self.cores.iter().enumerate();
        let others = others.filter(|(other, _)| *other != core);
        others.filter_map(|(_, other)| other.said).max()
    }

    /// A flow of the core, if the place that was picked is not vacant.
    fn any(&mut self, core: usize) -> Option<usize> {
        let flows = &self.cores[core].flows;
        let key = self.rng.random_range(0..FLOWS_MAX.min(flows.len() + 1));
        flows.contains(key).then_some(key)
    }

    fn step(&mut self) {
        let core = self.rng.random_range(0..self.cores.len());
        match self.rng.random_range(0..20) {
            0..4 => self.visitor(core),
            4 => self.leave(core),
            5..7 => self.toggle_stall(core),
            7 => self.pass_time(),
            _ => self.receive(core),
        }
    }

    fn visitor(&mut self, core: usize) {
        if refuses(self.cores[core].refuses, self.supply()) {
            self.refused += 1;
        } else if self.cores[core].flows.len() < FLOWS_MAX {
            self.cores[core].flows.insert(Flow {
                held: MOVING_BYTES,
                stalled_at_ms: None,
            });
            self.held += MOVING_BYTES;
            self.moving += 1;
        }
    }

    fn leave(&mut self, core: usize) {
        if let Some(key) = self.any(core) {
            self.remove(core, key);
        }
    }

    fn remove(&mut self, core: usize, key: usize) {
        let core = &mut self.cores[core];
        let flow = core.flows.remove(key);
        self.held -= flow.held;
        match flow.stalled_at_ms {
            Some(since) => assert!(core.stalls.remove(&(since, key))),
            None => self.moving -= 1,
        }
    }

    fn toggle_stall(&mut self, core: usize) {
        // Most flows stay.
        let wakes = self.rng.random_bool(0.2);
        let Some(key) = self.any(core) else { return };
        let Core { flows, stalls, .. } = &mut self.cores[core];
        let flow = &mut flows[key];
        match flow.stalled_at_ms {
            None => {
                flow.stalled_at_ms = Some(self.now_ms);
                stalls.insert((self.now_ms, key));
                self.moving -= 1;
            }
            Some(since) if wakes => {
                stalls.remove(&(since, key));
                flow.stalled_at_ms = None;
                self.held -= flow.held - MOVING_BYTES;
                flow.held = MOVING_BYTES;
                self.moving += 1;
            }
            Some(_) => {}
        }
    }

    /// Some milliseconds, now and then a jump; then every core has had its look.
    fn pass_time(&mut self) {
        self.now_ms += if self.rng.random_bool(0.01) {
            3_600_000
        } else {
            self.rng.random_range(0..500)
        };
        for core in 0..self.cores.len() {
            self.look(core);
        }
    }

    /// Receives a turn's bytes for flows of this core; moving flows hold none of them.
    fn receive(&mut self, core: usize) {
        let bytes = self.rng.random_range(0..=TURN_BYTES);
        if let Some(key) = self.any(core) {
            let flow = &mut self.cores[core].flows[key];
            if flow.stalled_at_ms.is_some() {
                let taken = bytes.min(WINDOW_BYTES - flow.held);
                flow.held += taken;
                self.held += taken;
            }
        }
        if self.supply() > Supply::Ample {
            self.look(core);
        }
    }

    /// Does what [`keep_within_limit`] does.
    fn look(&mut self, core: usize) {
        for _ in 0..LOOKS_IN_A_ROW {
            let own = self.longest_stall(core);
            self.cores[core].said = own;
            let others = self.longest_stall_of_others(core);
            let supply = self.supply();
            let order = decide(supply, own, others);
            self.cores[core].refuses = order == Order::Refuse;
            let Order::End(count) = order else { return };
            for _ in 0..count {
                self.end_most_stalled(core, supply, others);
            }
            self.cores[core].said = self.longest_stall(core);
        }
        assert!(self.supply() < Supply::Over, "looks without an end");
    }

    fn end_most_stalled(&mut self, core: usize, supply: Supply, others: Option<Duration>) {
        let stall = self.longest_stall(core);
        let Some((_, key)) = self.cores[core].stalls.first().copied() else {
            return;
        };
        if supply == Supply::Short {
            assert!(stall >= SECOND && stall >= others, "{stall:?}, {others:?}");
        }
        self.remove(core, key);
        self.ended += 1;
    }

    fn check(&self) {
        let most = self.limit + self.moving * MOVING_BYTES + TURN_BYTES;
        assert!(self.held <= most, "{} bytes are held", self.held);
    }

    /// Checks that the counts agree with the flows.
    fn check_counts(&self) {
        let flows = || {
            let cores = self.cores.iter();
            cores.flat_map(|core| core.flows.iter().map(|(_, flow)| flow))
        };
        assert_eq!(self.held, flows().map(|flow| flow.held).sum::<usize>());
        let moving = flows().filter(|flow| flow.stalled_at_ms.is_none());
        assert_eq!(self.moving, moving.count());
    }
}

#[test]
fn the_limit_holds_and_flows_that_move_are_left_alone_whatever_happens() {
    let (mut ended, mut refused) = (0, 0);
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for step in 0..3_000 {
            let run = std::panic::AssertUnwindSafe(|| {
                world.step();
                world.check();
            });
            assert!(
                std::panic::catch_unwind(run).is_ok(),
                "seed {seed}, step {step}"
            );
        }
        world.check_counts();
        ended += world.ended;
        refused += world.refused;
    }
    assert!(ended > 0, "the limit was never near");
    assert!(
        refused > 0,
        "there was always memory, or a flow that stalled"
    );
}
