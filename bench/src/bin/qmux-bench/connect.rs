//! `qmux-bench connect`: visitors that come and go.

use std::time::Duration;

use qmux_bench::harness::{BenchError, cpus};
use qmux_bench::load::connect::{self, Ask, Period};
use qmux_bench::report::{Metric, higher, lower};

use crate::options::{Common, List};
use crate::runner::{self, Behind, Case, Outcome, Session};

/// How new visitors are measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Visitors at a time
    #[arg(long, value_name = "LIST", default_value = "1,64")]
    visitors: List<usize>,
}

const METRICS: &[Metric] = &[
    higher("visits_per_second", "visits/s", 0).main(),
    lower("p50_us", "p50 µs", 0).main(),
    lower("p99_us", "p99 µs", 0),
    lower("max_us", "max µs", 0),
    lower("failed", "failed", 0),
    lower("cpu_us_per_visit", "CPU µs/visit", 0).charted(),
];

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let mut cases = Vec::new();
    for (ask, name) in [(Ask::Echo, "echo"), (Ask::Greeting, "first byte")] {
        for &visitors in args.visitors.iter() {
            let name = format!("connect, {name} ×{visitors}");
            let case = Case::new(name, move |session| {
                measure(session, ask, visitors, &args.common)
            });
            // One visitor at a time is a round trip, many at a time are throughput.
            let behind = if visitors > 1 {
                Behind::Own
            } else {
                Behind::OwnApart
            };
            cases.push(Case { behind, ..case });
        }
    }
    runner::run(&args.common, "connect", METRICS, &cases)
}

fn measure(
    session: &Session<'_>,
    ask: Ask,
    visitors: usize,
    common: &Common,
) -> Result<Outcome, BenchError> {
    session.service()?.set_greets(ask == Ask::Greeting);
    let visit = |period| match visitors {
        0 | 1 => Ok(cpus::run_on(&session.layout.visitor, || {
            connect::sequential(session.visit, ask, period)
        })),
        _ => connect::concurrent(session.visit, ask, visitors, period)
            .map_err(BenchError::io("visitors")),
    };
    visit(Period {
        warm_up: common.warm_up(),
        measure: Duration::ZERO,
    })?;
    let (visits, usage) = session.metered(|| visit(Period::of(common.measure())));
    let visits = visits?;
    if visits.times.count() == 0 {
        return Err(BenchError::Failed(format!(
            "no visit succeeded, {} failed",
            visits.failed
        )));
    }
    let mut values = visits.times.values().to_vec();
    values.extend([
        ("visits_per_second", visits.per_second()),
        ("failed", visits.failed as f64),
    ]);
    let cpu_us = usage.tunnel_cpu_us_per(visits.times.count() as f64);
    values.extend(cpu_us.map(|it| ("cpu_us_per_visit", it)));
    Ok(Outcome::of(values, usage))
}
