//! The kind of a completed handshake: full or resumed, and what became of early data.

use super::lane::Connection;
use crate::core::counters::CoreCounters;

/// The fate of early data (0-RTT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EarlyData {
    /// No early data was offered.
    None,
    /// The server accepted it.
    Accepted,
    /// The server did not accept it; its content was sent again after the handshake.
    Rejected,
}

impl std::fmt::Display for EarlyData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EarlyData::None => "none",
            EarlyData::Accepted => "accepted",
            EarlyData::Rejected => "rejected",
        })
    }
}

/// The kind of a completed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// Whether an earlier session was resumed, so that nobody showed a certificate.
    pub(crate) resumed: bool,
    /// The fate of early data.
    pub(crate) early_data: EarlyData,
}

/// BoringSSL's `ssl_early_data_reason_t` (`ssl.h`).
mod reason {
    pub(super) const ACCEPTED: u32 = 2;
    pub(super) const PEER_DECLINED: u32 = 4;
    pub(super) const SESSION_NOT_RESUMED: u32 = 6;
    pub(super) const HELLO_RETRY_REQUEST: u32 = 8;
    pub(super) const ALPN_MISMATCH: u32 = 9;
    pub(super) const TICKET_AGE_SKEW: u32 = 12;
    pub(super) const QUIC_PARAMETER_MISMATCH: u32 = 13;
}

impl Handshake {
    /// The kind of the handshake of a connection on which it is complete.
    pub(super) fn of(conn: &Connection) -> Handshake {
        let early_data = match (conn.early_data_reason(), conn.is_server()) {
            (reason::ACCEPTED, _) => EarlyData::Accepted,
            // A client knows whether it has sent any, and sets these reasons only then. A server
            // cannot tell for a session that it does not resume.
            (reason::PEER_DECLINED | reason::SESSION_NOT_RESUMED, false)
            | (
                reason::HELLO_RETRY_REQUEST
                | reason::ALPN_MISMATCH
                | reason::TICKET_AGE_SKEW
                | reason::QUIC_PARAMETER_MISMATCH,
                _,
            ) => EarlyData::Rejected,
            _ => EarlyData::None,
        };
        Handshake {
            resumed: conn.is_resumed(),
            early_data,
        }
    }

    /// Counts the handshake, once per lane.
    pub(super) fn count(self, counters: &CoreCounters) {
        if self.resumed {
            counters.handshakes_resumed.increment();
        } else {
            counters.handshakes_full.increment();
        }
        match self.early_data {
            EarlyData::None => {}
            EarlyData::Accepted => counters.early_data_accepted.increment(),
            EarlyData::Rejected => counters.early_data_rejected.increment(),
        }
    }
}
