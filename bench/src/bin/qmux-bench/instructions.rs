//! `qmux-bench instructions`: the instructions of a unit of work in user space, which system calls
//! do not show: copies, look-ups, ciphers, allocations. By valgrind, on the real programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::callgrind::{self, Counted, Counting};
use qmux_bench::harness::meter::Role;
use qmux_bench::load::bulk::Way;
use qmux_bench::load::standing::{Standing, Work};
use qmux_bench::report::{Metric, lower, neither};

use crate::options::Common;
use crate::runner::{self, Bench, Case, Outcome, Session};

/// How instructions are counted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Bytes of UDP payloads
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "64,1150"
    )]
    sizes: Vec<usize>,
    /// UDP packets per second; few enough that a counted tunnel, which is slow, loses none
    #[arg(long, value_name = "PACKETS", default_value_t = 2_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Write the functions that were counted most, a file for each case, tunnel and side
    #[arg(long, value_name = "DIR")]
    functions: Option<PathBuf>,
}

const METRICS: &[Metric] = &[
    lower("server_instructions", "server", 0).main(),
    lower("client_instructions", "client", 0).main(),
    neither("units", "units", 0),
    lower("lost_percent", "lost %", 2),
];

/// How long a load has stood still before counting begins or ends.
const SETTLE: Duration = Duration::from_millis(300);

/// Bytes are many; a thousand have a number that one can read.
const BYTES_SHOWN: f64 = 1_000.0;

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let common = args.common.with_processes("instructions")?;
    for name in ["valgrind", "vgdb", "callgrind_annotate"] {
        if qmux_harness::find(name).is_none() {
            return Err(BenchError::Failed(format!(
                "{name} is not in PATH; on Debian the package valgrind has it"
            )));
        }
    }
    if let Some(directory) = &args.functions {
        fs::create_dir_all(directory)
            .map_err(BenchError::io(format!("making {}", directory.display())))?;
    }
    let bench = Bench {
        name: "instructions",
        metrics: METRICS,
        cases: cases(args, &common),
    };
    runner::run(&common, &bench)
}

fn cases<'a>(args: &'a Args, common: &'a Common) -> Vec<Case<'a>> {
    let mut works = vec![
        ("a round trip of 64 B".to_owned(), Work::RoundTrips, 1.0),
        ("a visitor ×1".to_owned(), Work::Visitors(1), 1.0),
    ];
    works.extend(args.sizes.iter().map(|&payload_bytes| {
        let name = format!("a datagram of {payload_bytes} B at {}/s", args.rate);
        let work = Work::Datagrams {
            payload_bytes,
            rate: f64::from(args.rate),
            burst_packets: 1,
        };
        (name, work, 1.0)
    }));
    for (way, name) in [(Way::Up, "service"), (Way::Down, "visitor")] {
        let name = format!("1000 bytes to the {name}");
        works.push((name, Work::Bulk(way), BYTES_SHOWN));
    }
    let case = |(name, work, shown): (String, Work, f64)| {
        let label = name.clone();
        let measure =
            move |session: &Session<'_>| measure(session, &label, (work, shown), args, common);
        Case::new(name, measure).by_instructions()
    };
    works.into_iter().map(case).collect()
}

fn measure(
    session: &Session<'_>,
    case: &str,
    (work, shown): (Work, f64),
    args: &Args,
    common: &Common,
) -> Result<Outcome, BenchError> {
    let mut load = Standing::start(work, session.visit, session.service()?)?;
    load.work(common.warm_up())?;
    thread::sleep(SETTLE);
    let sent = load.sent();
    let mut started = Vec::new();
    for process in &session.processes {
        let (metric, side) = match process.role {
            Role::Server => ("server_instructions", "server"),
            Role::Client => ("client_instructions", "client"),
            Role::Load => continue,
        };
        let counting = Counting::start(side, process.pid, session.site)?;
        started.push((metric, side, counting, load.done()));
    }
    load.work(common.measure())?;
    thread::sleep(SETTLE);
    let mut values = Vec::new();
    for (metric, side, counting, began) in started {
        let ended = load.done();
        let counted = counting.stop()?;
        let units = exact(ended - began) / shown;
        if units <= 0.0 {
            return Err(BenchError::Failed("no work was done".into()));
        }
        if let Some(directory) = &args.functions {
            let what = [case, session.label, side].join(", ");
            write_functions(directory, &what, units, &counted)?;
        }
        values.push((metric, exact(counted.instructions) / units));
        values.push(("units", units));
    }
    if let Some((before, after)) = sent.zip(load.sent()) {
        let arrived = values.last().map_or(0.0, |(_, units)| units * shown);
        let lost = 1.0 - arrived / exact(after - before).max(1.0);
        values.push(("lost_percent", lost * 100.0));
    }
    Ok(Outcome {
        values,
        ..Outcome::default()
    })
}

fn exact(count: u64) -> f64 {
    count as f64
}

/// In a file whose name a shell takes as it is.
fn write_functions(
    directory: &Path,
    what: &str,
    units: f64,
    counted: &Counted,
) -> Result<(), BenchError> {
    let name: String = what
        .chars()
        .map(|it| if it.is_ascii_alphanumeric() { it } else { '-' })
        .collect();
    let file = directory.join(format!("{name}.txt"));
    let each = exact(counted.instructions) / units;
    let head = format!("{what}: {each:.0} instructions each, over {units:.0} of them\n");
    fs::write(&file, head + &callgrind::functions(counted)?)
        .map_err(BenchError::io(format!("writing {}", file.display())))
}
