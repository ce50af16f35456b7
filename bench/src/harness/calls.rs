//! Kinds of system calls: what a call is made for, by its name.
//!
//! By the name alone, for strace that counts does not tell which socket a call was for. The
//! programs measured here take `sendmsg` and `recvmsg` for UDP and the plain calls for TCP; where
//! one does otherwise (rathole sends UDP by `sendto`), its calls stand in the other column, and the
//! sum is right.

use super::strace::{Calls, Count};

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Waiting for something to happen, and submitting to io_uring, which is the same call.
    Wait,
    /// Sending UDP.
    UdpSend,
    /// Receiving UDP.
    UdpReceive,
    /// Sending TCP.
    TcpSend,
    /// Receiving TCP.
    TcpReceive,
    /// A connection's beginning: accepted or made.
    Begin,
    /// Asking a socket for something or setting something.
    Options,
    /// A connection's end.
    End,
    /// All others.
    Other,
}

/// All kinds, in the order of tables.
pub const KINDS: [Kind; 9] = [
    Kind::Wait,
    Kind::UdpSend,
    Kind::UdpReceive,
    Kind::TcpSend,
    Kind::TcpReceive,
    Kind::Begin,
    Kind::Options,
    Kind::End,
    Kind::Other,
];

impl Kind {
    /// The kind of a call of this name.
    pub fn of(name: &str) -> Self {
        match name {
            "io_uring_enter" | "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "poll" | "ppoll"
            | "select" | "pselect6" | "futex" | "sched_yield" | "nanosleep" | "clock_nanosleep" => {
                Self::Wait
            }
            "sendmsg" | "sendmmsg" => Self::UdpSend,
            "recvmsg" | "recvmmsg" => Self::UdpReceive,
            "sendto" | "writev" => Self::TcpSend,
            "recvfrom" | "readv" => Self::TcpReceive,
            "accept" | "accept4" | "socket" | "bind" | "connect" => Self::Begin,
            "setsockopt" | "getsockopt" | "fcntl" | "ioctl" | "getsockname" | "getpeername" => {
                Self::Options
            }
            "close" | "shutdown" => Self::End,
            _ => Self::Other,
        }
    }
}

/// All calls of a kind.
pub fn of_kind(calls: &Calls, kind: Kind) -> Count {
    sum(calls.iter().filter(|(name, _)| Kind::of(name) == kind))
}

/// All calls.
pub fn all(calls: &Calls) -> Count {
    sum(calls.iter())
}

fn sum<'a>(calls: impl Iterator<Item = (&'a String, &'a Count)>) -> Count {
    calls.fold(Count::default(), |sum, (_, count)| Count {
        calls: sum.calls + count.calls,
        failed: sum.failed + count.failed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_add_up_to_all() {
        let names = [
            "io_uring_enter",
            "sendmsg",
            "recvmmsg",
            "sendto",
            "recvfrom",
            "accept4",
            "fcntl",
            "close",
            "madvise",
        ];
        let calls: Calls = (1..)
            .zip(names)
            .map(|(calls, name)| (name.to_owned(), Count { calls, failed: 1 }))
            .collect();
        let by_kind = KINDS.map(|kind| of_kind(&calls, kind));
        assert!(by_kind.iter().all(|count| count.failed == 1), "{by_kind:?}");
        let sum: u64 = by_kind.iter().map(|count| count.calls).sum();
        let failed = 9;
        assert_eq!(all(&calls), Count { calls: sum, failed });
    }
}
