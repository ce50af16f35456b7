//! Socket addresses: a byte that says the family (4 or 6), the IP address, the port, big-endian.
//!
//! The flow label and the scope id of an IPv6 address stay behind: they mean nothing on another host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BufMut;

use crate::error::DecodeError;
use crate::wire;

/// The longest encoding in bytes: family, IPv6 address, port.
pub(crate) const BYTES_MAX: usize = 1 + 16 + 2;

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

pub(crate) fn size(address: &SocketAddr) -> usize {
    if address.is_ipv4() {
        1 + 4 + 2
    } else {
        BYTES_MAX
    }
}

pub(crate) fn put(out: &mut impl BufMut, address: &SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.put_u8(FAMILY_V4);
            out.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.put_u8(FAMILY_V6);
            out.put_slice(&ip.octets());
        }
    }
    out.put_u16(address.port());
}

pub(crate) fn get(buf: &mut &[u8], field: &'static str) -> Result<SocketAddr, DecodeError> {
    let ip: IpAddr = match wire::byte(buf, field)? {
        FAMILY_V4 => Ipv4Addr::from(wire::array::<4>(buf, field)?).into(),
        FAMILY_V6 => Ipv6Addr::from(wire::array::<16>(buf, field)?).into(),
        family => return Err(DecodeError::AddressFamily { field, family }),
    };
    let port = u16::from_be_bytes(wire::array(buf, field)?);
    Ok(SocketAddr::new(ip, port))
}
