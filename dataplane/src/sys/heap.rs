//! How much memory the program holds, counted where it is allocated.
//!
//! The memory of flows lies in many places: in quiche's queues, in blocks, in tables, in tasks.
//! Counting at each of them would forget something, and quiche does not tell how much waits to be
//! read. So the allocator counts the bytes that were asked for and not given back. A core's thread
//! counts for itself and adds to the total when [`STEP_BYTES`] have come together, so that
//! forwarding costs one addition per allocation and touches nothing shared.
//!
//! Two things are not seen here: what C code allocates (BoringSSL, per lane), and the kernel's
//! socket buffers.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

use mimalloc::MiMalloc;

/// A core's thread adds to the total when it has this much to add. So the total is wrong by this
/// much per core at most.
pub(crate) const STEP_BYTES: usize = 128 << 10;

/// The program's allocator.
#[derive(Debug)]
pub(crate) struct Metered;

static HELD_BYTES: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// Bytes that this thread has not added to the total yet.
    static PENDING_BYTES: Cell<isize> = const { Cell::new(0) };
    /// How many bytes this thread may keep back. Threads that are not cores end one day, and keep
    /// nothing back.
    static KEEP_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Marks the calling thread as a core's, which lives as long as the process and allocates all the
/// time.
pub(crate) fn this_thread_is_a_core() {
    KEEP_BYTES.set(STEP_BYTES);
}

/// Number of bytes that the process holds.
pub(crate) fn held_bytes() -> usize {
    usize::try_from(HELD_BYTES.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Corrects the count for bytes that were allocated and are not to be counted (negative), or are
/// given back and were not counted (positive): nobody holds what lies in a pool.
pub(crate) fn count(bytes: isize) {
    let pending = PENDING_BYTES.get() + bytes;
    if pending.unsigned_abs() > KEEP_BYTES.get() {
        HELD_BYTES.fetch_add(pending, Ordering::Relaxed);
        PENDING_BYTES.set(0);
    } else {
        PENDING_BYTES.set(pending);
    }
}

/// Converts a size; no allocation is larger than `isize::MAX` ([`Layout`]).
#[expect(clippy::cast_possible_wrap, reason = "a Layout's size fits")]
pub(crate) fn signed(bytes: usize) -> isize {
    bytes as isize
}

// SAFETY: every call is passed on unchanged to an allocator that keeps the contract; counting
// neither touches the memory nor allocates nor unwinds: the cells are initialised at compile time
// and have no destructor.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as above.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(signed(bytes) - signed(layout.size()));
        // SAFETY: as above.
        unsafe { MiMalloc.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(block, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_is_counted_until_it_is_given_back_by_whichever_thread() {
        // This is far more than what other tests of this process allocate meanwhile.
        const BYTES: usize = 1 << 30;
        let block = std::thread::spawn(|| {
            this_thread_is_a_core();
            Vec::<u8>::with_capacity(BYTES)
        });
        let block = block.join().expect("a block");
        assert!(held_bytes() >= BYTES);
        drop(block);
        assert!(held_bytes() < BYTES);
    }
}
