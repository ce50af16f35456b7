//! `qmux-bench connect`: visitors that come and go.

use qmux_bench::harness::{BenchError, cpus};
use qmux_bench::load::connect::{self, Ask, Period};
use qmux_bench::report::{Metric, higher, lower};

use crate::options::Common;
use crate::runner::{self, Bench, Case, Outcome, Session};

/// How new visitors are measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Visitors at a time
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,64"
    )]
    visitors: Vec<usize>,
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
        for &visitors in &args.visitors {
            let name = format!("connect, {name} ×{visitors}");
            let case = Case::new(name, move |session| {
                measure(session, ask, visitors, &args.common)
            });
            // One visitor at a time is a round trip, many at a time are throughput.
            cases.push(if visitors > 1 { case } else { case.apart() });
        }
    }
    let bench = Bench {
        name: "connect",
        metrics: METRICS,
        cases,
    };
    runner::run(&args.common, &bench)
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
        measure: std::time::Duration::ZERO,
    })?;
    let meter = session.meter();
    let visits = visit(Period {
        warm_up: std::time::Duration::ZERO,
        measure: common.measure(),
    });
    let usage = meter.stop();
    let visits = visits?;
    if visits.times.count() == 0 {
        return Err(BenchError::Failed(format!(
            "no visit succeeded, {} failed",
            visits.failed
        )));
    }
    let (count, failed) = (visits.times.count() as f64, visits.failed as f64);
    let mut values = vec![
        ("visits_per_second", visits.per_second()),
        ("p50_us", visits.times.percentile_us(50.0)),
        ("p99_us", visits.times.percentile_us(99.0)),
        ("max_us", visits.times.max_us()),
        ("failed", failed),
    ];
    if usage.has_tunnel() {
        values.push(("cpu_us_per_visit", usage.tunnel_cpu_seconds() * 1e6 / count));
    }
    Ok(Outcome {
        values,
        usage: Some(usage),
        ..Outcome::default()
    })
}
