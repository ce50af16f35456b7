//! The parts that every encoding consists of: bytes, numbers and texts, read from a slice that
//! shrinks from its front. Each reader names the field that it reads, so that an error can name it.

use bytes::BufMut;

use crate::error::DecodeError;
use crate::varint;

pub(crate) fn bytes<'a>(
    buf: &mut &'a [u8],
    length: usize,
    field: &'static str,
) -> Result<&'a [u8], DecodeError> {
    let (bytes, rest) = buf
        .split_at_checked(length)
        .ok_or(DecodeError::Truncated { field })?;
    *buf = rest;
    Ok(bytes)
}

pub(crate) fn array<const N: usize>(
    buf: &mut &[u8],
    field: &'static str,
) -> Result<[u8; N], DecodeError> {
    let (array, rest) = buf
        .split_first_chunk()
        .ok_or(DecodeError::Truncated { field })?;
    *buf = rest;
    Ok(*array)
}

pub(crate) fn byte(buf: &mut &[u8], field: &'static str) -> Result<u8, DecodeError> {
    array::<1>(buf, field).map(|[byte]| byte)
}

pub(crate) fn varint(buf: &mut &[u8], field: &'static str) -> Result<u64, DecodeError> {
    varint::get(buf).map_err(|_| DecodeError::Truncated { field })
}

/// Reads bytes behind their length, of which there may be at most `max`.
pub(crate) fn bounded_bytes<'a>(
    buf: &mut &'a [u8],
    field: &'static str,
    max: usize,
) -> Result<&'a [u8], DecodeError> {
    let length = varint(buf, field)?;
    match usize::try_from(length) {
        Ok(length) if length <= max => bytes(buf, length, field),
        _ => Err(DecodeError::TooLong {
            field,
            length,
            max: max as u64,
        }),
    }
}

/// Reads a text behind its length. Control characters are refused: texts of a peer end up in logs
/// and on terminals.
pub(crate) fn text<'a>(
    buf: &mut &'a [u8],
    field: &'static str,
    max: usize,
) -> Result<&'a str, DecodeError> {
    let bytes = bounded_bytes(buf, field, max)?;
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8 { field })?;
    if text.chars().any(char::is_control) {
        return Err(DecodeError::ControlCharacter { field });
    }
    Ok(text)
}

/// Appends bytes behind their length.
pub(crate) fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    varint::put(out, bytes.len() as u64);
    out.put_slice(bytes);
}
