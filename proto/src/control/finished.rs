//! Finished: the final size of a TCP flow's stream in the sender's direction.
//!
//! It repeats what the stream's FIN says. A QUIC stack may forget a FIN without data when it is
//! lost after all data was acknowledged (RFC 9000 section 13.3 asks for it to be repeated); the
//! control stream does not. A receiver that has read `final_size` bytes treats this message as the
//! FIN.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// The sender will send no more than `final_size` bytes on `stream_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The QUIC stream (RFC 9000 section 2.1).
    pub stream_id: u64,
    /// The length of the stream in bytes in the sender's direction, with the Open header.
    pub final_size: u64,
}

impl Finished {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.stream_id);
        varint::put(out, self.final_size);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            stream_id: wire::varint(buf, "stream id")?,
            final_size: wire::varint(buf, "final size")?,
        })
    }
}
