//! System calls of a running process, counted by strace(1), which attaches to all of its threads.
//!
//! A traced process stops twice for each call and is slow therefore: nothing else that is measured
//! meanwhile means anything, and what a program does in batches it does in larger ones. Only counts
//! per unit of work are taken from it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::BenchError;
use qmux_harness::{Launch, Program};

/// How long strace may take to attach: it stops every thread of the process.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take to let go and to write what it has counted.
const DETACH_LIMIT: Duration = Duration::from_secs(10);

/// What to do where strace may not attach.
const HINT: &str = "strace could not attach; it needs root's rights or CAP_SYS_PTRACE (in a \
                    container also --cap-add SYS_PTRACE), or the same user and the sysctl \
                    kernel.yama.ptrace_scope = 0";

/// How often a call was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Times, whether it succeeded or not.
    pub calls: u64,
    /// Times that it returned an error, as where nothing was to be read.
    pub failed: u64,
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            calls: sum.calls + count.calls,
            failed: sum.failed + count.failed,
        })
    }
}

/// The calls that a process has made, by name.
pub type Calls = BTreeMap<String, Count>;

/// Counts from [`Tracer::attach`] to [`Tracer::detach`].
#[derive(Debug)]
pub struct Tracer {
    strace: Program,
}

impl Tracer {
    /// Attaches to all threads of a process and returns when every call is counted.
    pub fn attach(name: &str, pid: u32) -> Result<Self, BenchError> {
        let strace = Launch::new(&format!("strace of {name}"), "strace")
            .args(["-c", "-f", "-p", &pid.to_string()])
            .start()?;
        let attached = strace.wait_for_line("its attachment", ATTACH_LIMIT, is_attached);
        match attached {
            Ok(_) => Ok(Self { strace }),
            Err(error) => Err(BenchError::Failed(format!("{HINT}: {error}"))),
        }
    }

    /// Lets go, and returns what was counted.
    pub fn detach(mut self) -> Result<Calls, BenchError> {
        if !self.strace.terminate(DETACH_LIMIT) {
            return Err(BenchError::TimedOut {
                what: "strace's end".into(),
                limit: DETACH_LIMIT,
                log: String::new(),
            });
        }
        let lines = self.strace.lines();
        Ok(parse(lines.iter().map(String::as_str)))
    }
}

fn is_attached(line: &str) -> bool {
    line.contains(" attached")
}

/// The table that `strace -c` prints: share, seconds, µs per call, calls, errors if there are any,
/// name.
fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Calls {
    lines.into_iter().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(String, Count)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (calls, failed, name) = match words.as_slice() {
        [_, _, _, calls, name] => (calls, "0", name),
        [_, _, _, calls, failed, name] => (calls, *failed, name),
        _ => return None,
    };
    // The share is a number in every line of the table but its head and its rules; the last line is
    // the sum.
    words[0].parse::<f64>().ok()?;
    let count = Count {
        calls: calls.parse().ok()?,
        failed: failed.parse().ok()?,
    };
    (*name != "total").then(|| ((*name).to_owned(), count))
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
        let calls = parse(TABLE.lines());
        assert_eq!(calls.len(), 3);
        let (calls_made, failed) = (610, 305);
        let receive = Count {
            calls: calls_made,
            failed,
        };
        assert_eq!(calls["recvfrom"], receive);
        assert_eq!(calls["sendmsg"].failed, 0);
    }

    #[test]
    fn only_the_line_that_says_so_is_an_attachment() {
        let lines: Vec<&str> = TABLE.lines().filter(|line| is_attached(line)).collect();
        assert_eq!(lines, ["strace: Process 4242 attached with 5 threads"]);
        assert!(!is_attached(
            "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted"
        ));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // The largest id that a kernel can give is 2^22.
        let error = Tracer::attach("nobody", 1 << 23).expect_err("nobody is there");
        assert!(error.to_string().contains("attach"), "{error}");
    }
}
