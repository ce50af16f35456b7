//! `qmux-bench goals`: measures what the goals are about, each by its own command, and prints the
//! one table.

use std::path::{Path, PathBuf};
use std::process::Command;

use qmux_bench::goals::{ALLOCATIONS, Found, GOALS, PROBES, Page, Probe, Tunnel};
use qmux_bench::harness::BenchError;
use qmux_bench::harness::machine;
use qmux_harness::{Ended, Launch};
use std::time::Duration;

/// Which goals are measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these goals
    #[arg(long, value_name = "LIST", value_delimiter = ',',
          value_parser = clap::value_parser!(u8).range(1..=i64::from(GOALS)))]
    goals: Vec<u8>,
    /// Only these measurements: tcp, veth, udp, packets, latency, connect, flows, link, scale,
    /// syscalls, programs, allocations
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
    fn spec(&self, tunnel: Tunnel) -> Option<String> {
        let label = tunnel.label();
        match tunnel {
            Tunnel::Before => {
                let program = self.before.as_ref()?;
                Some(format!("{label}=qmux-dp:{}", program.display()))
            }
            Tunnel::Rathole => qmux_harness::find("rathole").map(|_| label.to_owned()),
            _ => Some(label.to_owned()),
        }
    }

    /// The options that repeat a probe's measurement.
    fn options(&self, probe: &Probe, out: &Path) -> Vec<String> {
        let tunnels: Vec<String> = probe
            .tunnels
            .iter()
            .filter_map(|tunnel| self.spec(*tunnel))
            .collect();
        let programs = self.programs.as_ref().map(|it| it.display().to_string());
        let given = [
            ("tunnels", Some(tunnels.join(","))),
            ("seconds", self.seconds.clone()),
            ("repeats", self.repeats.clone()),
            ("programs", programs),
            ("out", Some(out.display().to_string())),
        ];
        let is_given = |name: &str| {
            given
                .iter()
                .any(|(it, value)| *it == name && value.is_some())
        };
        let own = probe.pairs().filter(|(name, _)| !is_given(name));
        let own = own.map(|(name, value)| (name, value.to_owned()));
        let given = given
            .iter()
            .filter_map(|(name, value)| Some((*name, value.clone()?)));
        let words = own.chain(given);
        let words = words.flat_map(|(name, value)| [format!("--{name}"), value]);
        let mut options = vec![probe.bench.to_owned()];
        options.extend(words);
        options
    }
}

/// Whether everything that was asked for could be measured; a goal that is missed is no failure.
pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    if let Some(before) = args.before.as_ref().filter(|it| !it.is_file()) {
        let problem = format!("--before: there is no {}", before.display());
        return Err(BenchError::Failed(problem));
    }
    let own = std::env::current_exe().map_err(BenchError::io("this program's path"))?;
    let kept = if args.keep {
        Found::read(&args.out)
    } else {
        Found::default()
    };
    let mut complete = true;
    for probe in PROBES {
        if !args.wants(probe.name, probe.goals) || kept.has(probe.name) {
            continue;
        }
        let out = args.out.join(probe.name);
        // One that dies before it writes must not be judged by what another run left.
        remove(&out.join(format!("{}.json", probe.bench)))?;
        let options = args.options(probe, &out);
        eprintln!("== {}: qmux-bench {}", probe.name, options.join(" "));
        // A program of its own, whose command stands in its report. If this one is ended it is told
        // so, in order that it takes down what it has set up.
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&own)
            .args(&options)
            .status();
        // What was measured before is shown whatever becomes of one of them.
        complete &= match status {
            Ok(status) => status.success(),
            Err(error) => {
                eprintln!("== {}: not started: {error}", probe.name);
                false
            }
        };
    }
    if args.wants(ALLOCATIONS, &[8]) && !kept.has(ALLOCATIONS) {
        complete &= count_allocations(args).unwrap_or_else(|error| {
            eprintln!("== {ALLOCATIONS}: not counted: {error}");
            false
        });
    }
    let page = Page::of(&Found::read(&args.out));
    write(&page, &args.out)?;
    println!("\n{}", page.to_text());
    Ok(complete)
}

/// Removes a file, if it is there.
fn remove(file: &Path) -> Result<(), BenchError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(BenchError::io(format!(
            "removing {}",
            file.display()
        ))(error)),
        _ => Ok(()),
    }
}

/// Whether what was counted can be judged: the program went through all loads. Then it ends well,
/// or lists the loads that allocate too much.
fn has_counted(ended: &Ended) -> bool {
    let lists = |line: &String| line.contains("allocations of ours per packet");
    ended.succeeded || ended.lines.iter().any(lists)
}

/// Whether there was a program that counts. That it allocates too much is for the table to say.
fn count_allocations(args: &Args) -> Result<bool, BenchError> {
    let directory = args.out.join(ALLOCATIONS);
    let file = directory.join("allocations.txt");
    remove(&file)?;
    let programs = args.programs.clone();
    let programs = programs.unwrap_or_else(qmux_harness::own_directory);
    let beside = programs.join("qmux-dp-counting");
    let program = args.counting.clone().unwrap_or(beside);
    if !program.is_file() {
        eprintln!(
            "== {ALLOCATIONS}: not counted, there is no {}; scripts/goals.sh builds it",
            program.display()
        );
        return Ok(false);
    }
    eprintln!("== {ALLOCATIONS}: {} allocations", program.display());
    let (date, commit) = machine::date_and_commit();
    let ended = Launch::new(ALLOCATIONS, program)
        .args([ALLOCATIONS])
        .run(COUNTING_LIMIT)?;
    if !has_counted(&ended) {
        return Err(ended.into_error(ALLOCATIONS));
    }
    create(&directory)?;
    let head = Found::allocations_head(&date, &commit);
    save(&file, &(head + &ended.output))?;
    eprint!("{}", ended.output);
    Ok(true)
}

fn create(directory: &Path) -> Result<(), BenchError> {
    std::fs::create_dir_all(directory)
        .map_err(BenchError::io(format!("making {}", directory.display())))
}

fn save(path: &Path, text: &str) -> Result<(), BenchError> {
    std::fs::write(path, text).map_err(BenchError::io(format!("writing {}", path.display())))
}

fn write(page: &Page, directory: &Path) -> Result<(), BenchError> {
    create(directory)?;
    let json = serde_json::to_string_pretty(page)
        .map_err(|error| BenchError::Failed(format!("the goals as JSON: {error}")))?;
    save(&directory.join("goals.json"), &(json + "\n"))?;
    save(&directory.join("goals.md"), &page.to_markdown())
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
