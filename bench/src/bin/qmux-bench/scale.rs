//! `qmux-bench scale`: what a byte costs with more cores, and what crosses them.

use qmux_bench::harness::BenchError;
use qmux_bench::load::bulk::Way;
use qmux_bench::report::{Better, Metric};

use crate::discard;
use crate::options::Common;
use crate::runner::{self, Bench, Case};

/// How growing is measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Cores of each side (in place of --cores)
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,2,4,8"
    )]
    core_counts: Vec<usize>,
    /// TCP connections at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
}

const METRICS: &[Metric] = &[
    Metric::new("throughput_gbit_s", "Gbit/s", Better::Higher, 2).main(),
    Metric::new(
        "visitors_handed_over",
        "visitors handed over",
        Better::Lower,
        0,
    ),
    Metric::new(
        "packets_handed_over",
        "packets handed over",
        Better::Lower,
        0,
    ),
    Metric::new("mail_received", "mail", Better::Lower, 0),
];

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let mut cases = Vec::new();
    for &cores in &args.core_counts {
        let measure = |session: &runner::Session<'_>| {
            discard::measure_tcp(session, Way::Up, args.connections, &args.common)
        };
        let mut case = Case::new(format!("{cores} core(s)"), measure);
        case.cores = Some(cores);
        cases.push(case);
    }
    let bench = Bench {
        name: "scale",
        metrics: METRICS,
        cases,
    };
    runner::run(&args.common, &bench)
}
