//! Process limits: file descriptors, and which of them flows may have.
//!
//! The kernel gives a new descriptor the lowest free number. So a flow that got number *n* shows
//! that at least *n* descriptors are in use. If no flow keeps a number above a certain one, the
//! numbers above it are always free for the admin endpoint, for lanes and for files. This is exact,
//! needs no count that cores would have to share, and costs a comparison.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The first descriptor that flows may not have. It is set once, before any core runs.
static FLOWS_END: AtomicI32 = AtomicI32::new(RawFd::MAX);

/// Raises the soft limit of open files to the hard limit and returns the resulting soft limit
/// (`None`: unlimited).
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            limit.current
        }
    }
}

/// Keeps `reserved` of the `allowed` descriptors (`None`: unlimited) from flows, but no more than
/// half of them.
pub(crate) fn keep_from_flows(reserved: u32, allowed: Option<u64>) {
    FLOWS_END.store(flows_end(reserved, allowed), Ordering::Relaxed);
}

/// Whether a flow may keep this descriptor, which it has just got. If not, it must close the
/// descriptor and end or refuse what it was for.
pub(crate) fn is_for_flows(descriptor: &impl AsFd) -> bool {
    descriptor.as_fd().as_raw_fd() < FLOWS_END.load(Ordering::Relaxed)
}

/// Number of descriptors that flows of both protocols, and everything that the process had open
/// before them, may take together: a bound for tables of flows that have one each.
pub(crate) fn flow_descriptors_max() -> usize {
    usize::try_from(FLOWS_END.load(Ordering::Relaxed)).unwrap_or_default()
}

/// [`is_for_flows`] as an error, as socket(2) would give it if there were no more.
///
/// # Errors
/// EMFILE.
pub(crate) fn for_flows(descriptor: &impl AsFd) -> io::Result<()> {
    if is_for_flows(descriptor) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }
}

/// The range of ports from which the kernel chooses for sockets that ask for any (ip(7)); the
/// kernel's default if it cannot be read.
pub(crate) fn ephemeral_ports() -> RangeInclusive<u16> {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| parse_ports(&text))
        .unwrap_or(32_768..=60_999)
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(first..=last)
}

/// Whether a call on a socket failed because this machine or process lacks something: descriptors,
/// ports, memory. Then it says nothing about the peer.
///
/// The errors are those of socket(2), connect(2), ip(7) and tcp(7). connect(2) and bind(2) return
/// EAGAIN for an unbound UDP socket if there is no free port.
pub(crate) fn is_own_want(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EAGAIN
                | libc::ENOSPC
        )
    )
}

fn flows_end(reserved: u32, allowed: Option<u64>) -> RawFd {
    let allowed = allowed.unwrap_or(u64::MAX);
    let end = allowed.saturating_sub(u64::from(reserved).min(allowed / 2));
    RawFd::try_from(end).unwrap_or(RawFd::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_taken_from_the_end_and_is_at_most_half() {
        assert_eq!(flows_end(64, Some(1_024)), 960);
        assert_eq!(flows_end(0, Some(1_024)), 1_024);
        assert_eq!(flows_end(64, Some(100)), 50);
        assert_eq!(flows_end(64, Some(0)), 0);
        assert_eq!(flows_end(64, None), RawFd::MAX);
        assert_eq!(flows_end(64, Some(u64::MAX)), RawFd::MAX);
    }

    #[test]
    fn a_range_of_ports_is_read_as_the_kernel_writes_it() {
        assert_eq!(parse_ports("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(parse_ports("32768"), None);
        assert_eq!(parse_ports("a b"), None);
    }

    #[test]
    fn what_this_machine_lacks_is_told_from_what_a_service_answers() {
        for own in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
            libc::EAGAIN,
        ] {
            assert!(is_own_want(&io::Error::from_raw_os_error(own)), "{own}");
        }
        for theirs in [
            libc::ECONNREFUSED,
            libc::ETIMEDOUT,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::ECONNRESET,
            libc::EPERM,
        ] {
            assert!(
                !is_own_want(&io::Error::from_raw_os_error(theirs)),
                "{theirs}"
            );
        }
        assert!(!is_own_want(&io::ErrorKind::TimedOut.into()));
    }
}
