//! What the last packets or timers have brought, given to those who wait for it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::datagram::Bundle;

use super::datagrams::Tally;
use super::{Brought, CONTROL_STREAM, Lane};

/// A peer that has completed the handshake must register within this time.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

impl Lane {
    /// Delivers what the last packets or timers changed: establishment, streams, datagrams, the
    /// end. Returns what there was for streams.
    pub(in crate::quic) fn dispatch(self: &Rc<Self>, now: Instant) -> Brought {
        let mut brought = Brought::NothingForStreams;
        let conn = self.conn.borrow_mut();
        if !self.was_established.get() && conn.is_established() {
            self.was_established.set(true);
            if conn.is_server() {
                self.admission_deadline
                    .set(Some(Instant::now() + REGISTER_TIMEOUT));
                self.mark_dirty(); // Arms the new deadline.
            } else {
                self.admission_deadline.set(None);
            }
            self.established.set();
        }
        drop(conn);
        // This comes before any flow: what the lane itself has to send waits for nobody.
        self.flush_control();
        if self.note_writable() {
            brought = Brought::Flows;
        }
        self.let_held_back_go_on();
        self.wake_room_waiters();
        self.tell_coalesced(now);
        let mut conn = self.conn.borrow_mut();
        while let Some(stream) = conn.stream_readable_next() {
            if stream == CONTROL_STREAM {
                brought = Brought::Control;
            } else if brought != Brought::Control {
                brought = Brought::Flows;
            }
            drop(conn);
            let known = self.stream_readable(stream, now);
            conn = self.conn.borrow_mut();
            // A stream of ours without waiters has been detached: this is late data for a flow that
            // was given up.
            let theirs = (stream & 1 == 1) != conn.is_server();
            if !known && theirs {
                drop(conn);
                if let Some(events) = self.events() {
                    events.stream_opened(self, stream);
                }
                conn = self.conn.borrow_mut();
            } else if !known {
                drop(conn);
                self.discard(stream);
                conn = self.conn.borrow_mut();
            }
        }
        drop(conn);
        self.deliver_datagrams();
        brought
    }

    /// Delivers received datagrams. It is called more often than [`Lane::dispatch`] when many come
    /// in one turn.
    pub(in crate::quic) fn deliver_datagrams(self: &Rc<Self>) {
        let Some(events) = self.events() else {
            return;
        };
        let mut any = false;
        loop {
            let next = self.conn.borrow_mut().dgram_recv_buf();
            let Ok(datagram) = next else { break };
            any = true;
            Tally::add(&self.datagrams.delivered, 1);
            match Bundle::of(datagram.as_ref()) {
                None => events.datagram(self, datagram.as_ref()),
                Some(bundle) => self.unbundle(bundle, &*events),
            }
        }
        if any {
            events.datagrams_done(self);
        }
    }

    /// Reads and drops the rest of a stream that nobody waits for any more, so that it can be
    /// collected.
    pub(crate) fn discard(&self, stream: u64) {
        let mut conn = self.conn.borrow_mut();
        while conn.stream_discard(stream, usize::MAX).is_ok() {}
    }
}
