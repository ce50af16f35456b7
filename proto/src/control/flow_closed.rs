//! FlowClosed: a UDP flow is over. A TCP flow ends by its stream instead.

use crate::error::{DecodeError, FlowError};
use crate::flow_id;
use crate::varint;
use crate::wire;

/// A UDP flow is over; datagrams of it that still arrive are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowClosed {
    /// The flow, at most [`FLOW_ID_MAX`](crate::FLOW_ID_MAX).
    pub flow_id: u64,
    /// The reason for which it ended.
    pub reason: FlowError,
}

impl FlowClosed {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        flow_id::assert_valid(self.flow_id);
        varint::put(out, self.flow_id);
        varint::put(out, self.reason.code());
    }

    pub(super) fn decode(buf: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            flow_id: flow_id::get(buf)?,
            reason: FlowError::from_code(wire::varint(buf, "flow closed reason")?),
        })
    }
}
