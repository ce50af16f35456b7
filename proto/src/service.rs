//! Names of services, as they stand in control messages, Open headers and datagrams.

use bytes::BufMut;

use crate::error::DecodeError;
use crate::wire;

/// The longest name of a service in bytes of UTF-8. Long enough for a DNS-like name, short enough
/// that the first datagram of a flow still has room for a packet.
pub const SERVICE_NAME_BYTES_MAX: usize = 128;

/// Whether a name is allowed on the wire: at most [`SERVICE_NAME_BYTES_MAX`] bytes and no control
/// characters, because names are logged. The empty name is that of the service without a name.
pub fn is_valid_service_name(name: &str) -> bool {
    name.len() <= SERVICE_NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

pub(crate) fn get<'a>(buf: &mut &'a [u8]) -> Result<&'a str, DecodeError> {
    wire::text(buf, "service name", SERVICE_NAME_BYTES_MAX)
}

pub(crate) fn put(out: &mut impl BufMut, name: &str) {
    assert!(
        is_valid_service_name(name),
        "service name {name:?} cannot stand on the wire"
    );
    wire::put_bytes(out, name.as_bytes());
}
