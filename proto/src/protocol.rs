//! The transport protocol of a flow.

use std::fmt;

use crate::error::DecodeError;

/// The protocol between a visitor and the traffic address, and between a client and its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A TCP connection on a QUIC stream.
    Tcp,
    /// UDP packets in QUIC datagrams (RFC 9221).
    Udp,
}

impl Protocol {
    const TCP: u8 = 1;
    const UDP: u8 = 2;

    /// The byte on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Tcp => Self::TCP,
            Self::Udp => Self::UDP,
        }
    }

    /// The protocol for a byte on the wire.
    ///
    /// # Errors
    ///
    /// [`DecodeError::OutOfRange`] for a byte that stands for no protocol.
    pub fn from_code(code: u8) -> Result<Self, DecodeError> {
        match code {
            Self::TCP => Ok(Self::Tcp),
            Self::UDP => Ok(Self::Udp),
            _ => Err(DecodeError::OutOfRange {
                field: "protocol",
                value: u64::from(code),
                min: u64::from(Self::TCP),
                max: u64::from(Self::UDP),
            }),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
