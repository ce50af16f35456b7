//! `qmux-bench instructions`: the instructions of a unit of work in user space, which system calls
//! do not show: copies, look-ups, ciphers, allocations. By valgrind, on the real programs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::commands::counting::{self, Counting, Unit};
use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Case, Outcome, Session};
use crate::harness::callgrind::Counting as Valgrind;
use crate::harness::meter::Metered;
use crate::harness::{make, write};
use crate::load::standing::Work;
use crate::report::{Metric, lower, neither};

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

pub(crate) fn run(args: &Args) -> Result<bool> {
    let common = args.common.with_processes("instructions")?;
    for name in ["valgrind", "vgdb", "callgrind_annotate"] {
        let is_there = qmux_harness::find(name).is_some();
        ensure!(
            is_there,
            "{name} is not in PATH; on Debian the package valgrind has it"
        );
    }
    if let Some(directory) = &args.functions {
        make(directory)?;
    }
    let mut works = vec![
        ("a round trip of 64 B".to_owned(), Work::RoundTrips, 1.0),
        ("a visitor ×1".to_owned(), Work::Visitors(1), 1.0),
    ];
    let datagrams = counting::datagrams(&args.sizes, args.rate, 1, ("a datagram", 1.0));
    works.extend(datagrams);
    works.extend(counting::bytes("1000 bytes", BYTES_SHOWN));
    let case = |(name, work, shown): Unit| {
        let (label, common) = (name.clone(), &common);
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
    work: (Work, f64),
    args: &Args,
    common: &Common,
) -> Result<Outcome> {
    let mut counting = Counting::start(session, work, common, SETTLE)?;
    let attach = |process: &Metered| {
        Valgrind::start(process.role.name(), process.pid, session.setup.site.path())
    };
    let (counted, values) = counting.count(attach, Valgrind::stop)?;
    let mut of_sides = Vec::new();
    for (role, counted, units) in counted {
        let each = counted.instructions as f64 / units;
        if let Some(directory) = &args.functions {
            let what = [case, session.spec.label.as_str(), role.name()].join(", ");
            // A shell takes the file's name as it is.
            let name = what.replace(|it: char| !it.is_ascii_alphanumeric(), "-");
            let head = format!("{what}: {each:.0} instructions each, over {units:.0} of them\n");
            let file = directory.join(format!("{name}.txt"));
            write(&file, &(head + &counted.functions()?))?;
        }
        of_sides.push((role, "instructions", each));
    }
    Ok(Outcome {
        values,
        of_sides,
        ..Outcome::default()
    })
}
