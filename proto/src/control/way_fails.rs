//! WayFails: most of what the server sends along the lane's way is lost.
//!
//! Which way a lane takes is the client's to choose, and it sees nothing of what does not arrive: a
//! network that lets a trickle of UDP pass looks alive to it.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// A server repeats it every few seconds for as long as it is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayFails {
    /// Packets in a hundred that were lost, of late.
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
