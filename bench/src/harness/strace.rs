//! System calls of a running process, counted by strace(1), which attaches to all of its threads.
//!
//! A traced process stops twice for each call and is slow therefore: nothing else that is measured
//! meanwhile means anything, and what a program does in batches it does in larger ones. Only counts
//! per unit of work are taken from it.
//!
//! What a call is made for is told by its name alone, for strace that counts does not tell which
//! socket a call was for. The programs measured here take `sendmsg` and `recvmsg` for UDP and the
//! plain calls for TCP; where one does otherwise (rathole sends UDP by `sendto`), its calls stand
//! in the other column, and the sum is right.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use qmux_harness::{Launch, Program};

/// How long strace may take to attach (it stops every thread of the process), and how long to let
/// go and to write what it has counted.
const LIMIT: Duration = Duration::from_secs(10);

/// What to do where strace may not attach.
const HINT: &str = "strace could not attach; it needs root's rights or CAP_SYS_PTRACE (in a \
                    container also --cap-add SYS_PTRACE), or the same user and the sysctl \
                    kernel.yama.ptrace_scope = 0";

/// What calls are for: the metric, the head of its column, the names. All others are of the last
/// kind. Submitting to io_uring is the call that waits.
pub(crate) const KINDS: [(&str, &str, &str); 9] = [
    ("wait", "enter, wait", WAITS),
    ("udp_send", "UDP send", "sendmsg sendmmsg"),
    ("udp_receive", "UDP receive", "recvmsg recvmmsg"),
    ("tcp_send", "TCP send", "sendto writev"),
    ("tcp_receive", "TCP receive", "recvfrom readv"),
    ("begin", "accept, connect", BEGINS),
    ("options", "options", OPTIONS),
    ("end", "close", "close shutdown"),
    (OTHER, "other", ""),
];
const OTHER: &str = "other";
const WAITS: &str = "io_uring_enter epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 \
                     futex sched_yield nanosleep clock_nanosleep";
const BEGINS: &str = "accept accept4 socket bind connect";
const OPTIONS: &str = "setsockopt getsockopt fcntl ioctl getsockname getpeername";

/// How many times a call was made, and how many times it failed, for example because there was
/// nothing to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The number of calls, whether they succeeded or not.
    pub calls: u64,
    pub(crate) failed: u64,
}

/// The calls that a process has made, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls(BTreeMap<String, Count>);

impl Calls {
    /// The calls of a kind, by its metric's name.
    pub fn of_kind(&self, kind: &str) -> Count {
        self.sum(|call| kind_of(call) == kind)
    }

    /// All calls.
    pub fn all(&self) -> Count {
        self.sum(|_| true)
    }

    fn sum(&self, wanted: impl Fn(&str) -> bool) -> Count {
        let counts = self.0.iter().filter(|(name, _)| wanted(name));
        counts.fold(Count::default(), |sum, (_, count)| Count {
            calls: sum.calls + count.calls,
            failed: sum.failed + count.failed,
        })
    }

    /// The table that `strace -c` prints.
    pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        Self(lines.into_iter().filter_map(parse_line).collect())
    }
}

fn kind_of(call: &str) -> &'static str {
    let mut kinds = KINDS.iter();
    let known = kinds.find(|(.., names)| names.split(' ').any(|name| name == call));
    known.map_or(OTHER, |(kind, ..)| kind)
}

/// Share, seconds, µs per call, calls, errors if there are any, name.
fn parse_line(line: &str) -> Option<(String, Count)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (calls, failed, name) = match words.as_slice() {
        [_, _, _, calls, name] => (calls, "0", *name),
        [_, _, _, calls, failed, name] => (calls, *failed, *name),
        _ => return None,
    };
    // The share is a number in every line of the table but its head and its rules; the last line is
    // the sum.
    words[0].parse::<f64>().ok()?;
    let count = Count {
        calls: calls.parse().ok()?,
        failed: failed.parse().ok()?,
    };
    (name != "total").then(|| (name.to_owned(), count))
}

/// Counts from [`Tracer::attach`] to [`Tracer::detach`].
#[derive(Debug)]
pub struct Tracer(Program);

impl Tracer {
    /// Attaches to all threads of a process and returns when every call is counted.
    pub fn attach(name: &str, pid: u32) -> Result<Self> {
        let strace = Launch::new(&format!("strace of {name}"), "strace")
            .words(&format!("-c -f -p {pid}"))
            .start()?;
        strace
            .wait_for_line("its attachment", LIMIT, is_attached)
            .map_err(|error| anyhow!("{HINT}: {error}"))?;
        Ok(Self(strace))
    }

    /// Lets go, and returns what was counted.
    pub fn detach(mut self) -> Result<Calls> {
        let ended = self.0.terminate(LIMIT);
        ensure!(ended, "strace's end took longer than {LIMIT:?}");
        Ok(Calls::parse(self.0.lines().iter().map(String::as_str)))
    }
}

fn is_attached(line: &str) -> bool {
    line.contains(" attached")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
strace: Process 4242 attached with 5 threads
strace: Process 4242 detached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.40    0.003070           3       915           io_uring_enter
 20.00    0.001000           1       610       305 recvfrom
 18.60    0.000930           3       305           sendmsg
------ ----------- ----------- --------- --------- ----------------
100.00    0.005000           2      1830       305 total
";

    #[test]
    fn calls_are_read_from_the_table() {
        let calls = Calls::parse(TABLE.lines());
        assert_eq!(calls.0.len(), 3);
        let of = |kind| {
            let count = calls.of_kind(kind);
            (count.calls, count.failed)
        };
        assert_eq!([of("tcp_receive"), of("udp_send")], [(610, 305), (305, 0)]);
    }

    #[test]
    fn the_kinds_add_up_to_all() {
        let name = |names: &str| names.split(' ').next_back().map(str::to_owned);
        let lines: Vec<String> = (1..)
            .zip(KINDS)
            .map(|(count, (.., names))| {
                let name = name(names).filter(|it| !it.is_empty());
                format!("1 1 1 {count} 1 {}", name.unwrap_or("madvise".into()))
            })
            .collect();
        let calls = Calls::parse(lines.iter().map(String::as_str));
        let counts = KINDS.map(|(kind, ..)| calls.of_kind(kind).calls);
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!((calls.all().calls, calls.all().failed), (45, 9));
    }

    #[test]
    fn only_the_line_that_says_so_is_an_attachment() {
        let lines: Vec<&str> = TABLE.lines().filter(|line| is_attached(line)).collect();
        assert_eq!(lines, ["strace: Process 4242 attached with 5 threads"]);
        let refused = "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted";
        assert!(!is_attached(refused));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // The largest id that a kernel can give is 2^22.
        let error = Tracer::attach("nobody", 1 << 23).expect_err("nobody is there");
        assert!(error.to_string().contains("attach"), "{error}");
    }
}
