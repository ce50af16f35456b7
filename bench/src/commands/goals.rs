//! `qmux-bench goals`: measures what the goals are about, each by its own command, and prints the
//! one table.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use qmux_harness::{Ended, Launch};

use crate::commands::options::Mistake;
use crate::goals::{ALLOCATIONS, BEFORE, Found, GOALS, PROBES, Page, Probe, RATHOLE};
use crate::harness::cleanup::say;
use crate::harness::{machine, make, write};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these goals
    #[arg(long, value_name = "LIST", value_delimiter = ',',
          value_parser = clap::value_parser!(u8).range(1..=i64::from(GOALS)))]
    goals: Vec<u8>,
    /// Only these measurements: tcp, veth, udp, packets, latency, connect, flows, link, lane,
    /// scale, syscalls, programs, cores, allocations
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = probe_name)]
    probes: Vec<String>,
    /// Measure nothing; the table of what is in the directory of results already
    #[arg(long)]
    table: bool,
    /// Do not measure again what is there already
    #[arg(long)]
    keep: bool,
    /// An older qmux-dp, for a column of values before
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// A qmux-dp built with the feature count-allocations [default: qmux-dp-counting where
    /// qmux-bench is]
    #[arg(long, value_name = "PROGRAM")]
    counting: Option<PathBuf>,
    /// Where qmux-dp and quinn-dp are [default: where qmux-bench is]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Rounds of each measurement, in place of its own number
    #[arg(long, value_name = "N")]
    repeats: Option<String>,
    /// Seconds of each run, in place of its own
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<String>,
    /// Where the table and, in a directory for each measurement, its report go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn probe_name(text: &str) -> Result<String, String> {
    let mut names = PROBES.iter().map(|it| it.name).chain([ALLOCATIONS]);
    match names.find(|name| *name == text) {
        Some(name) => Ok(name.to_owned()),
        None => {
            let known: Vec<&str> = PROBES.iter().map(|it| it.name).collect();
            Err(format!("there are {} and {ALLOCATIONS}", known.join(", ")))
        }
    }
}

/// How long counting allocations may take.
const COUNTING_LIMIT: Duration = Duration::from_secs(120);

impl Args {
    fn wants(&self, probe: &str, goals: &[u8]) -> bool {
        let by_goal = self.goals.is_empty() || goals.iter().any(|it| self.goals.contains(it));
        let by_name = self.probes.is_empty() || self.probes.iter().any(|it| it == probe);
        !self.table && by_goal && by_name
    }

    /// A tunnel as `--tunnels` has it; `None` if it is not there.
    fn spec(&self, tunnel: &str) -> Option<String> {
        match tunnel {
            BEFORE => {
                let program = self.before.as_ref()?;
                Some(format!("{BEFORE}=qmux-dp:{}", program.display()))
            }
            RATHOLE => qmux_harness::find(RATHOLE).map(|_| tunnel.to_owned()),
            _ => Some(tunnel.to_owned()),
        }
    }

    /// The words of a probe's command: its own options but for those that were given.
    fn words(&self, probe: &Probe, out: &Path) -> Vec<String> {
        let tunnels = probe.tunnels.iter().filter_map(|tunnel| self.spec(tunnel));
        let tunnels: Vec<String> = tunnels.collect();
        let programs = self.programs.as_ref().map(|it| it.display().to_string());
        let given = [
            ("tunnels", Some(tunnels.join(","))),
            ("seconds", self.seconds.clone()),
            ("repeats", self.repeats.clone()),
            ("programs", programs),
            ("out", Some(out.display().to_string())),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let given: Vec<(&str, String)> = given.collect();
        let own = probe.pairs().map(|(name, value)| (name, value.to_owned()));
        let own = own.filter(|(name, _)| given.iter().all(|(it, _)| it != name));
        let words = own.chain(given.iter().cloned());
        let words = words.flat_map(|(name, value)| [format!("--{name}"), value]);
        [probe.bench.to_owned()].into_iter().chain(words).collect()
    }
}

/// Whether everything that was asked for could be measured; a goal that is missed is no failure.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(before) = args.before.as_ref().filter(|it| !it.is_file()) {
        bail!(Mistake(format!(
            "--before: there is no {}",
            before.display()
        )));
    }
    let own = std::env::current_exe().context("this program's path")?;
    let found = || Found::read(&args.out);
    let kept = if args.keep { found() } else { Found::default() };
    let mut complete = true;
    for probe in PROBES {
        if !args.wants(probe.name, probe.goals) || kept.has(probe.name) {
            continue;
        }
        let out = args.out.join(probe.name);
        // One that dies before it writes must not be judged by what another run left.
        remove(&out.join(format!("{}.json", probe.bench)))?;
        let words = args.words(probe, &out);
        eprintln!("== {}: qmux-bench {}", probe.name, words.join(" "));
        // A program of its own, whose command stands in its report. If this one is ended it is told
        // so, in order that it takes down what it has set up.
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&own)
            .args(&words)
            .status();
        // What was measured before is shown whatever becomes of one of them.
        complete &= status.map_or_else(
            |error| {
                eprintln!("== {}: not started: {error}", probe.name);
                false
            },
            |status| status.success(),
        );
    }
    if args.wants(ALLOCATIONS, &[8]) && !kept.has(ALLOCATIONS) {
        complete &= count_allocations(args).unwrap_or_else(|error| {
            eprintln!("== {ALLOCATIONS}: not counted: {error:#}");
            false
        });
    }
    let page = Page::of(&found());
    make(&args.out)?;
    let json = serde_json::to_string_pretty(&page)? + "\n";
    write(&args.out.join("goals.json"), &json)?;
    write(&args.out.join("goals.md"), &page.to_markdown())?;
    say!("\n{}", page.to_text());
    Ok(complete)
}

fn remove(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("removing {}", file.display())),
    }
}

/// Whether what was counted can be judged: the program went through all loads. Then it ends well,
/// or lists the loads that allocate too much.
fn has_counted(ended: &Ended) -> bool {
    let lists = |line: &String| line.contains("allocations of ours per packet");
    ended.succeeded || ended.lines.iter().any(lists)
}

/// Whether there was a program that counts. That it allocates too much is for the table to say.
fn count_allocations(args: &Args) -> Result<bool> {
    let directory = args.out.join(ALLOCATIONS);
    let file = directory.join("allocations.txt");
    remove(&file)?;
    let programs = args.programs.clone();
    let programs = programs.unwrap_or_else(qmux_harness::own_directory);
    let beside = programs.join("qmux-dp-counting");
    let program = args.counting.clone().unwrap_or(beside);
    let shown = program.display().to_string();
    if !program.is_file() {
        eprintln!("== {ALLOCATIONS}: not counted, there is no {shown}; scripts/goals.sh builds it");
        return Ok(false);
    }
    eprintln!("== {ALLOCATIONS}: {shown} allocations");
    let (date, commit) = machine::date_and_commit();
    let launch = Launch::new(ALLOCATIONS, program).args([ALLOCATIONS]);
    let ended = launch.run(COUNTING_LIMIT)?;
    if !has_counted(&ended) {
        return Err(ended.into_error(ALLOCATIONS).into());
    }
    make(&directory)?;
    let head = Found::allocations_head(&date, &commit);
    write(&file, &(head + &ended.output))?;
    eprint!("{}", ended.output);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_broke_off_is_none() {
        let ended = |succeeded, line: &str| Ended {
            succeeded,
            output: String::new(),
            lines: vec![line.to_owned()],
        };
        assert!(has_counted(&ended(true, "none of ours per packet")));
        let listed = "qmux-dp: UDP, 64 bytes: 0.100 allocations of ours per packet";
        assert!(has_counted(&ended(false, listed)));
        assert!(!has_counted(&ended(false, "TCP bulk: connection refused")));
    }
}
