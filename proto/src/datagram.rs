//! UDP flows: the header in front of each QUIC datagram (RFC 9221), and the cutting of a packet
//! that is larger than a datagram into fragments.
//!
//! A datagram starts with one varint, `flow id << 2 | kind`. The kind is always explicit, so no
//! payload can be mistaken for a header:
//!
//! | kind | header | then |
//! | --- | --- | --- |
//! | 0 | [`Header::Whole`] | the packet |
//! | 1 | [`Header::First`]: visitor, traffic address or not, service | the packet |
//! | 2 | [`Header::Fragment`]: packet id, index, count | a part of the packet |
//! | 3 | [`Header::FirstFragment`]: packet id, index, count, and as for 1 | a part of the packet |
//!
//! The server sends kinds 1 and 3 until the client has shown that it knows the flow, by any
//! datagram of its own; the client sends kinds 0 and 2 alone. Every fragment of a packet can be a
//! `FirstFragment`, because any of them may be the first to arrive.
//!
//! The packet ids of a flow count up by one with each packet that is cut, in each direction on its
//! own: the [`Reassembler`](crate::reassembly::Reassembler) knows by them what it has already seen.
//!
//! Peers that have said so take several such datagrams in one: a [`Bundle`].

mod bundle;
mod header;
mod split;

pub use bundle::{BUNDLE_MARK, Bundle, begin_bundle, bundled_len, put_bundled_len};
pub use header::Header;
pub use split::{Split, split};

use crate::address;
use crate::varint;

/// The largest UDP payload over IPv4 in bytes: 65,535 less 20 (RFC 791) and 8 (RFC 768).
pub const UDP_PAYLOAD_MAX: usize = 65_507;

/// The largest number of fragments of one packet: [`UDP_PAYLOAD_MAX`] bytes need 60 of a path with
/// the smallest datagrams, and 64 bits say which of them are there.
pub const FRAGMENTS_MAX: usize = 64;

/// The room for a QUIC datagram's content that every path has, in bytes: QUIC needs paths that
/// carry 1,200-byte packets (RFC 9000 section 14), of which the short header takes at most 25
/// (section 17.3), the AEAD tag 16 and the frame's type and length 3. Rounded down.
pub const DATAGRAM_BYTES_MIN: usize = 1_150;

const _: () = assert!(DATAGRAM_BYTES_MIN <= 1_200 - 25 - 16 - 3);

/// The longest [`Header::Fragment`] in bytes.
pub const FRAGMENT_HEADER_BYTES_MAX: usize = 2 * varint::BYTES_MAX + 2;

/// The longest [`Header::FirstFragment`] of a service without a name, in bytes, with both
/// addresses. Each byte of a name costs one more: on a path with the smallest datagrams a name of
/// up to 68 bytes leaves room for the largest packet; with a longer one, first packets above 62 KB
/// are too large for [`split()`].
pub const FIRST_FRAGMENT_HEADER_BYTES_MAX: usize =
    FRAGMENT_HEADER_BYTES_MAX + 2 * address::BYTES_MAX + 1;

const _: () = assert!(
    (DATAGRAM_BYTES_MIN - FRAGMENT_HEADER_BYTES_MAX) * FRAGMENTS_MAX >= UDP_PAYLOAD_MAX
        && (DATAGRAM_BYTES_MIN - FIRST_FRAGMENT_HEADER_BYTES_MAX - 1 - 68) * FRAGMENTS_MAX
            >= UDP_PAYLOAD_MAX,
    "the largest packet must pass on the smallest path"
);
