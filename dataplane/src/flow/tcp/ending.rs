//! What ends a flow or one of its directions, whatever its pumps wait for: a reset or a stop by the
//! peer, the end of the lane, an error of the socket, an order to end, a socket that takes nothing
//! for too long.

use std::io;
use std::task::Context;

use qmux_proto::FlowError;

use super::super::watch::Waits;
use super::{Flow, TcpFlow};
use crate::quic::lane::StreamFront;

impl Flow {
    /// Ends both directions: the stream is reset and stopped, and the socket will be reset.
    pub(super) fn abort(&self, error: FlowError) {
        if self.aborted.get().is_none() {
            self.aborted.set(Some(error));
            let TcpFlow { lane, stream, .. } = &self.ends;
            lane.reset(*stream, error);
            lane.stop(*stream, error);
        }
    }

    /// Ends the inward direction, because the peer's socket does not take what ours sends. What the
    /// peer has sent still comes through.
    pub(super) fn stop_inward(&self, error: FlowError) {
        let TcpFlow { lane, stream, .. } = &self.ends;
        if lane.is_open() {
            self.stopped.set(Some(error));
            self.inward().set(Waits::Over);
            lane.reset(*stream, self.ends.reset_reason);
        } else {
            self.abort(error);
        }
    }

    /// Ends the outward direction, because our socket takes no more although the stream has not
    /// ended.
    pub(super) fn cut_outward(&self) {
        let TcpFlow {
            lane,
            stream,
            watch,
            ..
        } = &self.ends;
        watch.socket_took(); // Nothing waits for it any more.
        self.cut.set(true);
        self.outward().set(Waits::Over);
        lane.stop(*stream, self.ends.reset_reason);
    }

    /// Handles a reset of the socket. EPIPE means that its peer had sent a FIN before (tcp_reset()
    /// in the kernel), so the bytes that are still to be read are complete and are carried. That is
    /// how a program ends that has no use for an answer.
    fn socket_failed(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe && self.goes_on(self.inward()) {
            if self.goes_on(self.outward()) {
                self.cut_outward();
            }
        } else {
            self.abort(self.ends.reset_reason);
        }
    }

    /// Checks for orders, and for what wakes nobody, when the core's table of flows says so.
    pub(super) fn look_around(&self, cx: &mut Context<'_>) {
        let TcpFlow {
            socket,
            waiters,
            watch,
            ..
        } = &self.ends;
        watch.attend(cx);
        if let Some(reason) = watch.told() {
            self.abort(reason);
        }
        let Some(step) = watch.take_look() else {
            return;
        };
        socket.keep_alive();
        // A pump that waits for the socket's bytes finds an error by itself, behind those bytes.
        if self.inward().get() != Waits::Socket
            && let Some(error) = socket.take_error()
        {
            self.socket_failed(&error);
        }
        if watch.is_stalled() && watch.has_stalled(step, socket.untaken_bytes()) {
            self.stalled.set(true);
            return self.abort(FlowError::Stalled);
        }
        // Whoever waits for these events, a pump or `hear_peer`, asks the stream again.
        waiters.readable.set();
        waiters.writable.set();
    }

    /// Handles what the peer does to the stream while a pump waits for the socket, or for its
    /// bandwidth; a pump that waits for the stream finds it out by itself. No wake-up is lost for
    /// the pumps, which try the stream before they wait for it.
    pub(super) fn hear_peer(&self, cx: &mut Context<'_>) {
        let TcpFlow {
            lane,
            stream,
            waiters,
            ..
        } = &self.ends;
        while self.aborted.get().is_none()
            && self.outward().get().is_apart_from_the_stream()
            && waiters.readable.poll(cx).is_ready()
        {
            if self.fin_read.get() {
                if lane.end().is_some() {
                    self.abort(FlowError::Internal);
                }
                continue;
            }
            match lane.front(*stream) {
                StreamFront::Open => {}
                StreamFront::Fin => self.fin_read.set(true),
                StreamFront::Reset(error) => self.abort(error),
            }
        }
        while self.aborted.get().is_none()
            && self.inward().get().is_apart_from_the_stream()
            && waiters.writable.poll(cx).is_ready()
        {
            if let Some(error) = lane.stopped(*stream) {
                self.stop_inward(error);
            }
        }
    }
}
