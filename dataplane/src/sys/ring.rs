//! A look at a core's io_uring without a system call: whether a completion waits in it.
//!
//! The kernel and its user share the ring's memory (io_uring_setup(2)). The runtime has it mapped,
//! but shows it to nobody, so it is mapped once more here, to be read only.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io_uring::{
    IORING_OFF_SQ_RING, IoringEnterFlags, IoringSqFlags, io_uring_enter, io_uring_params,
    io_uring_setup,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The part of the ring that is mapped: its head, which is smaller than any page.
const MAPPED_BYTES: usize = 4_096;

/// One ring is made at a time, so that a new descriptor is that of the new ring.
static MAKING: Mutex<()> = Mutex::new(());

/// What a ring says of its completions.
#[derive(Debug)]
pub(crate) struct RingView {
    ring: OwnedFd,
    memory: NonNull<std::ffi::c_void>,
    layout: Layout,
}

/// Where a ring's memory has what, in bytes from its beginning.
#[derive(Debug, Clone, Copy)]
struct Layout {
    flags: u32,
    submitted: u32,
    to_submit: u32,
    taken: u32,
    completed: u32,
}

impl RingView {
    /// Makes a ring by `make`, and maps it.
    pub(crate) fn of<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Option<RingView>)> {
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = rings().unwrap_or_default();
        let made = make()?;
        let view = rings().and_then(|after| {
            let mut new = after.difference(&before);
            match (new.next(), new.next()) {
                (Some(ring), None) => RingView::map(*ring),
                _ => Err(io::Error::other(
                    "its descriptor cannot be told from others",
                )),
            }
        });
        let view = view
            .inspect_err(|error| tracing::debug!(%error, "no look at the ring's memory"))
            .ok();
        Ok((made, view))
    }

    fn map(ring: RawFd) -> io::Result<RingView> {
        let layout = Layout::read()?;
        // SAFETY: it was among the open descriptors just now, and belongs to what `make` has made,
        // which our caller holds.
        let ring = unsafe { BorrowedFd::borrow_raw(ring) }.try_clone_to_owned()?;
        // SAFETY: the kernel chooses where, and nothing else refers to it.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                MAPPED_BYTES,
                ProtFlags::READ,
                MapFlags::SHARED,
                &ring,
                IORING_OFF_SQ_RING,
            )?
        };
        let memory = NonNull::new(memory).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(RingView {
            ring,
            memory,
            layout,
        })
    }

    /// Number of completions that the runtime has taken, modulo 2^32.
    pub(crate) fn taken(&self) -> u32 {
        self.word(self.layout.taken).load(Ordering::Relaxed)
    }

    /// Whether the next system call finds a completion.
    pub(crate) fn has_completion(&self) -> bool {
        let flags = self.word(self.layout.flags).load(Ordering::Acquire);
        IoringSqFlags::from_bits_retain(flags).contains(IoringSqFlags::TASKRUN)
            || self.word(self.layout.completed).load(Ordering::Acquire) != self.taken()
    }

    /// Gives the kernel what the runtime has prepared for its next system call, so that it can be
    /// completed. Only the ring's own thread may call this.
    pub(crate) fn submit(&self) {
        let prepared = self.word(self.layout.to_submit).load(Ordering::Acquire);
        let waiting =
            prepared.wrapping_sub(self.word(self.layout.submitted).load(Ordering::Acquire));
        if waiting > 0 {
            // SAFETY: the runtime has prepared these entries to be submitted as they are, and keeps
            // what they refer to. If it fails, the runtime's own call meets the error.
            let _submitted =
                unsafe { io_uring_enter(&self.ring, waiting, 0, IoringEnterFlags::empty()) };
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel's words are aligned and within the mapping, which lives as long as
        // this; whoever writes them does so atomically.
        unsafe { self.memory.byte_add(offset as usize).cast().as_ref() }
    }
}

impl Drop for RingView {
    fn drop(&mut self) {
        // SAFETY: nothing else refers to the mapping.
        let _unmapped = unsafe { munmap(self.memory.as_ptr(), MAPPED_BYTES) };
    }
}

impl Layout {
    /// Reads it from a ring that is made for this alone: it is the same in all of them.
    fn read() -> io::Result<Layout> {
        let mut params = io_uring_params::default();
        // SAFETY: the parameters have no pointers.
        let ring: OwnedFd = unsafe { io_uring_setup(1, &mut params)? };
        drop(ring);
        let layout = Layout {
            flags: params.sq_off.flags,
            submitted: params.sq_off.head,
            to_submit: params.sq_off.tail,
            taken: params.cq_off.head,
            completed: params.cq_off.tail,
        };
        let Layout {
            flags,
            submitted,
            to_submit,
            taken,
            completed,
        } = layout;
        let fits = |offset: u32| offset.is_multiple_of(4) && (offset as usize) + 4 <= MAPPED_BYTES;
        let all_fit = [flags, submitted, to_submit, taken, completed]
            .into_iter()
            .all(fits);
        all_fit
            .then_some(layout)
            .ok_or(io::ErrorKind::Unsupported.into())
    }
}

/// The descriptors of this process that are rings.
fn rings() -> io::Result<BTreeSet<RawFd>> {
    let mut rings = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let is_ring = fs::read_link(&path).is_ok_and(|to| to == *"anon_inode:[io_uring]");
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let (true, Some(number)) = (is_ring, number) {
            rings.insert(number);
        }
    }
    Ok(rings)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    use monoio::io::AsyncReadRent as _;

    use super::*;

    /// A runtime with its view. Tests beside this one make rings, too, without the lock.
    fn viewed<T>(make: impl Fn() -> io::Result<T>) -> (T, RingView) {
        loop {
            if let (made, Some(view)) = RingView::of(&make).expect("a runtime") {
                return (made, view);
            }
        }
    }

    #[test]
    fn a_completion_is_seen_without_a_system_call_and_gone_once_taken() {
        if !monoio::utils::detect_uring() {
            return;
        }
        let (mut runtime, view) = viewed(|| {
            let mut ring = io_uring::IoUring::builder();
            ring.setup_coop_taskrun();
            ring.setup_taskrun_flag();
            monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .uring_builder(ring)
                .build()
        });
        runtime.block_on(async {
            let (mut ours, theirs) = UnixStream::pair().expect("a pair");
            theirs.set_nonblocking(true).expect("set");
            let mut theirs = monoio::net::UnixStream::from_std(theirs).expect("adopted");
            let reads = Rc::new(Cell::new(false));
            let begun = Rc::clone(&reads);
            let reader = monoio::spawn(async move {
                begun.set(true);
                theirs.read(vec![0; 1]).await.0
            });
            let before = view.taken();
            let (mut first, second) = UnixStream::pair().expect("a pair");
            second.set_nonblocking(true).expect("set");
            let mut second = monoio::net::UnixStream::from_std(second).expect("adopted");
            first.write_all(b"1").expect("written");
            assert_eq!(second.read(vec![0; 1]).await.0.expect("read"), 1);
            assert!(reads.get(), "it had its turn meanwhile");
            assert!(view.taken() > before, "the runtime has taken that one");
            ours.write_all(b"2").expect("written");
            assert!(
                !view.has_completion(),
                "nobody has told the kernel of the reader"
            );
            view.submit();
            assert!(view.has_completion());
            assert_eq!(reader.await.expect("read"), 1);
            assert!(!view.has_completion(), "it has been taken");
        });
    }

    #[test]
    fn rings_that_are_made_at_the_same_time_are_not_confused() {
        if !monoio::utils::detect_uring() {
            return;
        }
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| {
                    let (mut runtime, view) =
                        viewed(|| monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build());
                    assert_eq!(view.taken(), 0);
                    runtime.block_on(async {
                        let (mut first, second) = UnixStream::pair().expect("a pair");
                        second.set_nonblocking(true).expect("set");
                        let mut second = monoio::net::UnixStream::from_std(second).expect("it");
                        first.write_all(b"1").expect("written");
                        assert_eq!(second.read(vec![0; 1]).await.0.expect("read"), 1);
                    });
                    assert!(view.taken() > 0);
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("it is its own ring");
        }
    }
}
