//! Socket addresses: a byte for the family (4 or 6), the IP address, and the port, big-endian.
//!
//! Where an address may be followed by a second one, a bit of its family says whether it is.
//!
//! The flow label and the scope id of an IPv6 address are not sent, because they mean nothing on
//! another host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BufMut;

use crate::error::DecodeError;
use crate::wire;

/// The longest encoding in bytes: family, IPv6 address, port.
pub(crate) const BYTES_MAX: usize = 1 + 16 + 2;

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;
/// With this bit in its family, an address is followed by another one.
const FOLLOWED: u8 = 1 << 4;

pub(crate) fn size(address: &SocketAddr) -> usize {
    if address.is_ipv4() {
        1 + 4 + 2
    } else {
        BYTES_MAX
    }
}

pub(crate) fn put(out: &mut impl BufMut, address: &SocketAddr) {
    put_marked(out, address, 0);
}

/// Appends an address and, if there is one, the address that follows it.
pub(crate) fn put_pair(out: &mut impl BufMut, address: &SocketAddr, then: Option<&SocketAddr>) {
    put_marked(out, address, if then.is_some() { FOLLOWED } else { 0 });
    if let Some(then) = then {
        put(out, then);
    }
}

fn put_marked(out: &mut impl BufMut, address: &SocketAddr, mark: u8) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(FAMILY_V4 | mark);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(FAMILY_V6 | mark);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(address.port());
}

pub(crate) fn get(buf: &mut &[u8], field: &'static str) -> Result<SocketAddr, DecodeError> {
    let family = wire::byte(buf, field)?;
    get_of_family(buf, family, field)
}

/// Reads an address and the one that follows it, if one does.
pub(crate) fn get_pair(
    buf: &mut &[u8],
    field: &'static str,
    then_field: &'static str,
) -> Result<(SocketAddr, Option<SocketAddr>), DecodeError> {
    let family = wire::byte(buf, field)?;
    let address = get_of_family(buf, family & !FOLLOWED, field)?;
    let is_followed = family & FOLLOWED != 0;
    let then = is_followed.then(|| get(buf, then_field)).transpose()?;
    Ok((address, then))
}

fn get_of_family(
    buf: &mut &[u8],
    family: u8,
    field: &'static str,
) -> Result<SocketAddr, DecodeError> {
    let ip: IpAddr = match family {
        FAMILY_V4 => Ipv4Addr::from(wire::array::<4>(buf, field)?).into(),
        FAMILY_V6 => Ipv6Addr::from(wire::array::<16>(buf, field)?).into(),
        family => return Err(DecodeError::AddressFamily { field, family }),
    };
    let port = u16::from_be_bytes(wire::array(buf, field)?);
    Ok(SocketAddr::new(ip, port))
}
