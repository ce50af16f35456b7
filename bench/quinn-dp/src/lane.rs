//! A lane: one registered QUIC connection, and what both roles keep of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qmux_proto::control::{FlowClosed, GoAway, GoAwayReason, Message};
use qmux_proto::{FlowError, LaneError};
use quinn::{Connection, ConnectionError, VarInt};
use tokio::sync::mpsc;
use tracing::{debug, info};

use crate::flows::FlowCount;
use crate::receiver::Receivers;

/// Control messages that may wait for the peer to read its control stream.
const CONTROL_BACKLOG_MAX: usize = 4_096;

/// The connection of a lane, the way to its control stream, its flows.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) connection: Connection,
    control: mpsc::Sender<Message>,
    /// The highest heartbeat heard from the peer.
    heard: AtomicU64,
    pub(crate) flows: Arc<FlowCount>,
    pub(crate) receivers: Arc<Receivers>,
}

impl Lane {
    /// The lane, and the messages that its control task is to send.
    pub(crate) fn new(connection: Connection) -> (Self, mpsc::Receiver<Message>) {
        let (control, messages) = mpsc::channel(CONTROL_BACKLOG_MAX);
        let lane = Self {
            connection,
            control,
            heard: AtomicU64::new(0),
            flows: Arc::default(),
            receivers: Arc::default(),
        };
        (lane, messages)
    }

    /// Sends a control message. A peer that does not read its control stream loses the lane.
    pub(crate) fn send(&self, message: Message) {
        match self.control.try_send(message) {
            // Closed: the lane has ended, and with it everything that the message is about.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.close(
                    LaneError::ProtocolViolation,
                    "the control stream is not read",
                );
            }
        }
    }

    pub(crate) fn send_flow_closed(&self, flow_id: u64, reason: FlowError) {
        self.send(Message::FlowClosed(FlowClosed { flow_id, reason }));
    }

    pub(crate) fn send_go_away(&self, drain_timeout: Duration) {
        let drain_timeout_ms = u64::try_from(drain_timeout.as_millis()).unwrap_or(u64::MAX);
        self.send(Message::GoAway(GoAway {
            reason: GoAwayReason::Shutdown,
            drain_timeout_ms,
        }));
    }

    pub(crate) fn hear(&self, sequence: u64) {
        self.heard.fetch_max(sequence, Ordering::Relaxed);
    }

    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self, error: LaneError, text: &str) {
        close(&self.connection, error, text);
    }
}

/// Closes a connection with a code of the protocol.
pub(crate) fn close(connection: &Connection, error: LaneError, text: &str) {
    debug!(peer = %connection.remote_address(), %error, text, "closing");
    let code = VarInt::from_u64(error.code()).unwrap_or(VarInt::MAX);
    connection.close(code, text.as_bytes());
}

/// What a measurement should know of a connection that ends.
pub(crate) fn log_path(connection: &Connection) {
    let path = connection.stats().path;
    info!(
        mtu = path.current_mtu,
        rtt = ?path.rtt,
        cwnd = path.cwnd,
        sent = path.sent_packets,
        lost = path.lost_packets,
        congestion_events = path.congestion_events,
        black_holes = path.black_holes_detected,
        "path of the lane"
    );
}

/// Why a connection ended, in words: codes of the protocol have names.
pub(crate) fn describe_end(end: &ConnectionError) -> String {
    match end {
        ConnectionError::ApplicationClosed(close) => {
            let error = LaneError::from_code(close.error_code.into_inner());
            let text = String::from_utf8_lossy(&close.reason);
            if text.is_empty() {
                format!("closed by the peer: {error}")
            } else {
                format!("closed by the peer: {error}: {}", text.escape_debug())
            }
        }
        ConnectionError::LocallyClosed => "closed by us".to_owned(),
        ConnectionError::TimedOut => "nothing heard within max_idle_timeout".to_owned(),
        other => other.to_string(),
    }
}
