//! The end of a lane: who closes it or gives it up, why it ended, and who is told.

use std::io;
use std::rc::Rc;

use qmux_proto::{FlowError, LaneError};

use super::{Lane, StreamWaiters};
use crate::core::panics::contain;
use crate::quic::end::LaneEnd;

impl Lane {
    /// Waits until the lane begins to end; returns why.
    pub(crate) async fn ended(&self) -> LaneEnd {
        loop {
            if let Some(end) = self.end() {
                return end;
            }
            if let Some(error) = self.closed_by_us.get() {
                return LaneEnd::ClosedByUs(error);
            }
            self.established.wait().await;
        }
    }

    /// Why the lane ended, if it has.
    pub(crate) fn end(&self) -> Option<LaneEnd> {
        self.end.borrow().clone()
    }

    /// True until the lane has ended or begun to close.
    pub(crate) fn is_open(&self) -> bool {
        self.end.borrow().is_none()
            && self.closed_by_us.get().is_none()
            && !self.conn.was_interrupted()
    }

    /// Ends the lane without the peer's knowledge, in the next flush.
    pub(in crate::quic) fn give_up(&self) {
        self.given_up.set(true);
        self.admission_deadline.set(None);
        self.mark_dirty();
    }

    /// Gives up a handshake because the network reports that nobody listens at the peer's address.
    /// Anybody who guesses the port can forge such a report (RFC 9000, section 14.2.1), so it is
    /// ignored by a lane that is up.
    pub(in crate::quic) fn nobody_listens(&self, kind: io::ErrorKind) -> bool {
        let waits = !self.was_established.get() && self.is_open();
        if waits {
            self.unreachable.set(Some(kind));
            self.give_up();
        }
        waits
    }

    /// Closes the lane with `error`; the peer is told in the next flush.
    pub(crate) fn close(&self, error: LaneError, text: &str) {
        if self.conn.was_interrupted() {
            self.mark_dirty(); // The endpoint ends it.
        } else if self.closed_by_us.get().is_none() {
            self.closed_by_us.set(Some(error));
            self.closes.set(true);
            if self.cuts_off()
                && let Some(endpoint) = self.endpoint.upgrade()
            {
                endpoint.counters().lanes_cut_off.increment();
                tracing::debug!(
                    lane = self.key,
                    "closed before the peer had acknowledged all of what had been sent"
                );
            }
            // `Done` means that it is closing already.
            let _closing = self
                .conn
                .borrow_mut()
                .close(true, error.code(), text.as_bytes());
            self.wake_all();
            self.mark_dirty();
        }
    }

    /// Marks the lane as ended if its connection has closed. Returns true the first time.
    pub(in crate::quic) fn note_end(self: &Rc<Self>) -> bool {
        if self.end.borrow().is_some() {
            return false;
        }
        let Some(end) = LaneEnd::of(
            &mut self.conn.borrow_mut(),
            self.closed_by_us.get(),
            self.was_established.get(),
            self.given_up.get(),
        ) else {
            return false;
        };
        let end = self.unreachable.get().map_or(end, LaneEnd::Unreachable);
        self.count_last_datagrams();
        *self.end.borrow_mut() = Some(end.clone());
        self.wake_all();
        let events = self.events.borrow_mut().take();
        if let Some(events) = events {
            events.ended(self, &end);
        }
        true
    }

    /// Ends the lane at once, and does not use its connection any more, because a panic has
    /// interrupted it.
    pub(in crate::quic) fn break_off(self: &Rc<Self>) {
        if self.end.borrow().is_some() {
            return;
        }
        *self.end.borrow_mut() = Some(LaneEnd::Broken);
        self.wake_all();
        let events = self.events.borrow_mut().take();
        if let Some(events) = events {
            let _counted = contain(|| events.ended(self, &LaneEnd::Broken));
        }
    }

    /// Resets the streams of flows whose tasks have panicked; nobody but this lane knows them any
    /// more.
    pub(in crate::quic) fn abandon_orphans(&self) {
        let is_orphan = |waiters: &Rc<StreamWaiters>| {
            let listed = [waiters.share.is_queued(), waiters.held_back.get()];
            Rc::strong_count(waiters) == 1 + listed.into_iter().filter(|it| *it).count()
        };
        let waiters = self.waiters.borrow();
        let orphans = waiters.iter().filter(|(_, waiters)| is_orphan(waiters));
        let orphans: Vec<u64> = orphans.map(|(stream, _)| *stream).collect();
        drop(waiters);
        for stream in orphans {
            self.reset(stream, FlowError::Internal);
            self.stop(stream, FlowError::Internal);
            self.detach(stream);
        }
    }

    /// Ends the lane after a panic in work for it.
    pub(crate) fn panicked(self: &Rc<Self>) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.lane_panicked(self);
        }
    }

    /// Cleans up after a panic in one of the lane's flows.
    pub(crate) fn flow_panicked(&self) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.flow_panicked();
        }
    }

    pub(super) fn wake_all(&self) {
        for waiters in self.waiters.borrow().values() {
            waiters.readable.set();
            waiters.writable.set();
        }
        self.established.set();
    }
}
