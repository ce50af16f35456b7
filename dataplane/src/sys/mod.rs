//! The interface to the operating system: sockets, steering, affinity, limits.
//!
//! This layer owns every `unsafe` block of the program and every system call that monoio does not
//! make for us. It knows nothing of QUIC, lanes or flows. I/O is done by readiness: io_uring (or
//! epoll) only says *when* a socket is ready, and the bytes move by a plain non-blocking call into
//! a buffer that we still own. That makes every wait cancellable without losing data, which a
//! submitted io_uring read is not, and an idle flow needs no buffer. It costs the same per byte as
//! completion-based reads, by measurement (see `docs/decisions.md`).

#[cfg(feature = "count-allocations")]
pub(crate) mod allocations;
pub(crate) mod bind;
pub(crate) mod copies;
pub(crate) mod cpu;
mod cpu_quota;
pub(crate) mod heap;
pub(crate) mod limits;
pub(crate) mod memory;
mod option;
pub(crate) mod pass;
pub(crate) mod process;
pub(crate) mod ring;
pub(crate) mod route;
pub(crate) mod slice;
pub(crate) mod steering;
pub(crate) mod syn_filter;
pub(crate) mod tcp;
pub(crate) mod timer;
pub(crate) mod tls;
pub(crate) mod udp;
pub(crate) mod unreachable;
pub(crate) mod wake;

use std::os::fd::{AsRawFd, BorrowedFd};

/// The most cores of one process: the index is one byte of a connection id (`qmux_proto::cid`), by
/// which [`steering`] finds the core.
pub(crate) const CORES_MAX: usize = 256;

/// Borrows the descriptor of a monoio socket, which offers only its number.
fn borrow<T: AsRawFd>(socket: &T) -> BorrowedFd<'_> {
    // SAFETY: `socket` owns the descriptor and is borrowed for as long as the result lives, so it
    // stays open.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}
