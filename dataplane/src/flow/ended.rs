//! The end of a TCP flow, and what the flow has carried.

use qmux_proto::FlowError;

/// How a TCP flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpFlowEnd {
    /// Both directions ended with a FIN.
    Completed,
    /// Reset, by one of the sides and for this reason.
    Reset(FlowError),
    /// Reset by us, because our socket took nothing for the stall timeout.
    Stalled,
}

impl std::fmt::Display for TcpFlowEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TcpFlowEnd::Completed => f.write_str("completed"),
            TcpFlowEnd::Reset(reason) => write!(f, "reset: {reason}"),
            TcpFlowEnd::Stalled => f.write_str("reset: stalled"),
        }
    }
}

/// A TCP flow that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// How it ended.
    pub(crate) how: TcpFlowEnd,
    /// Bytes that were read from its socket.
    pub(crate) bytes_in: u64,
    /// Bytes that were written to its socket.
    pub(crate) bytes_out: u64,
    /// Whether the socket had one message and closed behind it, before the other end did.
    pub(crate) closed_behind_first: bool,
}
