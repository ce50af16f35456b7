//! Errors in the bytes of a peer that a decoder finds.

use thiserror::Error;

/// The bytes of a peer break the wire format. The lane that carried them ends with
/// [`LaneError::ProtocolViolation`](super::LaneError::ProtocolViolation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ends inside a field.
    #[error("{field}: the input ends before the field does")]
    Truncated {
        /// The field that is cut off.
        field: &'static str,
    },
    /// A length is larger than its limit.
    #[error("{field}: {length} bytes are too long, at most {max} are allowed")]
    TooLong {
        /// The field with the length.
        field: &'static str,
        /// The length that the peer stated, in bytes (or in items, for a list).
        length: u64,
        /// The largest length allowed.
        max: u64,
    },
    /// A number is outside its range.
    #[error("{field}: {value} is out of range, allowed are {min} to {max}")]
    OutOfRange {
        /// The field with the number.
        field: &'static str,
        /// The number that the peer sent.
        value: u64,
        /// The smallest number allowed.
        min: u64,
        /// The largest number allowed.
        max: u64,
    },
    /// A text is not valid UTF-8.
    #[error("{field}: the text is not valid UTF-8")]
    NotUtf8 {
        /// The field with the text.
        field: &'static str,
    },
    /// A text holds a control character.
    #[error("{field}: the text holds a control character, only printable text is allowed")]
    ControlCharacter {
        /// The field with the text.
        field: &'static str,
    },
    /// An address is neither IPv4 nor IPv6.
    #[error("{field}: {family} is no address family, allowed are 4 and 6")]
    AddressFamily {
        /// The field with the address.
        field: &'static str,
        /// The family that the peer stated.
        family: u8,
    },
}
