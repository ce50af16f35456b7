//! `qmux-bench connect`: visitors that come and go.

use anyhow::{Context as _, Result, ensure};

use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Behind, Case, Outcome, Session};
use crate::harness::cpus;
use crate::load::connect::{self, Ask};
use crate::load::latency::Period;
use crate::report::{Metric, higher, lower};

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

pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut cases = Vec::new();
    for (ask, name) in [(Ask::Echo, "echo"), (Ask::Greeting, "first byte")] {
        for &visitors in args.visitors.iter() {
            let name = format!("connect, {name} ×{visitors}");
            // One visitor at a time is a round trip, many at a time are throughput.
            let behind = if visitors > 1 {
                Behind::Own
            } else {
                Behind::OwnApart
            };
            let measure =
                move |session: &Session<'_>| measure(session, ask, visitors, &args.common);
            cases.push(Case {
                behind,
                ..Case::new(name, measure)
            });
        }
    }
    runner::run(&args.common, "connect", METRICS, &cases)
}

fn measure(session: &Session<'_>, ask: Ask, visitors: usize, common: &Common) -> Result<Outcome> {
    session.service()?.set_greets(ask == Ask::Greeting);
    let visit = |period| {
        // Many visitors go wherever there is room.
        let cpus = if visitors > 1 {
            &[]
        } else {
            &session.layout.visitor[..]
        };
        let visits = || connect::visits(session.visit, ask, visitors, period);
        cpus::run_on(cpus, visits).context("visitors")
    };
    visit(Period::of(common.warm_up()))?;
    let (times, usage) = session.metered(|| visit(Period::of(common.measure())));
    let times = times?;
    ensure!(
        times.count() > 0,
        "no visit succeeded, {} failed",
        times.failed
    );
    let mut values = times.values().to_vec();
    values.extend([
        ("visits_per_second", times.per_second()),
        ("failed", times.failed as f64),
    ]);
    let cpu_us = usage.tunnel_cpu_us_per(times.count() as f64);
    values.extend(cpu_us.map(|it| ("cpu_us_per_visit", it)));
    Ok(Outcome::of(values, usage))
}
