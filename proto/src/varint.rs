//! Variable-length integers of QUIC (RFC 9000 section 16): the two high bits of the first byte say
//! whether the number takes 1, 2, 4 or 8 bytes, big-endian.

use bytes::BufMut;

use crate::error::DecodeError;

/// The largest number that a varint holds, 2^62 − 1 (RFC 9000 section 16).
pub const MAX: u64 = (1 << 62) - 1;

/// The longest varint in bytes.
pub const BYTES_MAX: usize = 8;

/// The bytes that the shortest encoding of `value` takes.
///
/// # Panics
///
/// If `value` is larger than [`MAX`].
pub const fn size(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        0x4000_0000..=MAX => 8,
        _ => panic!("a varint holds at most 2^62 - 1"),
    }
}

/// Appends the shortest encoding of `value`.
///
/// # Panics
///
/// If `value` is larger than [`MAX`], or if `out` has no room for it.
pub fn put(out: &mut impl BufMut, value: u64) {
    match size(value) {
        1 => out.put_uint(value, 1),
        2 => out.put_uint(value | 0b01 << 14, 2),
        4 => out.put_uint(value | 0b10 << 30, 4),
        _ => out.put_u64(value | 0b11 << 62),
    }
}

/// Reads a varint from the front of `buf` and moves `buf` behind it. Longer encodings than needed
/// are valid (RFC 9000 section 16).
///
/// # Errors
///
/// [`DecodeError::Truncated`] if `buf` ends too early; `buf` is then unchanged.
pub fn get(buf: &mut &[u8]) -> Result<u64, DecodeError> {
    const TRUNCATED: DecodeError = DecodeError::Truncated { field: "varint" };
    let (&first, _) = buf.split_first().ok_or(TRUNCATED)?;
    let length = 1 << (first >> 6);
    let (bytes, rest) = buf.split_at_checked(length).ok_or(TRUNCATED)?;
    let value = bytes[1..]
        .iter()
        .fold(u64::from(first & 0x3f), |value, &byte| {
            value << 8 | u64::from(byte)
        });
    *buf = rest;
    Ok(value)
}
