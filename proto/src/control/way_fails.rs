//! WayFails: most of what the server sends along the lane's path is lost.
//!
//! The client chooses the path of a lane, and sees nothing of what does not arrive: to the client,
//! a network that lets a trickle of UDP pass looks alive.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// The path fails. A server repeats this every few seconds for as long as it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayFails {
    /// The percentage of packets that were lost lately.
    pub lost_percent: u64,
}

impl WayFails {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.lost_percent);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            lost_percent: wire::varint(buf, "percent of packets lost")?,
        })
    }
}
