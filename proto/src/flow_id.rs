//! The range of flow ids.

use crate::error::DecodeError;
use crate::varint;
use crate::wire;

/// The largest flow id, 2^60 − 1: two bits of the 62-bit varint in front of a datagram say its
/// kind.
pub const FLOW_ID_MAX: u64 = (1 << 60) - 1;

const _: () = assert!((FLOW_ID_MAX << 2) | 0b11 == varint::MAX);

/// Reads a flow id and checks its range.
pub(crate) fn get(buf: &mut &[u8]) -> Result<u64, DecodeError> {
    let value = wire::varint(buf, "flow id")?;
    if value > FLOW_ID_MAX {
        return Err(DecodeError::OutOfRange {
            field: "flow id",
            value,
            min: 0,
            max: FLOW_ID_MAX,
        });
    }
    Ok(value)
}

/// Asserts that our own program made a flow id that fits.
pub(crate) fn assert_valid(flow_id: u64) {
    assert!(
        flow_id <= FLOW_ID_MAX,
        "flow id {flow_id} is larger than {FLOW_ID_MAX}"
    );
}
