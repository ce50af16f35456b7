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

use rustix::io_uring::{IORING_OFF_SQ_RING, IoringSqFlags, io_uring_params, io_uring_setup};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The part of the ring that is mapped: its head, which is smaller than any page.
const MAPPED_BYTES: usize = 4_096;

/// One ring is made at a time, so that a new descriptor is that of the new ring.
static MAKING: Mutex<()> = Mutex::new(());

/// What a ring says of its completions.
#[derive(Debug)]
pub(crate) struct RingView {
    memory: NonNull<std::ffi::c_void>,
    flags: usize,
    head: usize,
    tail: usize,
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
        let params = layout()?;
        // SAFETY: it was among the open descriptors just now, and is closed by this thread alone.
        let ring = unsafe { BorrowedFd::borrow_raw(ring) };
        // SAFETY: the kernel chooses where, and nothing else refers to it.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                MAPPED_BYTES,
                ProtFlags::READ,
                MapFlags::SHARED,
                ring,
                IORING_OFF_SQ_RING,
            )?
        };
        let memory = NonNull::new(memory).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(RingView {
            memory,
            flags: params.sq_off.flags as usize,
            head: params.cq_off.head as usize,
            tail: params.cq_off.tail as usize,
        })
    }

    /// Number of completions that the runtime has taken, modulo 2^32.
    pub(crate) fn taken(&self) -> u32 {
        self.word(self.head).load(Ordering::Relaxed)
    }

    /// Whether the next system call finds a completion.
    pub(crate) fn has_completion(&self) -> bool {
        let flags = IoringSqFlags::from_bits_retain(self.word(self.flags).load(Ordering::Acquire));
        flags.contains(IoringSqFlags::TASKRUN)
            || self.word(self.tail).load(Ordering::Acquire) != self.taken()
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel's words are aligned and within the mapping, which lives as long as
        // this; whoever writes them does so atomically.
        unsafe { self.memory.byte_add(offset).cast().as_ref() }
    }
}

impl Drop for RingView {
    fn drop(&mut self) {
        // SAFETY: nothing else refers to the mapping.
        let _unmapped = unsafe { munmap(self.memory.as_ptr(), MAPPED_BYTES) };
    }
}

/// Where a ring has what: the same in all of them.
fn layout() -> io::Result<io_uring_params> {
    let mut params = io_uring_params::default();
    // SAFETY: the parameters have no pointers.
    let ring: OwnedFd = unsafe { io_uring_setup(1, &mut params)? };
    drop(ring);
    let fits = |offset: u32| offset.is_multiple_of(4) && (offset as usize) + 4 <= MAPPED_BYTES;
    if [params.sq_off.flags, params.cq_off.head, params.cq_off.tail]
        .into_iter()
        .all(fits)
    {
        Ok(params)
    } else {
        Err(io::ErrorKind::Unsupported.into())
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
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use monoio::io::AsyncReadRent as _;

    use super::*;

    #[test]
    fn a_completion_is_seen_without_a_system_call_and_gone_once_taken() {
        if !monoio::utils::detect_uring() {
            return;
        }
        let made = RingView::of(|| {
            let mut ring = io_uring::IoUring::builder();
            ring.setup_coop_taskrun();
            ring.setup_taskrun_flag();
            monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .uring_builder(ring)
                .build()
        });
        let (mut runtime, view) = made.expect("a runtime");
        let view = view.expect("a view of its ring");
        runtime.block_on(async {
            let (mut ours, theirs) = UnixStream::pair().expect("a pair");
            theirs.set_nonblocking(true).expect("set");
            let mut theirs = monoio::net::UnixStream::from_std(theirs).expect("adopted");
            let reader = monoio::spawn(async move { theirs.read(vec![0; 1]).await.0 });
            let before = view.taken();
            let (mut first, second) = UnixStream::pair().expect("a pair");
            second.set_nonblocking(true).expect("set");
            let mut second = monoio::net::UnixStream::from_std(second).expect("adopted");
            // The reader's turn is in the first of these, and its read goes to the kernel in the
            // second.
            for _ in 0..2 {
                first.write_all(b"1").expect("written");
                assert_eq!(second.read(vec![0; 1]).await.0.expect("read"), 1);
            }
            assert!(view.taken() > before, "the runtime has taken those");
            assert!(!view.has_completion(), "nothing has come since");
            ours.write_all(b"2").expect("written");
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
                    let made = RingView::of(|| {
                        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()
                    });
                    let (mut runtime, view) = made.expect("a runtime");
                    let view = view.expect("a view of its ring");
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
