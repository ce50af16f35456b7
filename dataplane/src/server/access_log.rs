//! The access log: one line of JSON for each flow that has ended, TCP and UDP.
//!
//! A line is put into a queue that never waits ([`LogQueue`]). The process decides which thread
//! writes the queue and where to. While the log is off, the end of a flow costs one look at a flag.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use qmux_proto::{FlowError, Protocol};
use serde::Serialize;

use crate::core::log_queue::LogQueue;

/// Bytes that most lines fit in.
const LINE_BYTES: usize = 256;

/// How a flow ended, in the words of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The flow ended well: both directions saw a FIN, or the client has closed its UDP flow.
    Closed,
    /// The visitor has reset its connection.
    VisitorReset,
    /// The service has reset its connection.
    ServiceReset,
    /// The visitor or the service took nothing for the stall timeout, or memory was short.
    Stalled,
    /// No byte moved for the idle timeout; or, of a UDP flow, no datagram came for the session
    /// timeout.
    Idle,
    /// A UDP flow had to make room for another one.
    Evicted,
    /// The visitor's UDP flow goes on as another one, through another lane.
    Moved,
    /// The server or the client stops, and the time to drain is over.
    Drained,
    /// The lane that carried the flow has ended, or its client does not answer.
    LaneLost,
    /// No client's service took the flow; the reason is that of the last client that was asked.
    Refused(FlowError),
    /// A fault of one of the programs.
    Failed,
}

impl End {
    /// The end that the code of a flow's end stands for.
    pub(crate) fn of(reason: FlowError) -> End {
        match reason {
            FlowError::NoError => End::Closed,
            FlowError::VisitorReset => End::VisitorReset,
            FlowError::ServiceReset => End::ServiceReset,
            FlowError::Stalled => End::Stalled,
            FlowError::Expired => End::Idle,
            FlowError::Draining => End::Drained,
            FlowError::DialRefused
            | FlowError::DialTimeout
            | FlowError::DialFailed
            | FlowError::NoClient
            | FlowError::LimitReached => End::Refused(reason),
            FlowError::Internal
            | FlowError::UnknownFlow
            | FlowError::ProtocolViolation
            | FlowError::Unknown(_) => End::Failed,
        }
    }

    /// Corrects the end of a flow whose lane has ended: such a flow was ended by the loss of the
    /// lane, and by no code of the peer's.
    pub(crate) fn with_lane(self, lane_is_open: bool, draining: bool) -> End {
        match self {
            End::Failed if !lane_is_open && draining => End::Drained,
            End::Failed if !lane_is_open => End::LaneLost,
            end => end,
        }
    }
}

impl Serialize for End {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let words = match self {
            End::Closed => "closed",
            End::VisitorReset => "visitor reset",
            End::ServiceReset => "service reset",
            End::Stalled => "stalled",
            End::Idle => "idle",
            End::Evicted => "evicted",
            End::Moved => "moved",
            End::Drained => "drained",
            End::LaneLost => "lane lost",
            End::Refused(reason) => {
                return serializer.collect_str(&format_args!("refused: {reason}"));
            }
            End::Failed => "failed",
        };
        serializer.serialize_str(words)
    }
}

/// A flow that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FinishedFlow<'a> {
    /// The name of the flow's service; empty for the service of a listener.
    pub(crate) service: &'a str,
    /// The client that served the flow last.
    pub(crate) client: &'a str,
    /// The address of the visitor.
    pub(crate) visitor: SocketAddr,
    /// The protocol that the visitor speaks.
    pub(crate) protocol: Protocol,
    /// Payload bytes from the visitor.
    pub(crate) bytes_in: u64,
    /// Payload bytes to the visitor.
    pub(crate) bytes_out: u64,
    /// Time since the visitor was accepted.
    pub(crate) lasted: Duration,
    /// How the flow ended.
    pub(crate) end: End,
}

/// A line as it is written, in the order of its fields.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    service: &'a str,
    client: &'a str,
    visitor: SocketAddr,
    protocol: &'static str,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: u64,
    end: End,
}

impl FinishedFlow<'_> {
    /// The line of a flow that has ended at `now`, with its line feed.
    fn line(&self, now: SystemTime) -> Vec<u8> {
        let line = Line {
            time: humantime::format_rfc3339_millis(now).to_string(),
            service: self.service,
            client: self.client,
            visitor: self.visitor,
            protocol: match self.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            },
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration_ms: u64::try_from(self.lasted.as_millis()).unwrap_or(u64::MAX),
            end: self.end,
        };
        let mut text = Vec::with_capacity(LINE_BYTES);
        // Texts and numbers, written to memory: nothing of this can fail.
        let _written = serde_json::to_writer(&mut text, &line);
        text.push(b'\n');
        text
    }
}

/// The access log of the process.
#[derive(Debug)]
pub(crate) struct AccessLog {
    is_on: AtomicBool,
    queue: LogQueue,
}

impl AccessLog {
    /// An access log that drops every line until it is switched on.
    pub(crate) fn off() -> AccessLog {
        AccessLog {
            is_on: AtomicBool::new(false),
            queue: LogQueue::new(),
        }
    }

    /// Switches the log on or off.
    pub(crate) fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Release);
    }

    /// Whether the log is on.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// The queue in which lines wait to be written.
    pub(crate) fn queue(&self) -> &LogQueue {
        &self.queue
    }

    /// Writes the line of a flow that has ended. It never waits: a line that the queue has no room
    /// for is dropped and counted.
    pub(crate) fn finished(&self, flow: &FinishedFlow<'_>) {
        if self.is_on() {
            self.queue.push(&flow.line(SystemTime::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> FinishedFlow<'static> {
        FinishedFlow {
            service: "web",
            client: "nas",
            visitor: "192.0.2.7:40000".parse().expect("literal"),
            protocol: Protocol::Tcp,
            bytes_in: 78,
            bytes_out: 1 << 40,
            lasted: Duration::from_micros(1_234_567),
            end: End::Closed,
        }
    }

    fn line(flow: &FinishedFlow<'_>) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_380_208_123);
        String::from_utf8(flow.line(now)).expect("text")
    }

    #[test]
    fn a_line_has_its_fields_in_their_order_and_ends_with_one_line_feed() {
        assert_eq!(
            line(&flow()),
            "{\"time\":\"2025-11-29T01:36:48.123Z\",\"service\":\"web\",\"client\":\"nas\",\
             \"visitor\":\"192.0.2.7:40000\",\"protocol\":\"tcp\",\"bytes_in\":78,\
             \"bytes_out\":1099511627776,\"duration_ms\":1234,\"end\":\"closed\"}\n"
        );
    }

    #[test]
    fn whatever_a_client_calls_itself_stays_within_its_field_of_its_line() {
        let name = "\"}\n{\"end\":\"closed\" \u{0} \u{2028} ü";
        let text = line(&FinishedFlow {
            client: name,
            ..flow()
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read["client"], name);
    }

    #[test]
    fn every_code_has_its_words_and_a_lane_that_ended_is_told_from_a_fault() {
        let words = |end: End| serde_json::to_value(end).expect("text");
        for reason in FlowError::NAMED {
            let end = End::of(*reason);
            let is_fault = [
                FlowError::Internal,
                FlowError::UnknownFlow,
                FlowError::ProtocolViolation,
            ]
            .contains(reason);
            assert_eq!(words(end) == "failed", is_fault, "{reason}");
        }
        assert_eq!(
            words(End::of(FlowError::DialRefused)),
            "refused: the service refused the connection"
        );
        let internal = End::of(FlowError::Internal);
        assert_eq!(words(internal.with_lane(false, false)), "lane lost");
        assert_eq!(words(internal.with_lane(false, true)), "drained");
        assert_eq!(words(internal.with_lane(true, true)), "failed");
        let reset = End::of(FlowError::VisitorReset);
        assert_eq!(words(reset.with_lane(false, true)), "visitor reset");
    }

    #[test]
    fn a_log_that_is_off_takes_nothing() {
        let log = AccessLog::off();
        log.finished(&flow());
        log.queue().flush(Duration::ZERO);
        assert_eq!(log.queue().dropped(), 0);
        assert!(log.queue().is_empty());
        log.switch(true);
        log.finished(&flow());
        assert!(!log.queue().is_empty());
    }
}
