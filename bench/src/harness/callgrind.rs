//! Instructions that a program executes in user space, counted by `valgrind --tool=callgrind`, with
//! the functions that execute them. They vary by less than a percent where times vary by tens.
//!
//! A program runs under valgrind from its start, at half its speed while nothing is counted and
//! some fifty times slower while it is. Two things are other than in real life: io_uring is not
//! used, for valgrind waits in it with all threads stopped, and the processor has no AVX-512, so
//! that ciphers take more instructions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use qmux_harness::Launch;

use super::read;

/// How long valgrind may take to do what it is told: it does so when the program comes out of a
/// wait.
const CONTROL_LIMIT: Duration = Duration::from_secs(30);

/// How long the table of functions may take.
const ANNOTATE_LIMIT: Duration = Duration::from_secs(60);

/// monoio's own switch.
const NO_IO_URING: &str = "MONOIO_FORCE_LEGACY_DRIVER=1";

/// What stands before a program's command line so that its instructions can be counted. Files go to
/// this directory.
pub(super) fn wrapping(directory: &Path) -> [String; 8] {
    let directory = directory.display();
    [
        "env".into(),
        NO_IO_URING.into(),
        "valgrind".into(),
        "--tool=callgrind".into(),
        "--instr-atstart=no".into(),
        // Else one busy thread keeps the others waiting for long.
        "--fair-sched=yes".into(),
        format!("--vgdb-prefix={directory}/vgdb"),
        format!("--callgrind-out-file={directory}/callgrind.%p"),
    ]
}

/// The instructions of one process, between two moments.
#[derive(Debug)]
pub(crate) struct Counting {
    name: &'static str,
    pid: u32,
    directory: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) instructions: u64,
    /// By function, as callgrind_annotate reads it.
    file: PathBuf,
}

impl Counting {
    /// From now on the instructions of this process are counted, which runs under valgrind.
    pub(crate) fn start(name: &'static str, pid: u32, directory: &Path) -> Result<Self> {
        let counting = Self {
            name,
            pid,
            directory: directory.to_owned(),
        };
        counting.tell("instrumentation on")?;
        Ok(counting)
    }

    pub(crate) fn stop(self) -> Result<Counted> {
        self.tell("instrumentation off")?;
        self.tell("dump")?;
        // The first dump; what the program writes at its end has no number.
        let file = self.directory.join(format!("callgrind.{}.1", self.pid));
        let missing = || format!("valgrind of {}: no totals in {}", self.name, file.display());
        let instructions = parse_total(&read(&file)?).with_context(missing)?;
        Ok(Counted { instructions, file })
    }

    fn tell(&self, order: &str) -> Result<()> {
        let prefix = self.directory.join("vgdb");
        Launch::new(&format!("vgdb for {}", self.name), "vgdb")
            .args([format!("--vgdb-prefix={}", prefix.display())])
            .words(&format!("--pid={} {order}", self.pid))
            .succeed(CONTROL_LIMIT)?;
        Ok(())
    }
}

fn parse_total(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    total.trim().parse().ok()
}

impl Counted {
    /// The functions that were counted most, without those that they call.
    pub(crate) fn functions(&self) -> Result<String> {
        let launch = Launch::new("callgrind_annotate", "callgrind_annotate").args(["--auto=no"]);
        Ok(launch.args([&self.file]).output(ANNOTATE_LIMIT)?)
    }
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
