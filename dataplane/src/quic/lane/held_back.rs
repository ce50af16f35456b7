//! Flows of a lane that take nothing while memory is short, because they hold much already.
//!
//! On a long, fast path more can be in flight than the memory limit, without anything stalling. So
//! a flow takes less the less memory is left ([`memory::spare`]), and nothing if the peer has not
//! acknowledged what it sent. It then waits here.
//!
//! No wake-up is lost: only flows that hold something wait here, so the peer will acknowledge
//! something, or the lane ends. Each time that packets have been received, flows that may take
//! something again, because they hold less or there is more memory, join the others that wait for
//! room in the lane.

use std::cell::RefCell;
use std::rc::Rc;

use super::room::RoomQueue;
use super::{Lane, StreamWaiters};
use crate::core::memory;

/// The flows of one lane that wait for memory.
#[derive(Debug, Default)]
pub(super) struct HeldBack(RefCell<Vec<Rc<StreamWaiters>>>);

impl HeldBack {
    /// Adds a flow. Returns true if it did not wait here before.
    fn add(&self, flow: &Rc<StreamWaiters>) -> bool {
        let added = !flow.held_back.replace(true);
        if added {
            self.0.borrow_mut().push(Rc::clone(flow));
        }
        added
    }

    /// Moves flows that may take something to those that wait for room; `spare` returns how much a
    /// flow may take that holds this many bytes.
    fn release(&self, room: &RoomQueue, spare: impl Fn(usize) -> usize) {
        self.0.borrow_mut().retain(|flow| {
            if !flow.held_back.get() {
                return false; // It has gone.
            }
            let waits = spare(flow.holds.bytes()) == 0;
            if !waits {
                flow.held_back.set(false);
                room.wait(flow);
            }
            waits
        });
    }
}

impl Lane {
    /// Notes that the flow waits until it holds less, or there is more memory.
    pub(super) fn hold_back(&self, flow: &Rc<StreamWaiters>) {
        if self.held_back.add(flow)
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint.counters().stream_writers_held_back.increment();
        }
    }

    /// Lets flows that need not wait for memory any more wait for room again.
    pub(super) fn let_held_back_go_on(&self) {
        if !self.held_back.0.borrow().is_empty() {
            let supply = memory::supply();
            self.held_back
                .release(&self.room, |holds| memory::spare(supply, holds));
        }
    }
}

#[cfg(test)]
#[path = "held_back_tests.rs"]
mod tests;
