//! Instructions that a program executes in user space, counted by `valgrind --tool=callgrind`, with
//! the functions that execute them. They vary by less than a percent where times vary by tens.
//!
//! A program runs under valgrind from its start, at half its speed while nothing is counted and
//! some fifty times slower while it is. Two things are other than in real life: io_uring is not
//! used, for valgrind waits in it with all threads stopped, and the processor has no AVX-512, so
//! that ciphers take more instructions.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::BenchError;
use qmux_harness::Launch;

/// How long valgrind may take to do what it is told: it does so when the program comes out of a
/// wait.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);

/// How long the table of functions may take.
const ANNOTATE_LIMIT: Duration = Duration::from_secs(60);

/// monoio's own switch.
const NO_IO_URING: &str = "MONOIO_FORCE_LEGACY_DRIVER=1";

/// What stands before a program's command line so that its instructions can be counted. Files go to
/// this directory.
pub(super) fn wrapping(directory: &Path) -> Vec<String> {
    let pipes = directory.join("vgdb");
    let file = directory.join("callgrind.%p");
    [
        "env".to_owned(),
        NO_IO_URING.to_owned(),
        "valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        "--instr-atstart=no".to_owned(),
        // Else one busy thread keeps the others waiting for long.
        "--fair-sched=yes".to_owned(),
        format!("--vgdb-prefix={}", pipes.display()),
        format!("--callgrind-out-file={}", file.display()),
    ]
    .to_vec()
}

/// The instructions of one process, between two moments.
#[derive(Debug)]
pub struct Counting {
    name: String,
    pid: u32,
    directory: PathBuf,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Instructions of all threads.
    pub instructions: u64,
    /// By function, as callgrind_annotate reads it.
    pub file: PathBuf,
}

impl Counting {
    /// From now on the instructions of this process are counted, which runs under valgrind.
    pub fn start(name: &str, pid: u32, directory: &Path) -> Result<Self, BenchError> {
        let counting = Self {
            name: name.to_owned(),
            pid,
            directory: directory.to_owned(),
        };
        counting.tell(&["instrumentation", "on"])?;
        Ok(counting)
    }

    /// Until now.
    pub fn stop(self) -> Result<Counted, BenchError> {
        self.tell(&["instrumentation", "off"])?;
        self.tell(&["dump"])?;
        // The first dump; what the program writes at its end has no number.
        let file = self.directory.join(format!("callgrind.{}.1", self.pid));
        let text = fs::read_to_string(&file)
            .map_err(BenchError::io(format!("reading {}", file.display())))?;
        match parse_total(&text) {
            Some(instructions) => Ok(Counted { instructions, file }),
            None => Err(BenchError::Output {
                what: format!("valgrind of {}", self.name),
                problem: format!("no totals in {}", file.display()),
            }),
        }
    }

    fn tell(&self, order: &[&str]) -> Result<(), BenchError> {
        let prefix = self.directory.join("vgdb");
        let launch = Launch::new(&format!("vgdb for {}", self.name), "vgdb")
            .args([format!("--vgdb-prefix={}", prefix.display())])
            .args([format!("--pid={}", self.pid)])
            .args(order.iter().map(|word| OsString::from(*word)));
        let ended = launch.run(CONTROL_LIMIT)?;
        if ended.succeeded {
            return Ok(());
        }
        Err(ended.into_error(&launch.name))
    }
}

fn parse_total(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    total.trim().parse().ok()
}

/// The functions that were counted most, without those that they call.
pub fn functions(counted: &Counted) -> Result<String, BenchError> {
    let launch = Launch::new("callgrind_annotate", "callgrind_annotate")
        .args(["--auto=no"])
        .args([counted.file.as_os_str()]);
    launch.output(ANNOTATE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_that_of_all_parts() {
        let text = "version: 1\nevents: Ir\nsummary: 0\n\nfn=(1) main\n1 20\ntotals: 58322982\n";
        assert_eq!(parse_total(text), Some(58_322_982));
        assert_eq!(parse_total("summary: 12\n"), None);
    }

    #[test]
    fn a_process_that_valgrind_does_not_run_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = std::process::id();
        assert!(Counting::start("this test", own, directory.path()).is_err());
    }
}
