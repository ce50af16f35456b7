//! `qmux-bench instructions`: the instructions of a unit of work in user space, which system calls
//! do not show: copies, look-ups, ciphers, allocations. By valgrind, on the real programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::callgrind::{self, Counted, Counting as Valgrind};
use qmux_bench::harness::meter::Metered;
use qmux_bench::load::standing::Work;
use qmux_bench::report::{Metric, lower, neither};

use crate::counting::{self, Counting, Unit, exact};
use crate::options::{Common, List};
use crate::runner::{self, Case, Outcome, Session};

/// How instructions are counted.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Bytes of UDP payloads
    #[arg(long, value_name = "LIST", default_value = "64,1150")]
    sizes: List<usize>,
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
    let mut works = vec![
        ("a round trip of 64 B".to_owned(), Work::RoundTrips, 1.0),
        ("a visitor ×1".to_owned(), Work::Visitors(1), 1.0),
    ];
    let datagrams = counting::datagrams(&args.sizes, args.rate, 1, ("a datagram", 1.0));
    works.extend(datagrams);
    works.extend(counting::bytes("1000 bytes", BYTES_SHOWN));
    let case = |(name, work, shown): Unit| {
        let label = name.clone();
        let common = &common;
        let measure =
            move |session: &Session<'_>| measure(session, &label, (work, shown), args, common);
        Case {
            by_instructions: true,
            ..Case::new(name, measure)
        }
    };
    let cases: Vec<Case<'_>> = works.into_iter().map(case).collect();
    runner::run(&common, "instructions", METRICS, &cases)
}

fn measure(
    session: &Session<'_>,
    case: &str,
    (work, shown): (Work, f64),
    args: &Args,
    common: &Common,
) -> Result<Outcome, BenchError> {
    let mut counting = Counting::start(session, work, shown, common, SETTLE)?;
    let attach =
        |process: &Metered| Valgrind::start(process.role.name(), process.pid, session.site);
    let (counted, values) = counting.count(attach, Valgrind::stop)?;
    let mut of_sides = Vec::new();
    for (role, counted, units) in counted {
        if let Some(directory) = &args.functions {
            let what = [case, session.label, role.name()].join(", ");
            write_functions(directory, &what, units, &counted)?;
        }
        of_sides.push((role, "instructions", exact(counted.instructions) / units));
    }
    Ok(Outcome {
        values,
        of_sides,
        ..Outcome::default()
    })
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
