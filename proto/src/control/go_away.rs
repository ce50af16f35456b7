//! GoAway: the lane takes no new flows and will end.

use crate::code::code_enum;
use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// The sender takes no new flows on this lane. Open flows may finish until the drain timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoAway {
    /// The reason for which the lane will end.
    pub reason: GoAwayReason,
    /// How long open flows may go on, in milliseconds.
    pub drain_timeout_ms: u64,
}

code_enum! {
    /// The reason for which a lane will end.
    pub enum GoAwayReason {
        /// The program stops.
        Shutdown = 0 => "shutdown",
        /// The lane is not needed any more, because another one takes its place.
        Replaced = 1 => "replaced by another lane",
        /// The sender is overloaded.
        Overloaded = 2 => "overloaded",
        /// The peer may not serve here any more: its certificate has expired or was revoked, or its
        /// entry is gone.
        Withdrawn = 3 => "this client may not serve there any more, or must prove anew who it is",
        _ => Other(u64), "going away with code {}",
    }
}

impl GoAway {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.reason.code());
        varint::put(out, self.drain_timeout_ms);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            reason: GoAwayReason::from_code(wire::varint(buf, "go away reason")?),
            drain_timeout_ms: wire::varint(buf, "drain timeout")?,
        })
    }
}
