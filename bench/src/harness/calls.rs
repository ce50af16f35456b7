//! Kinds of system calls: what a call is made for, by its name.
//!
//! By the name alone, for strace that counts does not tell which socket a call was for. The
//! programs measured here take `sendmsg` and `recvmsg` for UDP and the plain calls for TCP; where
//! one does otherwise (rathole sends UDP by `sendto`), its calls stand in the other column, and the
//! sum is right.

use super::strace::{Calls, Count};

/// What calls are for: the metric, the head of its column, the names. All others are of the last
/// kind. Submitting to io_uring is the call that waits.
pub const KINDS: [(&str, &str, &[&str]); 9] = [
    ("wait", "enter, wait", WAITS),
    ("udp_send", "UDP send", &["sendmsg", "sendmmsg"]),
    ("udp_receive", "UDP receive", &["recvmsg", "recvmmsg"]),
    ("tcp_send", "TCP send", &["sendto", "writev"]),
    ("tcp_receive", "TCP receive", &["recvfrom", "readv"]),
    ("begin", "accept, connect", BEGINS),
    ("options", "options", OPTIONS),
    ("end", "close", &["close", "shutdown"]),
    ("other", "other", &[]),
];

const WAITS: &[&str] = &[
    "io_uring_enter",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "futex",
    "sched_yield",
    "nanosleep",
    "clock_nanosleep",
];
const BEGINS: &[&str] = &["accept", "accept4", "socket", "bind", "connect"];
const OPTIONS: &[&str] = &[
    "setsockopt",
    "getsockopt",
    "fcntl",
    "ioctl",
    "getsockname",
    "getpeername",
];

fn kind_of(call: &str) -> &'static str {
    let mut kinds = KINDS.iter();
    let known = kinds.find(|(.., names)| names.contains(&call));
    known.map_or("other", |(kind, ..)| kind)
}

/// The calls of a kind, by its metric's name.
pub fn of_kind(calls: &Calls, kind: &str) -> Count {
    let of_it = calls.iter().filter(|(name, _)| kind_of(name) == kind);
    of_it.map(|(_, count)| *count).sum()
}

/// All calls.
pub fn all(calls: &Calls) -> Count {
    calls.values().copied().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_add_up_to_all() {
        let names = KINDS.map(|(.., names)| names.last().copied().unwrap_or("madvise"));
        let calls: Calls = (1..)
            .zip(names)
            .map(|(calls, name)| (name.to_owned(), Count { calls, failed: 1 }))
            .collect();
        let counts = KINDS.map(|(kind, ..)| of_kind(&calls, kind));
        let counts = counts.map(|count| (count.calls, count.failed));
        assert_eq!(counts, std::array::from_fn(|kind| (kind as u64 + 1, 1)));
        let (calls_of_all, failed) = (45, 9);
        let all = all(&calls);
        assert_eq!((all.calls, all.failed), (calls_of_all, failed));
    }
}
