//! Cutting a packet into fragments: as few as possible, all of one length except the last, which
//! may be shorter. The reassembler relies on that: an index and a length give the place of a part.

use std::iter::FusedIterator;
use std::ops::Range;

use super::{FRAGMENTS_MAX, UDP_PAYLOAD_MAX};

/// The fragments of one packet, in order: index, count and the range of the payload.
#[derive(Clone, Debug)]
pub struct Split {
    payload_bytes: usize,
    fragment_bytes: usize,
    index: u8,
    count: u8,
}

/// Cuts a payload of `payload_len` bytes into fragments of at most `room` bytes, which is what a
/// datagram can hold, less the longest header that the fragments will have.
///
/// The lengths are balanced, so the last fragment is never a mere rest. A payload that fits into
/// `room` gives one fragment; a caller sends such a packet whole.
///
/// `None` if the payload is longer than [`UDP_PAYLOAD_MAX`] or needs more than [`FRAGMENTS_MAX`]
/// fragments.
pub fn split(payload_len: usize, room: usize) -> Option<Split> {
    if payload_len > UDP_PAYLOAD_MAX || room == 0 {
        return None;
    }
    let count = payload_len.div_ceil(room).max(1);
    if count > FRAGMENTS_MAX {
        return None;
    }
    Some(Split {
        payload_bytes: payload_len,
        fragment_bytes: payload_len.div_ceil(count),
        index: 0,
        count: count as u8,
    })
}

impl Split {
    /// The number of fragments, 1 to [`FRAGMENTS_MAX`].
    pub fn fragments(&self) -> u8 {
        self.count
    }
}

impl Iterator for Split {
    type Item = (u8, u8, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        let start = usize::from(index) * self.fragment_bytes;
        let end = (start + self.fragment_bytes).min(self.payload_bytes);
        Some((index, self.count, start..end))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::from(self.count - self.index);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Split {}

impl FusedIterator for Split {}
