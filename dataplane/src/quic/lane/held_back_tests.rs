//! Flows that wait for memory, none of them for ever.

use std::task::{Context, Waker};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::buffer::{SMALL_BLOCK_BYTES, StreamBuf};
use crate::core::memory::Supply;
use crate::quic::lane::room::Capacity;

fn flow(stream: u64) -> Rc<StreamWaiters> {
    Rc::new(StreamWaiters {
        stream,
        ..StreamWaiters::default()
    })
}

fn was_woken(flow: &StreamWaiters) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    flow.writable.poll(&mut cx).is_ready()
}

#[test]
fn a_block_counts_for_its_flow_until_all_its_parts_that_quiche_has_are_gone() {
    use quiche::BufSplit as _;
    let flow = flow(4);
    let kept = StreamBuf::copied(&[7; 300]);
    let block = kept.held_bytes();
    let mut sent = kept.charged_to(&flow.holds);
    assert_eq!(flow.holds.bytes(), block);
    let rest = sent.split_at(100);
    assert_eq!(rest.as_ref(), &[7; 200]);
    drop(sent);
    assert_eq!(flow.holds.bytes(), block, "the rest keeps the block");
    let not_taken = rest.uncharged();
    drop(rest);
    assert_eq!(flow.holds.bytes(), 0);
    assert_eq!(not_taken.as_ref().len() + 100, kept.as_ref().len());
}

#[test]
fn a_flow_that_is_held_back_goes_on_when_its_bytes_are_acknowledged_or_memory_is_ample() {
    let (held_back, room) = (HeldBack::default(), RoomQueue::default());
    let (one, two, gone) = (flow(4), flow(8), flow(12));
    let block = StreamBuf::copied(&[7; SMALL_BLOCK_BYTES]);
    let in_flight = [&one, &two, &gone].map(|flow| block.charged_to(&flow.holds));
    for flow in [&one, &two, &gone] {
        assert!(held_back.add(flow));
        assert!(!held_back.add(flow), "each waits once");
    }
    gone.held_back.set(false);
    let short = |holds| memory::spare(Supply::Short, holds);
    held_back.release(&room, short);
    assert_eq!(room.len(), 0, "they all hold a block");
    let [of_one, of_two, _] = in_flight;
    drop(of_one);
    held_back.release(&room, short);
    assert_eq!(room.wake(1, |_| Capacity::Bytes(1)), 1);
    assert!(was_woken(&one) && !was_woken(&two));
    held_back.release(&room, |holds| memory::spare(Supply::Ample, holds));
    assert_eq!(room.wake(1, |_| Capacity::Bytes(1)), 1);
    assert!(was_woken(&two) && !was_woken(&gone));
    drop(of_two);
}

/// A lane whose flows send as much as they may, while memory comes and goes.
struct World {
    rng: SmallRng,
    supply: Supply,
    held_back: HeldBack,
    room: RoomQueue,
    /// Each flow, with its buffers in flight.
    flows: Vec<(Rc<StreamWaiters>, Vec<StreamBuf>)>,
    block: StreamBuf,
    waited: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let flows = rng.random_range(1..20);
        World {
            rng,
            supply: Supply::Ample,
            held_back: HeldBack::default(),
            room: RoomQueue::default(),
            flows: (0..flows).map(|at| (flow(4 * at), Vec::new())).collect(),
            block: StreamBuf::copied(&[7; SMALL_BLOCK_BYTES]),
            waited: 0,
        }
    }

    fn step(&mut self) {
        let at = self.rng.random_range(0..self.flows.len());
        match self.rng.random_range(0..8) {
            0 => {
                let supplies = [Supply::Ample, Supply::Short, Supply::Out, Supply::Over];
                self.supply = supplies[self.rng.random_range(0..supplies.len())];
            }
            1 => {
                let gone = std::mem::replace(&mut self.flows[at], (flow(4), Vec::new()));
                gone.0.held_back.set(false);
                gone.0.share.leave();
            }
            2..5 => self.send(at),
            _ => self.acknowledge(at),
        }
    }

    /// Does what [`Lane::room`] and [`Lane::write`] do.
    fn send(&mut self, at: usize) {
        let (flow, in_flight) = &mut self.flows[at];
        if flow.held_back.get() || flow.share.is_queued() {
            return; // It sleeps.
        }
        if memory::spare(self.supply, flow.holds.bytes()) == 0 {
            assert!(!in_flight.is_empty(), "nothing will wake it");
            self.held_back.add(flow);
            self.waited += 1;
        } else if in_flight.len() < 8 {
            in_flight.push(self.block.charged_to(&flow.holds));
        }
    }

    /// Receives some packets, and then looks at all flows that wait.
    fn acknowledge(&mut self, at: usize) {
        self.flows[at].1.pop();
        let supply = self.supply;
        self.held_back
            .release(&self.room, |holds| memory::spare(supply, holds));
        self.room.wake(usize::MAX, |_| Capacity::Bytes(1));
        for (flow, in_flight) in &self.flows {
            let waits = memory::spare(supply, flow.holds.bytes()) == 0;
            assert!(waits || !flow.held_back.get(), "it waits for nothing");
            assert_eq!(flow.holds.bytes(), in_flight.len() * SMALL_BLOCK_BYTES);
        }
        assert!(self.held_back.0.borrow().len() <= self.flows.len());
    }
}

#[test]
fn nobody_waits_for_memory_that_is_there_whatever_happens() {
    let mut waited = 0;
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for step in 0..3_000 {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.step()));
            assert!(ran.is_ok(), "seed {seed}, step {step}");
        }
        waited += world.waited;
    }
    assert!(waited > 0, "nobody ever waited");
}
