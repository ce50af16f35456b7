//! NoMoreFlows: the answer to a client's GoAway.
//!
//! A client that stops must not close its lane while a flow is on its way to it: the visitor would
//! be lost, and nobody could tell whether the service has seen it. The count says what is still to
//! come.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// The server has heard GoAway and opens no further TCP flow on this lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMoreFlows {
    /// How many TCP flows it has opened on this lane.
    pub flows_opened: u64,
}

impl NoMoreFlows {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        varint::put(out, self.flows_opened);
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            flows_opened: wire::varint(buf, "flows opened")?,
        })
    }
}
