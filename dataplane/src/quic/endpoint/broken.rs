//! What a panic costs an endpoint: a flow if only that was at work, a lane if the lane itself was,
//! and everything only if the endpoint's own tasks cannot go on.

use std::rc::Rc;

use qmux_proto::LaneError;

use super::Endpoint;
use crate::core::panics::{contain, core_is_broken};
use crate::quic::lane::Lane;

impl Endpoint {
    /// Runs `work` for `lane`. If it panics, the lane ends.
    pub(super) fn contain_for<T>(&self, lane: &Rc<Lane>, work: impl FnOnce() -> T) -> Option<T> {
        let result = contain(work);
        if result.is_err() {
            self.lane_panicked(lane);
        }
        result.ok()
    }

    /// Ends the lane after a panic in work for it, because nobody knows how far that came.
    pub(in crate::quic) fn lane_panicked(&self, lane: &Rc<Lane>) {
        let closed = contain(|| lane.close(LaneError::Internal, ""));
        if closed.is_err() || lane.conn.was_interrupted() {
            self.break_lane(lane);
        }
    }

    /// Cleans up after a panic in a flow of one of the lanes.
    pub(crate) fn flow_panicked(&self) {
        for lane in self.lanes() {
            let cleaned = contain(|| lane.abandon_orphans());
            if cleaned.is_err() || lane.conn.was_interrupted() {
                self.break_lane(&lane);
            }
        }
    }

    /// Cleans up after a panic in one of the endpoint's own tasks.
    pub(super) fn task_panicked(&self) {
        if self.accepts {
            core_is_broken();
            return;
        }
        for lane in self.lanes() {
            self.break_lane(&lane);
        }
        self.stopped.set();
    }

    /// Forgets the lane at once, without using its connection. The peer learns of it by a stateless
    /// reset, or by silence.
    pub(super) fn break_lane(&self, lane: &Rc<Lane>) {
        self.counters.lanes_broken.increment();
        lane.break_off();
        let is_other = |other: &mut Rc<Lane>| !Rc::ptr_eq(other, lane);
        self.by_cid.borrow_mut().retain(|_, other| is_other(other));
        self.by_initial
            .borrow_mut()
            .retain(|_, other| is_other(other));
        self.lanes.borrow_mut().remove(&lane.key());
        self.admitted(lane);
        if lane.counted_opened.get() {
            self.counters.lanes_ended.increment();
        } else {
            self.counters.handshakes_failed.increment();
        }
        self.flush.set();
    }
}
