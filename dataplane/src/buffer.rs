//! Buffers of a core: pooled, reference-counted, never shared between threads.
//!
//! A [`Block`] is filled from a TCP socket and handed to quiche as a [`StreamBuf`] without a copy;
//! it comes back to the pool when its last reference goes, which is when the peer has acknowledged
//! its bytes. A [`Datagram`] is the same for DATAGRAM frames. The pools are thread-local: each core
//! has its own, and steady state allocates nothing.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use quiche::{BufFactory, BufSplit};

use crate::sys::heap;

/// Bytes of a large block: reads of 128 KB and more cost half of what 8 KB reads do, and above 256
/// KB nothing is gained (measured).
pub(crate) const LARGE_BLOCK_BYTES: usize = 128 << 10;

/// Bytes of a medium block, for flows that have no room for more. What is read holds its whole
/// block until it is acknowledged, and among many flows each has room for little.
const MEDIUM_BLOCK_BYTES: usize = 64 << 10;

/// Bytes of a small block, for flows that move little at a time.
pub(crate) const SMALL_BLOCK_BYTES: usize = 16 << 10;

/// Reads that fill less than this fraction of their block are copied out of it, instead of holding
/// it until they are acknowledged: 1,000 flows with 64 bytes in flight each must not hold 1,000
/// blocks.
const COPY_BELOW: usize = 8;

/// Sizes of the blocks that such reads are copied to: for a keystroke, for a small request, and for
/// less than an eighth of a large block.
const COPY_BYTES: [usize; 3] = [256, COPIED_BYTES, SMALL_BLOCK_BYTES];

/// Size of the block for what is copied out of a small block.
pub(crate) const COPIED_BYTES: usize = SMALL_BLOCK_BYTES / COPY_BELOW;

/// The most bytes of free blocks that are kept per size and core; further ones go back to the
/// allocator.
const FREE_BYTES_MAX: usize = 8 << 20;
const FREE_BLOCKS_MAX: usize = 1_024;

/// Capacity of a pooled datagram: quiche's largest packet.
const DATAGRAM_CAPACITY: usize = 16_384;

/// Free datagrams kept per core.
const FREE_DATAGRAMS_MAX: usize = 2_048;

/// Datagrams larger than this are not pooled together with the common small ones.
const SMALL_DATAGRAM_CAPACITY: usize = 2_048;

const _: () = assert!(LARGE_BLOCK_BYTES == COPY_BELOW * SMALL_BLOCK_BYTES);
const _: () = assert!(COPY_BYTES[0] < COPY_BYTES[1] && COPY_BYTES[1] < COPY_BYTES[2]);

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

struct Pool {
    tiny: Vec<Rc<[u8]>>,
    little: Vec<Rc<[u8]>>,
    small: Vec<Rc<[u8]>>,
    medium: Vec<Rc<[u8]>>,
    large: Vec<Rc<[u8]>>,
    small_datagrams: Vec<Vec<u8>>,
    datagrams: Vec<Vec<u8>>,
}

impl Pool {
    const fn new() -> Pool {
        Pool {
            tiny: Vec::new(),
            little: Vec::new(),
            small: Vec::new(),
            medium: Vec::new(),
            large: Vec::new(),
            small_datagrams: Vec::new(),
            datagrams: Vec::new(),
        }
    }

    /// Bytes of the free blocks in this pool.
    fn bytes(&self) -> usize {
        let Pool {
            tiny,
            little,
            small,
            medium,
            large,
            ..
        } = self;
        let blocks = [tiny, little, small, medium, large];
        let datagrams = [&self.small_datagrams, &self.datagrams];
        let in_blocks = blocks.into_iter().flatten().map(|block| block.len());
        let in_datagrams = datagrams.into_iter().flatten().map(Vec::capacity);
        in_blocks.chain(in_datagrams).sum()
    }

    fn free_list(&mut self, bytes: usize) -> Option<&mut Vec<Rc<[u8]>>> {
        const TINY: usize = COPY_BYTES[0];
        const LITTLE: usize = COPY_BYTES[1];
        match bytes {
            TINY => Some(&mut self.tiny),
            LITTLE => Some(&mut self.little),
            SMALL_BLOCK_BYTES => Some(&mut self.small),
            MEDIUM_BLOCK_BYTES => Some(&mut self.medium),
            LARGE_BLOCK_BYTES => Some(&mut self.large),
            _ => None,
        }
    }
}

/// A block of this size with one owner, from the pool if it has one.
fn take(bytes: usize) -> Rc<[u8]> {
    let pooled = POOL.with(|pool| pool.borrow_mut().free_list(bytes).and_then(Vec::pop));
    if let Some(block) = pooled {
        heap::count(heap::signed(bytes));
        return block;
    }
    vec![0; bytes].into()
}

/// Puts a block back if this was its last reference.
fn give_back(mut bytes: Rc<[u8]>) {
    if Rc::get_mut(&mut bytes).is_none() {
        return;
    }
    // At thread exit the pool may be gone before the last block, which then simply goes to the
    // allocator.
    let _exiting = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let most = (FREE_BYTES_MAX / bytes.len().max(1)).min(FREE_BLOCKS_MAX);
        if let Some(free) = pool.free_list(bytes.len())
            && free.len() < most
        {
            // Free blocks are held by nobody, and so are not counted.
            heap::count(-heap::signed(bytes.len()));
            free.push(bytes);
        }
    });
}

/// Gives the free blocks of this core's pools back to the allocator.
pub(crate) fn release_free() {
    let freed = POOL.with(|pool| pool.replace(Pool::new()));
    heap::count(heap::signed(freed.bytes()));
}

/// A writable block from the pool, with one owner.
pub(crate) struct Block(Option<Rc<[u8]>>);

/// Which size of block to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockSize {
    /// [`SMALL_BLOCK_BYTES`].
    Small,
    /// [`MEDIUM_BLOCK_BYTES`].
    Medium,
    /// [`LARGE_BLOCK_BYTES`].
    Large,
}

impl BlockSize {
    /// The size for the next read of a flow whose last one moved `bytes` of `most`: grows when a
    /// small block was filled, shrinks when a large one was hardly used although it could have
    /// been.
    pub(crate) fn after(self, bytes: usize, most: usize) -> BlockSize {
        match self {
            BlockSize::Small if bytes >= SMALL_BLOCK_BYTES => BlockSize::Large,
            BlockSize::Large if bytes < most.min(SMALL_BLOCK_BYTES / 2) => BlockSize::Small,
            same => same,
        }
    }

    /// This size, but no larger than is useful with room for `bytes`.
    pub(crate) fn within(self, bytes: usize) -> BlockSize {
        match self {
            BlockSize::Small => BlockSize::Small,
            _ if bytes <= SMALL_BLOCK_BYTES => BlockSize::Small,
            _ if bytes <= MEDIUM_BLOCK_BYTES => BlockSize::Medium,
            same => same,
        }
    }
}

impl Block {
    /// Takes a block from the pool, or allocates one.
    pub(crate) fn take(size: BlockSize) -> Block {
        let bytes = match size {
            BlockSize::Small => SMALL_BLOCK_BYTES,
            BlockSize::Medium => MEDIUM_BLOCK_BYTES,
            BlockSize::Large => LARGE_BLOCK_BYTES,
        };
        Block(Some(take(bytes)))
    }

    /// The whole block, to be filled.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut().and_then(Rc::get_mut).unwrap_or_default()
    }

    /// The whole block.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Turns the first `length` bytes into a buffer for quiche. They are not copied, unless they
    /// are so few that holding the block for them would be wasteful.
    pub(crate) fn freeze(mut self, length: usize) -> StreamBuf {
        if length * COPY_BELOW <= self.bytes().len() {
            return StreamBuf::copied(&self.bytes()[..length]);
        }
        match self.0.take() {
            Some(bytes) => StreamBuf {
                end: length.min(bytes.len()),
                bytes: Some(bytes),
                start: 0,
                charge: None,
            },
            None => StreamBuf::default(),
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(bytes) = self.0.take() {
            give_back(bytes);
        }
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.bytes().len())
    }
}

/// Immutable bytes on their way into a stream; clones share them.
#[derive(Clone, Default)]
pub(crate) struct StreamBuf {
    bytes: Option<Rc<[u8]>>,
    start: usize,
    end: usize,
    charge: Option<Charge>,
}

/// The memory that blocks hold for one flow, in bytes: those that quiche has, until the peer has
/// acknowledged what is in them. A block that was split counts once for each part.
#[derive(Debug, Default)]
pub(crate) struct Holdings(Cell<usize>);

impl Holdings {
    /// The number of bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.get()
    }
}

/// Counts one block among a flow's holdings for as long as this lives.
struct Charge {
    to: Rc<Holdings>,
    bytes: usize,
}

impl Charge {
    fn new(to: &Rc<Holdings>, bytes: usize) -> Charge {
        to.0.set(to.0.get() + bytes);
        Charge {
            to: Rc::clone(to),
            bytes,
        }
    }
}

impl Clone for Charge {
    fn clone(&self) -> Charge {
        Charge::new(&self.to, self.bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.to.0.set(self.to.0.get() - self.bytes);
    }
}

impl StreamBuf {
    /// A buffer of its own with a copy of `bytes`: from the pool, unless they are more than any
    /// copied read.
    pub(crate) fn copied(bytes: &[u8]) -> StreamBuf {
        let length = bytes.len();
        let copy = (length > 0).then(|| {
            let Some(size) = COPY_BYTES.into_iter().find(|size| length <= *size) else {
                return bytes.into();
            };
            let mut block = take(size);
            if let Some(block) = Rc::get_mut(&mut block) {
                block[..length].copy_from_slice(bytes);
            }
            block
        });
        StreamBuf {
            end: length,
            bytes: copy,
            start: 0,
            charge: None,
        }
    }
}

impl StreamBuf {
    /// The memory that the buffer keeps from being used otherwise, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len())
    }

    /// Whether nobody else holds these bytes any more, nor the others of their block.
    pub(crate) fn is_held_alone(&self) -> bool {
        self.bytes
            .as_ref()
            .is_none_or(|it| Rc::strong_count(it) == 1)
    }

    /// The same bytes, counted among a flow's holdings for as long as the result and its parts
    /// live.
    pub(crate) fn charged_to(&self, holdings: &Rc<Holdings>) -> StreamBuf {
        let mut charged = self.uncharged();
        charged.charge = Some(Charge::new(holdings, self.held_bytes()));
        charged
    }

    /// The same bytes, counted among no flow's holdings.
    pub(crate) fn uncharged(&self) -> StreamBuf {
        StreamBuf {
            bytes: self.bytes.clone(),
            start: self.start,
            end: self.end,
            charge: None,
        }
    }
}

impl AsRef<[u8]> for StreamBuf {
    fn as_ref(&self) -> &[u8] {
        self.bytes
            .as_ref()
            .map_or(&[], |bytes| &bytes[self.start..self.end])
    }
}

impl BufSplit for StreamBuf {
    fn split_at(&mut self, at: usize) -> StreamBuf {
        let middle = self.start + at;
        debug_assert!(middle <= self.end);
        let rest = StreamBuf {
            bytes: self.bytes.clone(),
            start: middle,
            end: self.end,
            charge: self.charge.clone(),
        };
        self.end = middle;
        rest
    }
}

impl Drop for StreamBuf {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            give_back(bytes);
        }
    }
}

impl fmt::Debug for StreamBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamBuf({} bytes)", self.end - self.start)
    }
}

/// One DATAGRAM frame's content, from the pool.
pub(crate) struct Datagram(Vec<u8>);

impl Datagram {
    /// An empty datagram with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Datagram {
        let pooled = POOL.with(|pool| {
            let mut pool = pool.borrow_mut();
            if capacity <= SMALL_DATAGRAM_CAPACITY {
                pool.small_datagrams.pop()
            } else {
                pool.datagrams.pop()
            }
        });
        if let Some(bytes) = &pooled {
            heap::count(heap::signed(bytes.capacity()));
        }
        let class = if capacity <= SMALL_DATAGRAM_CAPACITY {
            SMALL_DATAGRAM_CAPACITY
        } else {
            DATAGRAM_CAPACITY.max(capacity)
        };
        Datagram(pooled.unwrap_or_else(|| Vec::with_capacity(class)))
    }

    /// The bytes, to be appended to.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for Datagram {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Datagram {
    fn from(bytes: Vec<u8>) -> Datagram {
        Datagram(bytes)
    }
}

impl Drop for Datagram {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if bytes.capacity() < SMALL_DATAGRAM_CAPACITY {
            return; // Allocated by quiche for a received frame, at its exact size.
        }
        bytes.clear();
        let _exiting = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let free = if bytes.capacity() < DATAGRAM_CAPACITY {
                &mut pool.small_datagrams
            } else {
                &mut pool.datagrams
            };
            if free.len() < FREE_DATAGRAMS_MAX {
                heap::count(-heap::signed(bytes.capacity()));
                free.push(bytes);
            }
        });
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Datagram({} bytes)", self.0.len())
    }
}

/// Tells quiche which buffers to use.
#[derive(Debug, Clone, Default)]
pub(crate) struct PooledBuffers;

impl BufFactory for PooledBuffers {
    type Buf = StreamBuf;
    type DgramBuf = Datagram;

    fn buf_from_slice(bytes: &[u8]) -> StreamBuf {
        StreamBuf::copied(bytes)
    }

    fn dgram_buf_from_slice(bytes: &[u8]) -> Datagram {
        let mut datagram = Datagram::with_capacity(bytes.len());
        datagram.bytes_mut().extend_from_slice(bytes);
        datagram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_returns_to_the_pool_when_its_last_slice_goes() {
        let mut block = Block::take(BlockSize::Large);
        block.bytes_mut()[..4].copy_from_slice(b"abcd");
        let address = block.bytes().as_ptr();
        let mut head = block.freeze(100_000);
        let tail = head.split_at(50_000);
        assert_eq!((head.as_ref().len(), tail.as_ref().len()), (50_000, 50_000));
        drop(head);
        assert_ne!(
            Block::take(BlockSize::Large).bytes().as_ptr(),
            address,
            "still held by the tail"
        );
        drop(tail);
        assert_eq!(Block::take(BlockSize::Large).bytes().as_ptr(), address);
    }

    #[test]
    fn few_bytes_do_not_hold_a_block() {
        let block = Block::take(BlockSize::Small);
        let address = block.bytes().as_ptr();
        let buf = block.freeze(64);
        assert_eq!(buf.as_ref().len(), 64);
        assert_eq!(Block::take(BlockSize::Small).bytes().as_ptr(), address);
    }

    #[test]
    fn copies_come_from_the_pool_and_return_to_it() {
        for length in [1, 256, 257, 2_048, 2_049, SMALL_BLOCK_BYTES] {
            let bytes = vec![7; length];
            let first = StreamBuf::copied(&bytes);
            assert_eq!(first.as_ref(), bytes);
            let address = first.as_ref().as_ptr();
            let second = StreamBuf::copied(&bytes);
            assert_ne!(second.as_ref().as_ptr(), address, "both are held");
            drop(first);
            let third = StreamBuf::copied(&bytes);
            assert_eq!(third.as_ref().as_ptr(), address, "{length}");
        }
        assert!(StreamBuf::copied(&[]).as_ref().is_empty());
        let large = vec![9; SMALL_BLOCK_BYTES + 1];
        assert_eq!(StreamBuf::copied(&large).as_ref(), large);
    }

    #[test]
    fn block_size_follows_the_flow() {
        let (small, large) = (SMALL_BLOCK_BYTES, LARGE_BLOCK_BYTES);
        assert_eq!(BlockSize::Small.after(100, small), BlockSize::Small);
        assert_eq!(BlockSize::Small.after(small, small), BlockSize::Large);
        assert_eq!(BlockSize::Large.after(large, large), BlockSize::Large);
        assert_eq!(BlockSize::Large.after(10, large), BlockSize::Small);
    }

    #[test]
    fn a_read_that_had_no_room_for_more_says_nothing_of_the_flow() {
        assert_eq!(BlockSize::Large.after(100, 100), BlockSize::Large);
        assert_eq!(BlockSize::Large.after(99, 100), BlockSize::Small);
    }

    #[test]
    fn a_block_is_no_larger_than_its_flow_has_room_for() {
        for room in [1, SMALL_BLOCK_BYTES, 20_000, MEDIUM_BLOCK_BYTES, 100_000] {
            let block = Block::take(BlockSize::Large.within(room));
            let held = block.bytes().len();
            assert!(
                held >= room && held <= SMALL_BLOCK_BYTES.max(4 * room),
                "{room}"
            );
        }
        assert_eq!(BlockSize::Small.within(1 << 20), BlockSize::Small);
    }

    #[test]
    fn datagrams_are_recycled_by_size() {
        let mut small = Datagram::with_capacity(1_200);
        small.bytes_mut().extend_from_slice(&[7; 1_200]);
        let address = small.as_ref().as_ptr();
        drop(small);
        let again = Datagram::with_capacity(100);
        assert_eq!(again.as_ref().len(), 0);
        assert_eq!(again.0.as_ptr(), address);
        assert!(Datagram::with_capacity(9_000).0.capacity() >= 9_000);
    }
}
