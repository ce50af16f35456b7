//! The control stream of a lane: registration first, then heartbeats and news of flows until the
//! lane ends.

use std::time::Duration;

use bytes::Bytes;
use qmux_proto::LaneError;
use qmux_proto::control::{Decoder, FEED_BYTES_MAX, Heartbeat, Message};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::lane::{self, Lane};

/// The interval at which to give signs of life, and how long to wait for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) heartbeat_interval: Duration,
    pub(crate) health_timeout: Duration,
}

/// Why the peer's messages came to an end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the peer broke the wire format: {0}")]
    Decode(#[from] qmux_proto::DecodeError),
    #[error("the peer ended its control stream")]
    Ended,
    #[error("{}", lane::describe_end(.0))]
    LaneEnded(quinn::ConnectionError),
    #[error("nothing heard within the time allowed")]
    Silent,
    #[error("unexpected message: {0}")]
    Unexpected(&'static str),
}

impl ControlError {
    /// What the peer is told.
    pub(crate) fn lane_error(&self) -> LaneError {
        match self {
            Self::Silent => LaneError::HealthTimeout,
            Self::LaneEnded(_) => LaneError::Shutdown,
            Self::Decode(_) | Self::Ended | Self::Unexpected(_) => LaneError::ProtocolViolation,
        }
    }
}

impl From<ReadError> for ControlError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(end) => Self::LaneEnded(end),
            _ => Self::Ended,
        }
    }
}

impl From<WriteError> for ControlError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(end) => Self::LaneEnded(end),
            _ => Self::Ended,
        }
    }
}

/// Reads the peer's messages.
pub(crate) struct ControlReader {
    stream: RecvStream,
    decoder: Decoder,
}

impl ControlReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }

    /// The next message, waited for at most for `limit`. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Message, ControlError> {
        loop {
            if let Some(message) = self.decoder.next()? {
                return Ok(message);
            }
            let chunk = timeout(limit, self.stream.read_chunk(FEED_BYTES_MAX, true))
                .await
                .map_err(|_| ControlError::Silent)??
                .ok_or(ControlError::Ended)?;
            self.decoder.feed(&chunk.bytes)?;
        }
    }
}

/// Writes one message, before the lane has a task for it.
pub(crate) async fn write(stream: &mut SendStream, message: &Message) -> Result<(), ControlError> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    Ok(stream.write_chunk(Bytes::from(bytes)).await?)
}

/// Sends the messages of a lane, and its heartbeats, until the lane ends.
pub(crate) async fn write_messages(
    lane: &Lane,
    mut stream: SendStream,
    mut messages: mpsc::Receiver<Message>,
    heartbeat_interval: Duration,
) -> Result<(), ControlError> {
    let mut beats = interval_at(Instant::now() + heartbeat_interval, heartbeat_interval);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            message = messages.recv() => match message {
                Some(message) => message,
                None => return Ok(()),
            },
            _ = beats.tick() => {
                sequence += 1;
                Message::Heartbeat(Heartbeat { sequence, acknowledged: lane.heard() })
            }
        };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        while let Ok(message) = messages.try_recv() {
            message.encode(&mut bytes);
        }
        stream.write_chunk(Bytes::from(bytes)).await?;
    }
}
