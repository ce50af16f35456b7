//! HandOvers: what a server had to hand over to a lane because the client has no lane on the core
//! where it arrived.
//!
//! A visitor is accepted by whichever core of the server the kernel chooses. If the client has no
//! lane there, the visitor is handed over to a core that has one, which only the server sees. By
//! these counts the client decides whether a further lane is worth its cost.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// Counts for one lane since it was registered. A server sends the first ones, all 0, as soon as
/// the lane is registered: by them a client knows that further ones will come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandOvers {
    /// Visitors whose flow was opened on this lane and who arrived on a core without one: TCP
    /// connections and UDP sources.
    pub visitors: u64,
    /// UDP packets of visitors that another core received and passed to this lane's core.
    pub datagrams: u64,
}

impl HandOvers {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.visitors);
        varint::put(out, self.datagrams);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            visitors: wire::varint(buf, "visitors handed over")?,
            datagrams: wire::varint(buf, "datagrams handed over")?,
        })
    }
}
