//! The capabilities of a client: what it can do beyond the least that its protocol version
//! requires.

use std::ops::BitOr;

use crate::varint;

/// A set of capabilities, one bit each. Bits that this version does not know are kept and have no
/// effect: a peer of a later version may send them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(u64);

impl Capabilities {
    /// No capability.
    pub const NONE: Self = Self(0);
    /// The client carries TCP flows.
    pub const TCP: Self = Self(1 << 0);
    /// The client carries UDP flows in QUIC datagrams.
    pub const UDP: Self = Self(1 << 1);
    /// The client takes UDP packets in fragments.
    pub const FRAGMENTATION: Self = Self(1 << 2);
    /// The client sends ServiceHealth messages.
    pub const SERVICE_HEALTH: Self = Self(1 << 3);
    /// The client knows services by name: it reads ServiceAnswers messages, and the traffic address
    /// in the first datagrams of a UDP flow.
    pub const NAMED_SERVICES: Self = Self(1 << 4);
    /// The client reads HandOvers messages, and opens as many lanes as they call for.
    pub const HAND_OVERS: Self = Self(1 << 5);
    /// The client reads bundles of small UDP packets in one QUIC datagram.
    pub const BUNDLES: Self = Self(1 << 6);
    /// The client answers PathChallenge messages.
    pub const PATH_CHALLENGE: Self = Self(1 << 8);

    /// The set with these bits; `None` if they do not fit into a varint.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits <= varint::MAX {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The bits as they stand on the wire.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every capability of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The capabilities that are in this set or in `other`.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Takes bits from a varint, which always fit.
    pub(super) const fn from_varint(bits: u64) -> Self {
        Self(bits)
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}
