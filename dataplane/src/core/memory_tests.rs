//! What is decided when memory is short, and a simulation of cores whose flows stall.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const LIMIT: usize = 64 << 20;
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

/// The most that one turn of receiving brings.
const TURN_BYTES: usize = 256 << 10;
/// The most that a flow keeps when it stalls.
const WINDOW_BYTES: usize = 8 << 20;
/// What a flow holds that moves.
const MOVING_BYTES: usize = 16 << 10;
const FLOWS_MAX: usize = 300;

#[derive(Clone, Copy)]
struct Flow {
    held: usize,
    /// Since when its socket takes nothing.
    stalled_at_ms: Option<u64>,
}

struct World {
    rng: SmallRng,
    now_ms: u64,
    cores: Vec<Vec<Flow>>,
    /// What each core has said of its longest stall.
    said: Vec<Option<Duration>>,
    refuses: Vec<bool>,
    ended: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let cores = rng.random_range(1..=4);
        World {
            rng,
            now_ms: 1,
            cores: vec![Vec::new(); cores],
            said: vec![None; cores],
            refuses: vec![false; cores],
            ended: 0,
        }
    }

    fn held(&self) -> usize {
        self.cores.iter().flatten().map(|flow| flow.held).sum()
    }

    fn supply(&self) -> Supply {
        Supply::of(self.held(), LIMIT)
    }

    /// The place of the flow of `core` that has stalled longest.
    fn most_stalled(&self, core: usize) -> Option<usize> {
        let flows = self.cores[core].iter().enumerate();
        flows
            .filter_map(|(at, flow)| Some((flow.stalled_at_ms?, at)))
            .min()
            .map(|(_, at)| at)
    }

    fn longest_stall(&self, core: usize) -> Option<Duration> {
        let at = self.most_stalled(core)?;
        let since = self.cores[core][at].stalled_at_ms?;
        Some(Duration::from_millis(self.now_ms.saturating_sub(since)))
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
        if self.refuses[core] && self.supply() == Supply::Over {
            let said = self.said.iter().all(Option::is_none);
            assert!(said, "refused although a flow stalls");
        } else if self.cores[core].len() < FLOWS_MAX {
            self.cores[core].push(Flow {
                held: MOVING_BYTES,
                stalled_at_ms: None,
            });
        }
    }

    fn leave(&mut self, core: usize) {
        if !self.cores[core].is_empty() {
            let at = self.rng.random_range(0..self.cores[core].len());
            self.cores[core].swap_remove(at);
        }
    }

    fn toggle_stall(&mut self, core: usize) {
        let now = self.now_ms;
        // Most stay.
        let wakes = self.rng.random_bool(0.2);
        if !self.cores[core].is_empty() {
            let at = self.rng.random_range(0..self.cores[core].len());
            let flow = &mut self.cores[core][at];
            if flow.stalled_at_ms.is_none() {
                flow.stalled_at_ms = Some(now);
            } else if wakes {
                *flow = Flow {
                    held: MOVING_BYTES,
                    stalled_at_ms: None,
                };
            }
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

    /// A turn's bytes, for flows of this core; those that move hold none of them.
    fn receive(&mut self, core: usize) {
        let mut left = self.rng.random_range(0..=TURN_BYTES);
        if !self.cores[core].is_empty() {
            let at = self.rng.random_range(0..self.cores[core].len());
            let flow = &mut self.cores[core][at];
            if flow.stalled_at_ms.is_some() {
                left = left.min(WINDOW_BYTES - flow.held);
                flow.held += left;
            }
        }
        if self.supply() > Supply::Ample {
            self.look(core);
        }
    }

    /// What [`keep_within_limit`] does.
    fn look(&mut self, core: usize) {
        for _ in 0..LOOKS_IN_A_ROW {
            let own = self.longest_stall(core);
            self.said[core] = own;
            let said = self.said.iter().enumerate();
            let others = said
                .filter(|(other, _)| *other != core)
                .filter_map(|(_, said)| *said)
                .max();
            let supply = self.supply();
            let order = decide(supply, own, others);
            self.refuses[core] = order == Order::Refuse;
            let Order::End(count) = order else { return };
            for _ in 0..count {
                self.end_most_stalled(core, supply, others);
            }
            self.said[core] = self.longest_stall(core);
        }
        assert!(self.supply() < Supply::Over, "looks without an end");
    }

    fn end_most_stalled(&mut self, core: usize, supply: Supply, others: Option<Duration>) {
        let Some(at) = self.most_stalled(core) else {
            return;
        };
        let stall = self.longest_stall(core);
        if supply == Supply::Short {
            assert!(stall >= SECOND && stall >= others, "{stall:?}, {others:?}");
        }
        self.cores[core].swap_remove(at);
        self.ended += 1;
    }

    fn check(&self) {
        let moving = self
            .cores
            .iter()
            .flatten()
            .filter(|flow| flow.stalled_at_ms.is_none());
        let slack = moving.count() * MOVING_BYTES + TURN_BYTES;
        assert!(
            self.held() <= LIMIT + slack,
            "{} bytes are held",
            self.held()
        );
    }
}

#[test]
fn the_limit_holds_and_flows_that_move_are_left_alone_whatever_happens() {
    let mut ended = 0;
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        let steps = if seed % 20 == 0 { 3_000 } else { 150 };
        for step in 0..steps {
            let run = std::panic::AssertUnwindSafe(|| {
                world.step();
                world.check();
            });
            assert!(
                std::panic::catch_unwind(run).is_ok(),
                "seed {seed}, step {step}"
            );
        }
        ended += world.ended;
    }
    assert!(ended > 0, "the limit was never near");
}
