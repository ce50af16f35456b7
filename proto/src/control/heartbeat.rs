//! Heartbeat: a sign of life on the control stream.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// A sign of life. It proves that the peer's program works, where QUIC's own keep-alive proves only
/// that its connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The number of this heartbeat, counted from 1 by each side for itself.
    pub sequence: u64,
    /// The highest sequence number heard from the peer; 0 if none was heard.
    pub acknowledged: u64,
}

impl Heartbeat {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.sequence);
        varint::put(out, self.acknowledged);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            sequence: wire::varint(buf, "heartbeat sequence")?,
            acknowledged: wire::varint(buf, "heartbeat acknowledged")?,
        })
    }
}
