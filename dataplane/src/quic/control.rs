//! Reading the control stream of a lane: messages, deadlines and the lane's end as one sequence of
//! events.

use std::rc::Rc;
use std::time::Instant;

use qmux_proto::LaneError;
use qmux_proto::control::{Decoder, Message};

use super::lane::{CONTROL_STREAM, Lane, StreamRead, StreamWaiters};
use crate::core::log_limit::LogLimit;

/// Bytes read from the control stream at once. Messages are small: a heartbeat is 4 bytes.
const READ_BYTES: usize = 2_048;

thread_local! {
    /// Bounds the log lines about violations on this core.
    static VIOLATION_LOG: LogLimit = LogLimit::new(Instant::now());
}

/// What happened on the control stream.
#[derive(Debug)]
pub(crate) enum ControlEvent {
    /// The peer sent a message.
    Message(Message),
    /// The deadline given has passed.
    Deadline,
    /// The lane has ended, or was closed because the peer broke the protocol.
    Ended,
}

/// The reading side of a lane's control stream.
pub(crate) struct ControlReader {
    lane: Rc<Lane>,
    waiters: Rc<StreamWaiters>,
    decoder: Decoder,
}

impl ControlReader {
    /// Starts to read the lane's control stream.
    pub(crate) fn new(lane: Rc<Lane>) -> ControlReader {
        ControlReader {
            waiters: lane.attach(CONTROL_STREAM),
            lane,
            decoder: Decoder::new(),
        }
    }

    /// The next message, or the deadline, or the end of the lane.
    pub(crate) async fn next(&mut self, deadline: Instant) -> ControlEvent {
        loop {
            match self.decoder.next() {
                Ok(Some(message)) => return ControlEvent::Message(message),
                Ok(None) => {}
                Err(error) => return self.violation(&error.to_string()),
            }
            let mut bytes = [0; READ_BYTES];
            match self.lane.read(CONTROL_STREAM, &mut bytes, &self.waiters) {
                StreamRead::Bytes(read, fin) => {
                    if let Err(error) = self.decoder.feed(&bytes[..read]) {
                        return self.violation(&error.to_string());
                    }
                    if fin {
                        return self.violation("the control stream was finished");
                    }
                }
                StreamRead::Blocked => {
                    if !self.wait(deadline).await {
                        return ControlEvent::Deadline;
                    }
                }
                StreamRead::Reset(_) if self.lane.is_open() && self.lane.is_established() => {
                    return self.violation("the control stream was reset");
                }
                StreamRead::Reset(_) => return ControlEvent::Ended,
            }
            if !self.lane.is_open() {
                return ControlEvent::Ended;
            }
        }
    }

    /// Waits for data. Returns false if the deadline came first.
    async fn wait(&self, deadline: Instant) -> bool {
        if deadline <= Instant::now() {
            return false;
        }
        let sleep = crate::core::time::sleep_until(deadline);
        self.waiters.readable.cuts_short(sleep).await.is_none()
    }

    fn violation(&self, what: &str) -> ControlEvent {
        if self.lane.is_open() {
            // Anybody who completes a handshake can cause this line.
            if let Some(suppressed) = VIOLATION_LOG.with(|log| log.pass(Instant::now())) {
                tracing::warn!(
                    lane = self.lane.key(),
                    peer = self.lane.peer_addr().map(tracing::field::display),
                    what,
                    suppressed,
                    "protocol violation; lane closed"
                );
            }
            self.lane.close(LaneError::ProtocolViolation, what);
        }
        ControlEvent::Ended
    }
}

impl Drop for ControlReader {
    fn drop(&mut self) {
        self.lane.detach(CONTROL_STREAM);
    }
}
