//! The buffers of incomplete packets. Their sizes are powers of two, so that a buffer can be
//! reused, and the allocated bytes never exceed the limit.

use crate::datagram::UDP_PAYLOAD_MAX;

/// The smallest buffer: a packet that must be cut is larger than most paths' packets.
const BUFFER_BYTES_MIN: usize = 2 * 1024;

/// The largest buffer: it holds the largest UDP packet.
pub(super) const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Number of sizes.
const CLASSES: usize = (BUFFER_BYTES_MAX / BUFFER_BYTES_MIN).ilog2() as usize + 1;

const _: () = assert!(BUFFER_BYTES_MAX >= UDP_PAYLOAD_MAX);
const _: () = assert!(BUFFER_BYTES_MIN << (CLASSES - 1) == BUFFER_BYTES_MAX);

/// The buffers that wait to be reused, and the bytes of all that exist.
#[derive(Debug)]
pub(super) struct Buffers {
    bytes_max: usize,
    allocated_bytes: usize,
    free: [Vec<Box<[u8]>>; CLASSES],
}

impl Buffers {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            allocated_bytes: 0,
            free: Default::default(),
        }
    }

    /// The bytes of all buffers, given out or waiting.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    /// A buffer of at least `bytes`; `None` while too many are given out. Its content is whatever
    /// its last user left.
    pub(super) fn take(&mut self, bytes: usize) -> Option<Box<[u8]>> {
        let class = class_of(bytes);
        if let Some(buffer) = self.free[class].pop() {
            return Some(buffer);
        }
        let class_bytes = BUFFER_BYTES_MIN << class;
        while self.allocated_bytes + class_bytes > self.bytes_max {
            self.release_one()?;
        }
        self.allocated_bytes += class_bytes;
        Some(vec![0; class_bytes].into_boxed_slice())
    }

    /// Takes a buffer back. The empty one never came from here, and is dropped.
    pub(super) fn give(&mut self, buffer: Box<[u8]>) {
        if !buffer.is_empty() {
            self.free[class_of(buffer.len())].push(buffer);
        }
    }

    /// Frees the largest buffer that waits.
    fn release_one(&mut self) -> Option<()> {
        let buffer = self.free.iter_mut().rev().find_map(Vec::pop)?;
        self.allocated_bytes -= buffer.len();
        Some(())
    }
}

fn class_of(bytes: usize) -> usize {
    debug_assert!(bytes <= BUFFER_BYTES_MAX);
    let rounded = bytes.max(BUFFER_BYTES_MIN).next_power_of_two();
    (rounded / BUFFER_BYTES_MIN).ilog2() as usize
}
