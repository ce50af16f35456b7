//! A lane's streams and datagrams, in the form in which flows use them.

use std::rc::Rc;
use std::time::Instant;

use qmux_proto::control::{Finished, Message};
use qmux_proto::{FlowError, LaneError};

use super::datagrams::Tally;
use super::room::RoomQueue;
use super::{
    ANNOUNCE_AFTER, CONTROL_BACKLOG_BYTES_MAX, CONTROL_STREAM, DATAGRAM_QUEUE_BYTES_MAX,
    DATAGRAM_QUEUE_BYTES_MAX_FULL, DatagramRefused, Lane, StreamRead, StreamRoom, StreamWaiters,
    URGENCY_FIRST,
};
use crate::buffer::{Datagram, StreamBuf};
use crate::core::memory;

impl Lane {
    /// Opens the next stream of ours. `None` if the peer allows no more now.
    pub(crate) fn open_stream(&self) -> Option<u64> {
        let conn = self.conn.borrow();
        if conn.peer_streams_left_bidi() == 0 || !self.is_open() {
            return None;
        }
        let stream = self.next_stream.get();
        self.next_stream.set(stream + 4);
        Some(stream)
    }

    /// Number of streams that we have opened.
    pub(crate) fn streams_opened(&self) -> u64 {
        self.next_stream.get() / 4
    }

    /// Registers the caller as the one who waits for `stream`.
    pub(crate) fn attach(&self, stream: u64) -> Rc<StreamWaiters> {
        let waiters = Rc::new(StreamWaiters {
            stream,
            ..StreamWaiters::default()
        });
        self.waiters
            .borrow_mut()
            .insert(stream, Rc::clone(&waiters));
        waiters
    }

    /// Ends the registration. Must be called when the stream is over in both directions.
    pub(crate) fn detach(&self, stream: u64) {
        let waiters = self.waiters.borrow_mut().remove(&stream);
        let was_reset = waiters.as_ref().is_some_and(|it| it.was_reset.get());
        if let Some(waiters) = waiters {
            waiters.share.leave();
            waiters.held_back.set(false);
        }
        if !was_reset {
            self.remember_ended(stream);
        }
    }

    /// How much may be written to `stream` now, up to `want`.
    pub(crate) fn room(&self, stream: u64, want: usize, waiters: &Rc<StreamWaiters>) -> StreamRoom {
        if !self.is_open() {
            return StreamRoom::Stopped(FlowError::Internal);
        }
        let mut conn = self.conn.borrow_mut();
        let capacity = match conn.stream_capacity(stream) {
            Ok(capacity) => capacity,
            Err(error) => return StreamRoom::Stopped(flow_error(error)),
        };
        let spare = memory::spare(memory::supply(), waiters.holds.bytes());
        if spare == 0 {
            self.hold_back(waiters);
            return StreamRoom::Blocked;
        }
        let flows = 1 + self.room.len();
        let room = self.unsent.room(self.limits(&mut conn), flows);
        let may = room.min(self.room.allowance(waiters)).min(spare);
        if may == 0 {
            self.room.wait(waiters);
            return StreamRoom::Blocked;
        }
        if capacity > 0 {
            return StreamRoom::Bytes(capacity.min(may).min(want));
        }
        // This arms `stream_writable_next`, and tells the peer what blocks us.
        match conn.stream_writable(stream, 1) {
            Ok(true) => StreamRoom::Bytes(1),
            Ok(false) => {
                RoomQueue::waits_for_quiche(waiters);
                StreamRoom::Blocked
            }
            Err(error) => StreamRoom::Stopped(flow_error(error)),
        }
    }

    /// Gives bytes to `stream` without copying them. They are sent after the tasks that are ready
    /// now have run. Returns the bytes for which there was no room.
    ///
    /// # Errors
    /// The peer's reason if it stopped the stream.
    pub(crate) fn write(
        &self,
        stream: u64,
        bytes: StreamBuf,
        fin: bool,
        waiters: &StreamWaiters,
    ) -> Result<Option<StreamBuf>, FlowError> {
        let result = self.write_unflushed(stream, bytes, fin, waiters);
        self.mark_dirty();
        self.unsent.count_write();
        if self.unsent.is_worth_a_flush()
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint.flush_early(self);
        }
        result
    }

    /// Gives bytes to `stream` as [`Lane::write`] does, but does not flush them: more bytes are to
    /// be sent with them, and the [`Lane::write`] of those sends all.
    ///
    /// # Errors
    /// The peer's reason if it stopped the stream.
    pub(crate) fn write_unflushed(
        &self,
        stream: u64,
        bytes: StreamBuf,
        fin: bool,
        waiters: &StreamWaiters,
    ) -> Result<Option<StreamBuf>, FlowError> {
        if !self.is_open() {
            return Err(FlowError::Internal);
        }
        // Only bytes that quiche takes are charged to the flow: the flow waits until charged bytes
        // are acknowledged, and must never wait for bytes that it has itself.
        let charged = bytes.charged_to(&waiters.holds);
        let result = self.conn.borrow_mut().stream_send_zc(stream, charged, fin);
        match result {
            Ok((sent, rest)) => {
                self.unsent.wrote(sent);
                self.room.took(waiters, sent);
                let rest = rest.filter(|rest| !rest.as_ref().is_empty());
                Ok(rest.map(|rest| rest.uncharged()))
            }
            Err(quiche::Error::Done) => Ok(Some(bytes)),
            Err(error) => Err(flow_error(error)),
        }
    }

    /// Sends a FIN on `stream`. Returns true if it was taken, false if the stream must become
    /// writable first.
    ///
    /// A FIN without data is not safe with quiche: it forgets the stream, with its FIN, once both
    /// directions are known to be complete and all *data* is acknowledged (cloudflare/quiche issue
    /// 2525). So the endpoint sends it before the next packet is processed, and a [`Finished`]
    /// message follows on the control stream in case it is lost.
    ///
    /// # Errors
    /// The peer's reason if it stopped the stream.
    pub(crate) fn finish(&self, stream: u64, waiters: &StreamWaiters) -> Result<bool, FlowError> {
        if !self.is_open() {
            return Err(FlowError::Internal);
        }
        let result = self.conn.borrow_mut().stream_send(stream, &[], true);
        match result {
            Ok(_) => {
                self.mark_dirty();
                if !self.bare_fin.replace(true)
                    && let Some(endpoint) = self.endpoint.upgrade()
                {
                    endpoint.flush_before_receiving();
                }
                self.announce(Finished {
                    stream_id: stream,
                    final_size: waiters.written.get(),
                });
                Ok(true)
            }
            Err(quiche::Error::Done) => {
                RoomQueue::waits_for_quiche(waiters);
                Ok(false)
            }
            Err(error) => Err(flow_error(error)),
        }
    }

    /// Repeats a FIN on the control stream after [`ANNOUNCE_AFTER`], together with others of that
    /// time. The peer rarely needs this.
    fn announce(&self, finished: Finished) {
        let first = {
            let mut pending = self.announcements.borrow_mut();
            pending.push(finished);
            pending.len() == 1
        };
        if first && let Some(lane) = self.this.upgrade() {
            crate::core::task::spawn(async move {
                crate::core::time::sleep(ANNOUNCE_AFTER).await;
                let pending = std::mem::take(&mut *lane.announcements.borrow_mut());
                for finished in pending {
                    lane.send_control(&Message::Finished(finished));
                }
            });
        }
    }

    /// Handles a FIN that the peer repeats on the control stream.
    pub(crate) fn announced(&self, finished: Finished) {
        if let Some(waiters) = self.waiters.borrow().get(&finished.stream_id) {
            waiters.announced.set(Some(finished.final_size));
            waiters.readable.set();
        }
    }

    /// Reads bytes of `stream` that have arrived.
    pub(crate) fn read(&self, stream: u64, into: &mut [u8], waiters: &StreamWaiters) -> StreamRead {
        if self.end.borrow().is_some() || self.conn.was_interrupted() {
            return StreamRead::Reset(FlowError::Internal);
        }
        let result = self.conn.borrow_mut().stream_recv(stream, into);
        match result {
            Ok((read, fin)) => {
                waiters.received.set(waiters.received.get() + read as u64);
                self.credit_read(read);
                StreamRead::Bytes(read, fin)
            }
            Err(quiche::Error::Done) if waiters.announced.get() == Some(waiters.received.get()) => {
                // The FIN itself was lost and will not be repeated.
                if let Some(endpoint) = self.endpoint.upgrade() {
                    endpoint.counters().fins_recovered.increment();
                }
                // If the FIN still comes, it must not look like a new stream.
                self.stop(stream, FlowError::NoError);
                StreamRead::Bytes(0, true)
            }
            Err(quiche::Error::Done) => self
                .reset_behind_fin(stream)
                .map_or(StreamRead::Blocked, StreamRead::Reset),
            Err(error) => StreamRead::Reset(flow_error(error)),
        }
    }

    /// Abandons the direction towards the peer: RESET_STREAM with `error`.
    pub(crate) fn reset(&self, stream: u64, error: FlowError) {
        if let Some(waiters) = self.waiters.borrow().get(&stream) {
            waiters.was_reset.set(true);
        }
        self.shutdown(stream, quiche::Shutdown::Write, error);
    }

    /// Abandons the direction from the peer: STOP_SENDING with `error`.
    pub(crate) fn stop(&self, stream: u64, error: FlowError) {
        self.shutdown(stream, quiche::Shutdown::Read, error);
    }

    fn shutdown(&self, stream: u64, direction: quiche::Shutdown, error: FlowError) {
        if self.is_open() {
            let is_ours = direction == quiche::Shutdown::Write;
            // `Done` means that the direction is over already.
            let done = self
                .conn
                .borrow_mut()
                .stream_shutdown(stream, direction, error.code());
            if done.is_ok() && is_ours {
                self.unsent.window_counted();
            }
            self.mark_dirty();
        }
    }

    /// Queues a control message on stream 0. What quiche does not take now follows when the stream
    /// is writable.
    ///
    /// A peer that does not read its control stream would make the backlog grow: above
    /// [`CONTROL_BACKLOG_BYTES_MAX`] the lane is closed.
    pub(crate) fn send_control(&self, message: &Message) {
        if !self.is_open() {
            return;
        }
        let too_much = {
            let mut backlog = self.control_backlog.borrow_mut();
            message.encode(&mut backlog);
            backlog.len() > CONTROL_BACKLOG_BYTES_MAX
        };
        if too_much {
            self.close(
                LaneError::ProtocolViolation,
                "the control stream is not read",
            );
            return;
        }
        self.flush_control();
    }

    /// Writes as much of the control backlog as the stream takes. Called again when stream 0
    /// becomes writable.
    pub(crate) fn flush_control(&self) {
        let mut backlog = self.control_backlog.borrow_mut();
        if backlog.is_empty() {
            return;
        }
        let result = {
            let mut conn = self.conn.borrow_mut();
            // The control stream goes before everything that flows have written. If this fails, so
            // does the next call.
            let _closing = conn.stream_priority(CONTROL_STREAM, URGENCY_FIRST, true);
            conn.stream_send(CONTROL_STREAM, &backlog, false)
        };
        match result {
            Ok(sent) => {
                backlog.drain(..sent);
                drop(backlog);
                self.mark_dirty();
            }
            Err(quiche::Error::Done) => {}
            Err(error) => {
                drop(backlog);
                tracing::debug!(lane = self.key, %error, "cannot write to the control stream");
                self.close(
                    LaneError::ProtocolViolation,
                    "the control stream was closed",
                );
            }
        }
    }

    // ---- datagrams ----

    /// Queues a datagram.
    ///
    /// # Errors
    /// The datagram is dropped in each case; the caller counts it.
    pub(crate) fn send_datagram(&self, datagram: Datagram) -> Result<(), DatagramRefused> {
        if !self.is_open() {
            return Err(DatagramRefused::Closed);
        }
        self.close_bundle(); // The datagrams in it are older.
        self.queue_datagram(datagram)
    }

    pub(super) fn datagram_queue_is_full(&self) -> bool {
        let queued = self.conn.borrow().dgram_send_queue_byte_size();
        queued >= DATAGRAM_QUEUE_BYTES_MAX
            || queued >= DATAGRAM_QUEUE_BYTES_MAX_FULL && self.must_wait_for_tls()
    }

    /// Gives quiche a datagram.
    pub(super) fn queue_datagram(&self, datagram: Datagram) -> Result<(), DatagramRefused> {
        if self.datagram_queue_is_full() {
            return Err(DatagramRefused::QueueFull);
        }
        let result = self.conn.borrow_mut().dgram_send_buf(datagram);
        match result {
            Ok(()) => {
                Tally::add(&self.datagrams.queued, 1);
                self.mark_dirty();
                Ok(())
            }
            Err(quiche::Error::Done) => Err(DatagramRefused::QueueFull),
            Err(quiche::Error::BufferTooShort) => Err(DatagramRefused::TooLarge),
            Err(_) => Err(DatagramRefused::Closed),
        }
    }

    /// Notes that datagrams were queued, which the peer must acknowledge.
    pub(crate) fn asked_by_datagram(&self, now: Instant) {
        if let Some(lane) = self.this.upgrade() {
            lane.asked(now);
        }
    }
}

/// Maps the error of a stream to that of its flow.
pub(super) fn flow_error(error: quiche::Error) -> FlowError {
    match error {
        quiche::Error::StreamReset(code) | quiche::Error::StreamStopped(code) => {
            FlowError::from_code(code)
        }
        _ => FlowError::Internal,
    }
}
