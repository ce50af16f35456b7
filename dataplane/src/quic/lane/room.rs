//! Scheduling of flows: which of those that wait for room in the lane's queue or its congestion
//! window may write next.
//!
//! quiche reports which streams have become writable; after an acknowledgement these are all that
//! wait. If all of them were woken, the first few would take the room, and the others would have
//! run for nothing, a thousand at a time. So they wait here, and only as many are woken as there is
//! room for.
//!
//! Fairness is that of deficit round robin with new flows first (RFC 8290, section 4). A flow that
//! is woken may take [`SHARE_BYTES`]; once it has, and others wait, it goes to the end. A flow that
//! has taken little while the others took much goes first: a request need not wait behind a
//! thousand downloads. There may be many such flows as well: after [`JUMPED_BYTES_MAX`] of them,
//! one of the others has its turn.
//!
//! No wake-up is lost: a flow leaves the queue only by being woken, by leaving the lane, or because
//! quiche has been told to report its stream (its own window is full). A flow that is woken and has
//! nothing to write leaves the room to the next ones, for which the lane is flushed again. For how
//! much room flows are woken, and when: [`unsent`](super::unsent).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::unsent::Limits;
use super::{CONTROL_STREAM, Connection, Lane, QUEUE_BYTES_MAX, StreamWaiters};

/// Bytes that a flow may take before it is the turn of others that wait.
pub(super) const SHARE_BYTES: usize = 64 << 10;

/// When others have taken this many bytes since a flow got its last share, besides a share for each
/// that waits, it has a new one without waiting. The number exceeds a whole round, or those whose
/// turn it is would never end it.
const FRESH_AFTER_BYTES: usize = 4 * QUEUE_BYTES_MAX;

/// Bytes that flows which go first may write before one of the others has its turn.
pub(super) const JUMPED_BYTES_MAX: usize = QUEUE_BYTES_MAX;

const _: () = assert!(SHARE_BYTES <= QUEUE_BYTES_MAX);

/// What a stream may take at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capacity {
    /// This many bytes; or it has been stopped, which its flow must be told.
    Bytes(usize),
    /// Nothing, like all other streams: the congestion window is full.
    LaneFull,
    /// Nothing, because of its own window; quiche will report the stream.
    StreamFull,
}

/// The state of a flow in the schedule.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Whether it waits for room, in the queue or until quiche reports its stream.
    waits: Cell<bool>,
    /// Whether it is in the queue.
    queued: Cell<bool>,
    /// Bytes that it has taken of its share.
    taken: Cell<usize>,
    /// Bytes that all flows had written when it got its share.
    since: Cell<u64>,
    /// Whether it got its share when its turn came.
    in_turn: Cell<bool>,
}

impl Share {
    /// Whether the queue holds the flow.
    pub(super) fn is_queued(&self) -> bool {
        self.queued.get()
    }

    /// Removes a flow that has gone.
    pub(super) fn leave(&self) {
        self.waits.set(false);
    }
}

/// The flows of one lane that wait.
#[derive(Debug, Default)]
pub(super) struct RoomQueue {
    /// Flows that have something left of their share.
    first: RefCell<VecDeque<Rc<StreamWaiters>>>,
    /// Flows that have used up their share.
    then: RefCell<VecDeque<Rc<StreamWaiters>>>,
    /// Bytes that all flows have written.
    written: Cell<u64>,
    /// Bytes that were written by flows that went first.
    jumped: Cell<usize>,
}

impl RoomQueue {
    /// Number of flows that wait.
    pub(super) fn len(&self) -> usize {
        self.first.borrow().len() + self.then.borrow().len()
    }

    /// How many bytes a flow may take now, as far as others that wait are concerned.
    pub(super) fn allowance(&self, flow: &StreamWaiters) -> usize {
        let waiting = self.len();
        if waiting == 0 {
            return usize::MAX;
        }
        let others = self.written_by_others(flow);
        let fresh_after = FRESH_AFTER_BYTES + waiting * SHARE_BYTES;
        if others - flow.share.since.get() >= fresh_after as u64 {
            self.begin_share(flow, false);
        }
        if !flow.share.in_turn.get() && self.others_are_due() {
            return 0;
        }
        SHARE_BYTES.saturating_sub(flow.share.taken.get())
    }

    /// Counts bytes that the flow has written.
    pub(super) fn took(&self, flow: &StreamWaiters, bytes: usize) {
        self.written.set(self.written.get() + bytes as u64);
        flow.written.set(flow.written.get() + bytes as u64);
        let share = &flow.share;
        if !share.in_turn.get() && !self.then.borrow().is_empty() {
            self.jumped.set(self.jumped.get() + bytes);
        }
        share.taken.set(share.taken.get().saturating_add(bytes));
    }

    /// Notes that the flow waits until quiche reports its stream.
    pub(super) fn waits_for_quiche(flow: &StreamWaiters) {
        flow.share.waits.set(true);
    }

    /// Notes that the flow waits for room.
    pub(super) fn wait(&self, flow: &Rc<StreamWaiters>) {
        flow.share.waits.set(true);
        if flow.share.queued.replace(true) {
            return;
        }
        if flow.share.taken.get() >= SHARE_BYTES {
            self.then.borrow_mut().push_back(Rc::clone(flow));
        } else if flow.share.in_turn.get() {
            // The flow's turn goes on, so that its bytes travel together.
            self.first.borrow_mut().push_front(Rc::clone(flow));
        } else {
            self.first.borrow_mut().push_back(Rc::clone(flow));
        }
    }

    /// Handles quiche's report that the flow's stream is writable. Returns true if that puts the
    /// flow into the queue.
    pub(super) fn reported(&self, flow: &Rc<StreamWaiters>) -> bool {
        let waits = flow.share.waits.get();
        if waits {
            self.wait(flow);
        }
        waits
    }

    /// Wakes as many flows as `room` bytes are enough for; `capacity` returns what each could take.
    /// Returns the number of flows that were woken.
    pub(super) fn wake(&self, mut room: usize, capacity: impl Fn(u64) -> Capacity) -> u64 {
        let mut woken = 0;
        while room > 0 {
            let Some(flow) = self.pop() else { break };
            if !flow.share.waits.get() {
                continue; // It has gone.
            }
            match capacity(flow.stream) {
                Capacity::Bytes(bytes) => {
                    flow.share.waits.set(false);
                    if flow.share.taken.get() >= SHARE_BYTES {
                        self.begin_share(&flow, true);
                        self.jumped.set(0);
                    }
                    let left = SHARE_BYTES - flow.share.taken.get();
                    // At least one byte is counted, so that the work is bounded by the room.
                    room = room.saturating_sub(bytes.min(left).max(1));
                    flow.writable.set();
                    woken += 1;
                }
                Capacity::StreamFull => {}
                Capacity::LaneFull => {
                    self.put_back(flow);
                    break;
                }
            }
        }
        woken
    }

    fn written_by_others(&self, flow: &StreamWaiters) -> u64 {
        self.written.get().saturating_sub(flow.written.get())
    }

    /// Whether one of the flows that have used up their share has waited long enough.
    fn others_are_due(&self) -> bool {
        self.jumped.get() >= JUMPED_BYTES_MAX && !self.then.borrow().is_empty()
    }

    fn begin_share(&self, flow: &StreamWaiters, in_turn: bool) {
        flow.share.taken.set(0);
        flow.share.in_turn.set(in_turn);
        flow.share.since.set(self.written_by_others(flow));
    }

    fn pop(&self) -> Option<Rc<StreamWaiters>> {
        let first = if self.others_are_due() {
            None
        } else {
            self.first.borrow_mut().pop_front()
        };
        let flow = first.or_else(|| self.then.borrow_mut().pop_front())?;
        flow.share.queued.set(false);
        Some(flow)
    }

    /// Puts a flow back to where it was.
    fn put_back(&self, flow: Rc<StreamWaiters>) {
        flow.share.queued.set(true);
        let queue = if flow.share.taken.get() < SHARE_BYTES {
            &self.first
        } else {
            &self.then
        };
        queue.borrow_mut().push_front(flow);
    }
}

impl Lane {
    /// What limits the lane now.
    pub(super) fn limits(&self, conn: &mut Connection) -> Limits {
        Limits {
            capacity: window_of(conn),
            datagrams_wait: conn.dgram_send_queue_len() > 0,
            is_paced: self.release_at.get().is_some(),
        }
    }

    /// Wakes flows that wait for room, because something has come.
    pub(super) fn wake_room_waiters(&self) {
        let flows = self.room.len();
        if flows == 0 {
            return;
        }
        let limits = self.limits(&mut self.conn.borrow_mut());
        match self.unsent.before_flush(limits, flows) {
            Some(room) => self.wake_for(room),
            None => self.mark_dirty(), // The flush asks again.
        }
    }

    /// Wakes flows that wait for room after a flush.
    pub(in crate::quic) fn wake_room_waiters_after_flush(&self) {
        let flows = self.room.len();
        if flows > 0 {
            let limits = self.limits(&mut self.conn.borrow_mut());
            self.wake_for(self.unsent.after_flush(limits, flows));
        }
    }

    /// Wakes flows that wait for room, as many as `room` bytes are enough for.
    fn wake_for(&self, room: usize) {
        let woken = {
            let conn = RefCell::new(self.conn.borrow_mut());
            let capacity = |stream| room_of(&mut conn.borrow_mut(), stream);
            self.room.wake(room, capacity)
        };
        if woken == 0 {
            return;
        }
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.counters().stream_writers_woken.add(woken);
        }
        if self.room.len() > 0 {
            // The flows that were woken may have nothing to write; then the next flush wakes the
            // next ones.
            self.mark_dirty();
        }
    }

    /// Handles the streams that quiche reports as writable. Returns true if there are any.
    pub(super) fn note_writable(&self) -> bool {
        let mut any = false;
        loop {
            let next = self.conn.borrow_mut().stream_writable_next();
            let Some(stream) = next else { return any };
            any = true;
            if stream == CONTROL_STREAM {
                self.flush_control();
                continue;
            }
            let waiters = self.waiters.borrow();
            let Some(waiters) = waiters.get(&stream) else {
                continue;
            };
            if !self.room.reported(waiters) {
                // Nobody waits for room, but that the peer has stopped the stream is news.
                let stopped = self.conn.borrow_mut().stream_capacity(stream).is_err();
                if stopped {
                    waiters.writable.set();
                }
            }
        }
    }
}

/// The free part of the congestion window, as far as one stream shows it; there is none before the
/// first stream.
pub(super) fn window_of(conn: &mut Connection) -> usize {
    match conn.stream_capacity(CONTROL_STREAM) {
        Ok(bytes) if bytes > 0 => bytes,
        _ => QUEUE_BYTES_MAX,
    }
}

/// What `stream` may take now. If its own window is full, quiche is asked to report it.
fn room_of(conn: &mut Connection, stream: u64) -> Capacity {
    match conn.stream_capacity(stream) {
        Ok(0) => match conn.stream_capacity(CONTROL_STREAM) {
            Ok(1..) => match conn.stream_writable(stream, 1) {
                Ok(false) => Capacity::StreamFull,
                Ok(true) | Err(_) => Capacity::Bytes(1),
            },
            _ => Capacity::LaneFull,
        },
        Ok(bytes) => Capacity::Bytes(bytes),
        // The stream was stopped, which its flow finds out.
        Err(_) => Capacity::Bytes(1),
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
