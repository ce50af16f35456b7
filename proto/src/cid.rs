//! Connection ids that a server issues: one byte with the index of the core, then random bytes.
//!
//! The kernel reads that first byte to choose the socket of a packet, and with it the core: a
//! server attaches a classic BPF program (SO_ATTACH_REUSEPORT_CBPF) to its group of sockets. Where
//! the byte stands follows from RFC 8999, which holds for every version of QUIC:
//!
//! - long header (bit 0x80 of byte 0 is set; section 5.1): byte 0, 4 bytes version, 1 byte length
//!   of the destination connection id, then the id, whose first byte is byte 6;
//! - short header (section 5.2): byte 0, then the id, whose first byte is byte 1.
//!
//! In the first packets of a connection the id is the client's choice, so a client can aim a lane
//! at a core; afterwards it is an id of the server. [`core_of_packet`] does what the program does.

/// The length in bytes of the connection ids that a server issues: the core and 88 random bits, too
/// many to guess. RFC 9000 section 17.2 allows up to 20.
pub const CID_LEN: usize = 12;

/// The random bytes of a connection id.
pub const CID_RANDOM_LEN: usize = CID_LEN - 1;

/// The offset of the destination connection id in a packet with a long header (RFC 8999 section
/// 5.1).
pub const LONG_HEADER_DCID_OFFSET: usize = 6;

/// The offset of the destination connection id in a packet with a short header (RFC 8999 section
/// 5.2).
pub const SHORT_HEADER_DCID_OFFSET: usize = 1;

/// The bit of byte 0 that tells a long header (RFC 8999 section 5).
pub const LONG_HEADER_BIT: u8 = 0x80;

/// A connection id that starts with the index of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId([u8; CID_LEN]);

impl ConnectionId {
    /// The id of `core` with random bytes that the caller drew from a secure generator.
    pub const fn new(core: u8, random: [u8; CID_RANDOM_LEN]) -> Self {
        let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10] = random;
        Self([core, r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10])
    }

    /// The index of the core.
    pub const fn core(&self) -> u8 {
        self.0[0]
    }

    /// The id as it stands in packets.
    pub const fn as_bytes(&self) -> &[u8; CID_LEN] {
        &self.0
    }
}

impl AsRef<[u8]> for ConnectionId {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<ConnectionId> for [u8; CID_LEN] {
    fn from(id: ConnectionId) -> Self {
        id.0
    }
}

/// The core that a connection id names: its first byte. `None` for the empty id.
pub fn core_of(cid: &[u8]) -> Option<u8> {
    cid.first().copied()
}

/// The core to which the kernel steers a packet among `cores` sockets: the first byte of the
/// destination connection id modulo `cores`.
///
/// `None` for a packet that is too short to have that byte, and for `cores` = 0. The kernel gives a
/// packet that is too short to socket 0, because a classic BPF program that reads behind the packet
/// ends with 0; such a packet is no QUIC packet of ours.
pub fn core_of_packet(packet: &[u8], cores: usize) -> Option<usize> {
    let first = *packet.first()?;
    let offset = if first & LONG_HEADER_BIT == 0 {
        SHORT_HEADER_DCID_OFFSET
    } else {
        LONG_HEADER_DCID_OFFSET
    };
    usize::from(*packet.get(offset)?).checked_rem(cores)
}

/// The destination connection id of a packet with a long header (RFC 8999 section 5.1), whatever
/// its length; `None` if the packet ends before it does.
pub fn long_header_dcid(packet: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*packet.get(LONG_HEADER_DCID_OFFSET - 1)?);
    packet.get(LONG_HEADER_DCID_OFFSET..)?.get(..length)
}

/// The destination connection id of a packet with a short header, which is one of ours; `None` if
/// the packet ends before it does.
pub fn short_header_dcid(packet: &[u8]) -> Option<&[u8; CID_LEN]> {
    packet.get(SHORT_HEADER_DCID_OFFSET..)?.first_chunk()
}
