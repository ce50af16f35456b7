//! Socket options, and questions to a socket, for which no crate of ours has a call.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Sets the option `name` of `level` to a C int.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(super) fn set_int(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set(socket, level, name, &value)
}

/// Attaches a classic BPF program to the reuseport group of `socket` (`SO_ATTACH_REUSEPORT_CBPF`).
///
/// # Errors
/// Those of `setsockopt(2)`, if the kernel lacks the option (before Linux 4.5) or the
/// program is not valid.
pub(super) fn attach_reuseport_program(
    socket: impl AsFd,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        // The kernel copies the instructions, which outlive the call.
        filter: program.as_mut_ptr(),
    };
    set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        &program,
    )
}

/// Bytes in the send buffer of a TCP socket that its peer has not acknowledged (`SIOCOUTQ`,
/// tcp(7)). 0 if the socket is no longer connected.
pub(super) fn unacknowledged_bytes(socket: impl AsFd) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes one C
    // int, for which `bytes` is valid.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        u32::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

/// The credentials of the process at the other end of a Unix socket (`SO_PEERCRED`, unix(7)). The
/// process id is 0 if it has none that is known here, as in another container, so no type that
/// cannot be 0 may hold it.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub(super) fn peer_credentials(socket: impl AsFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: libc::gid_t::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes no more than
    // `length` bytes, for which `peer` is valid, and of which every value is one of its integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(peer)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets an option. Only for this module: what pointers in `value` point at must be as the option
/// wants it.
fn set<T>(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed; `value` is valid for the length
    // passed, which is its own, and the kernel only reads it. Its callers above make sure that what
    // it points at is valid, too.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
