//! `qmux-bench goals`: measures what the goals are about, each by its own command, and prints the one table.

use std::path::{Path, PathBuf};
use std::process::Command;

use qmux_bench::goals::{ALLOCATIONS, Found, PROBES, Page, Probe, Tunnel};
use qmux_bench::harness::BenchError;
use qmux_bench::harness::program::{self, Launch};
use std::time::Duration;

/// Which goals are measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these goals
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=8))]
    goals: Vec<u8>,
    /// Only these measurements: tcp, veth, udp, packets, latency, connect, flows, link, scale, allocations
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
    /// A qmux-dp built with the feature count-allocations [default: qmux-dp-counting where qmux-bench is]
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

/// How it is repeated.
const COUNTING_COMMAND: &str =
    "cargo run --release -p qmux-dp --features count-allocations -- allocations";

impl Args {
    fn wants(&self, probe: &str, goals: &[u8]) -> bool {
        let by_goal = self.goals.is_empty() || goals.iter().any(|it| self.goals.contains(it));
        let by_name = self.probes.is_empty() || self.probes.iter().any(|it| it == probe);
        !self.table && by_goal && by_name
    }

    fn programs(&self) -> PathBuf {
        self.programs.clone().unwrap_or_else(|| {
            let own = std::env::current_exe().ok();
            own.and_then(|it| Some(it.parent()?.to_owned()))
                .unwrap_or_default()
        })
    }

    /// A tunnel as `--tunnels` has it; `None` if it is not there.
    fn spec(&self, tunnel: Tunnel) -> Option<String> {
        let label = tunnel.label();
        match tunnel {
            Tunnel::Before => {
                let program = self.before.as_ref()?;
                Some(format!("{label}=qmux-dp:{}", program.display()))
            }
            Tunnel::Rathole => program::find("rathole").map(|_| label.to_owned()),
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
        let seconds = self.seconds.as_deref().unwrap_or(probe.seconds);
        let repeats = self.repeats.as_deref().unwrap_or(probe.repeats);
        let mut options = vec![probe.bench.to_owned()];
        options.extend(probe.options.iter().map(|it| (*it).to_owned()));
        options.extend(["--tunnels".into(), tunnels.join(",")]);
        options.extend(["--seconds".into(), seconds.to_owned()]);
        options.extend(["--repeats".into(), repeats.to_owned()]);
        if let Some(programs) = &self.programs {
            options.extend(["--programs".into(), programs.display().to_string()]);
        }
        options.extend(["--out".into(), out.display().to_string()]);
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
        let options = args.options(probe, &args.out.join(probe.name));
        eprintln!("== {}: qmux-bench {}", probe.name, options.join(" "));
        // A program of its own, whose command stands in its report. If this one is ended it is told so, in order that it
        // takes down what it has set up.
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&own)
            .args(&options)
            .status()
            .map_err(BenchError::io(format!("starting {}", probe.name)))?;
        complete &= status.success();
    }
    if args.wants(ALLOCATIONS, &[8]) && !kept.has(ALLOCATIONS) {
        complete &= count_allocations(args)?;
    }
    let page = Page::of(&Found::read(&args.out), COUNTING_COMMAND);
    write(&page, &args.out)?;
    println!("\n{}", page.to_text());
    Ok(complete)
}

/// Whether there was a program that counts. That it allocates too much is for the table to say.
fn count_allocations(args: &Args) -> Result<bool, BenchError> {
    let beside = args.programs().join("qmux-dp-counting");
    let program = args.counting.clone().unwrap_or(beside);
    if !program.is_file() {
        eprintln!(
            "== {ALLOCATIONS}: not counted, there is no {}; scripts/goals.sh builds it",
            program.display()
        );
        return Ok(false);
    }
    eprintln!("== {ALLOCATIONS}: {} allocations", program.display());
    let printed = Launch::new(ALLOCATIONS, program)
        .args([ALLOCATIONS])
        .output(COUNTING_LIMIT)?;
    let directory = args.out.join(ALLOCATIONS);
    create(&directory)?;
    save(&directory.join("allocations.txt"), &printed)?;
    eprint!("{printed}");
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
