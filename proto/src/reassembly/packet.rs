//! A packet of which fragments are missing: which ones have come, and where each one goes.
//!
//! All fragments except the last have one length, so index and length give the place. When the last
//! one comes first its place is not known yet, and it waits at the front of the buffer.

use std::time::Instant;

use super::drop_reason::DropReason;
use super::slots::Slot;
use crate::datagram::{FRAGMENTS_MAX, UDP_PAYLOAD_MAX};

const _: () = assert!(FRAGMENTS_MAX == u64::BITS as usize);

#[derive(Debug)]
pub(super) struct Packet {
    pub(super) flow: Slot,
    pub(super) flow_id: u64,
    pub(super) packet_id: u64,
    pub(super) opened_at: Instant,
    pub(super) buffer: Box<[u8]>,
    count: u8,
    /// Bit n is set if fragment n has come.
    seen: u64,
    /// The length of every fragment except the last, once one of them has come.
    body_bytes: Option<usize>,
    /// The length of the last fragment, once it has come.
    tail_bytes: Option<usize>,
}

/// Whether any packet can have such a fragment.
pub(super) fn is_possible(index: u8, count: u8, payload: &[u8]) -> bool {
    index < count
        && usize::from(count) <= FRAGMENTS_MAX
        && payload.len() <= UDP_PAYLOAD_MAX
        && (count == 1 || !payload.is_empty())
}

impl Packet {
    pub(super) fn new(
        flow: Slot,
        flow_id: u64,
        packet_id: u64,
        count: u8,
        opened_at: Instant,
    ) -> Self {
        Self {
            flow,
            flow_id,
            packet_id,
            opened_at,
            buffer: Box::default(),
            count,
            seen: 0,
            body_bytes: None,
            tail_bytes: None,
        }
    }

    /// Checks whether a possible fragment fits the others; returns the number of bytes that the
    /// buffer needs for it.
    pub(super) fn check(&self, index: u8, count: u8, length: usize) -> Result<usize, DropReason> {
        if count != self.count {
            return Err(DropReason::Inconsistent);
        }
        if self.seen >> index & 1 == 1 {
            return Err(DropReason::Duplicate);
        }
        let (body_bytes, tail_bytes) = if self.is_tail(index) {
            // The others are at least as long as the last one.
            (self.body_bytes.unwrap_or(length), length)
        } else {
            if self
                .body_bytes
                .is_some_and(|body_bytes| body_bytes != length)
            {
                return Err(DropReason::Inconsistent);
            }
            (length, self.tail_bytes.unwrap_or(1))
        };
        if tail_bytes > body_bytes {
            return Err(DropReason::Inconsistent);
        }
        let bodies_bytes = self.bodies() * body_bytes;
        if bodies_bytes + tail_bytes > UDP_PAYLOAD_MAX {
            return Err(DropReason::TooLarge);
        }
        // Room for the longest tail that can still come.
        Ok((bodies_bytes + body_bytes).min(UDP_PAYLOAD_MAX))
    }

    /// Puts the fragment into the buffer, which has the bytes that [`check`](Self::check) asked
    /// for.
    pub(super) fn write(&mut self, index: u8, payload: &[u8]) {
        if self.is_tail(index) {
            self.tail_bytes = Some(payload.len());
        } else if self.body_bytes.is_none() {
            self.body_bytes = Some(payload.len());
            self.place_tail();
        }
        let start = usize::from(index) * self.body_bytes.unwrap_or(0);
        self.buffer[start..start + payload.len()].copy_from_slice(payload);
        self.seen |= 1 << index;
    }

    /// Moves the content into a larger buffer; returns the smaller one.
    pub(super) fn grow(&mut self, mut buffer: Box<[u8]>) -> Box<[u8]> {
        debug_assert!(buffer.len() > self.buffer.len());
        buffer[..self.buffer.len()].copy_from_slice(&self.buffer);
        std::mem::replace(&mut self.buffer, buffer)
    }

    /// The length of the packet, once it is complete.
    pub(super) fn complete_bytes(&self) -> Option<usize> {
        let complete = self.seen.count_ones() == u32::from(self.count);
        complete
            .then(|| self.bodies() * self.body_bytes.unwrap_or(0) + self.tail_bytes.unwrap_or(0))
    }

    /// Moves the last fragment from the front of the buffer to its place, which is known now.
    fn place_tail(&mut self) {
        if let (Some(body_bytes), Some(tail_bytes)) = (self.body_bytes, self.tail_bytes) {
            self.buffer
                .copy_within(..tail_bytes, self.bodies() * body_bytes);
        }
    }

    /// Number of fragments before the last one.
    fn bodies(&self) -> usize {
        usize::from(self.count) - 1
    }

    fn is_tail(&self, index: u8) -> bool {
        index == self.count - 1
    }
}
