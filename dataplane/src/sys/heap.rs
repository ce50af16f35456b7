//! How much memory the program holds, counted where it is allocated.
//!
//! What flows hold lies in many places: in quiche's queues, in blocks, in tables, in tasks. Counted
//! at each of them, something would be forgotten, and quiche does not tell how much waits to be
//! read. So the allocator counts: bytes that were asked for and not given back. A core's thread
//! counts for itself and adds to the total when [`STEP_BYTES`] have come together, so that a byte's
//! way costs one addition per allocation and touches nothing shared.
//!
//! Not seen here: what C code allocates (BoringSSL, per lane), and the kernel's socket buffers.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

use mimalloc::MiMalloc;

/// A core's thread adds to the total when it has this much to add. The total is wrong by this much
/// per core at most.
pub(crate) const STEP_BYTES: usize = 128 << 10;

/// The program's allocator.
#[derive(Debug)]
pub(crate) struct Metered;

static HELD_BYTES: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// What this thread has not added yet.
    static PENDING_BYTES: Cell<isize> = const { Cell::new(0) };
    /// How much it may keep back. Threads that are no cores end one day: they keep nothing.
    static KEEP_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The calling thread is a core's, which lives as long as the process and allocates all the time.
pub(crate) fn this_thread_is_a_core() {
    KEEP_BYTES.set(STEP_BYTES);
}

/// Bytes that the process holds.
pub(crate) fn held_bytes() -> usize {
    usize::try_from(HELD_BYTES.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Bytes were allocated that are not to be counted (negative), or given back that were not counted
/// (positive): what lies in a pool is held by nobody.
pub(crate) fn count(bytes: isize) {
    let pending = PENDING_BYTES.get() + bytes;
    if pending.unsigned_abs() > KEEP_BYTES.get() {
        HELD_BYTES.fetch_add(pending, Ordering::Relaxed);
        PENDING_BYTES.set(0);
    } else {
        PENDING_BYTES.set(pending);
    }
}

/// No allocation is larger than `isize::MAX` ([`Layout`]).
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
        // Far more than what other tests of this process allocate meanwhile.
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
