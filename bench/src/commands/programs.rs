//! `qmux-bench programs`: what most tunnels carry, small requests over some connections, by
//! programs that everybody knows: redis-benchmark against redis-server, wrk against nginx.

use std::num::{NonZeroU8, NonZeroU16};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Behind, Case, Outcome, Session};
use crate::harness::requests::{self, Requests};
use crate::report::{Metric, higher, lower};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Connections at a time
    #[arg(long, value_name = "LIST", default_value = "1,64,512")]
    connections: List<NonZeroU16>,
    /// Cores of each side, in place of --cores
    #[arg(long, value_name = "LIST", default_value = "1,2")]
    core_counts: List<NonZeroU8>,
}

const METRICS: &[Metric] = &[
    higher("requests_per_second", "requests/s", 0).main(),
    lower("p50_us", "p50 µs", 0).main(),
    lower("p99_us", "p99 µs", 0),
    lower("failed", "failed", 0),
    lower("cpu_us_per_request", "CPU µs/request", 1).main(),
];

/// Requests of redis-benchmark that tell its rate, before it is asked for as many as fill the time.
const REDIS_TRIAL_REQUESTS: u64 = 2_000;

pub(crate) fn run(args: &Args) -> Result<bool> {
    let mut cases = Vec::new();
    for (kind, name) in Requests::ALL {
        for connections in args.connections.iter().map(|it| usize::from(it.get())) {
            for cores in args.core_counts.iter().map(|it| usize::from(it.get())) {
                let plural = if cores == 1 { "core" } else { "cores" };
                let name = format!("{name} ×{connections} by {cores} {plural}");
                if args.common.wants(&name) {
                    find_programs(kind)?;
                }
                let measure =
                    move |session: &Session<'_>| measure(session, kind, connections, &args.common);
                cases.push(Case {
                    cores: Some(cores),
                    behind: Behind::Requests(kind),
                    ..Case::new(name, measure)
                });
            }
        }
    }
    runner::run(&args.common, "programs", METRICS, &cases)
}

fn find_programs(kind: Requests) -> Result<()> {
    let mut programs = kind.programs().into_iter();
    if let Some(missing) = programs.find(|it| qmux_harness::find(it).is_none()) {
        bail!(
            "{missing} is not in PATH; scripts/setup.sh installs it, or choose other cases by --cases"
        );
    }
    Ok(())
}

fn measure(
    session: &Session<'_>,
    kind: Requests,
    connections: usize,
    common: &Common,
) -> Result<Outcome> {
    let load = |requests, seconds| kind.load(session.visit, connections, requests, seconds);
    let seconds = whole_seconds(common.measure());
    let requests = if kind == Requests::RedisGet {
        requests::set(session.visit)?;
        let trial = load(REDIS_TRIAL_REQUESTS, seconds).run()?;
        requests_of(trial.per_second, common.measure())
    } else {
        load(0, whole_seconds(common.warm_up())).run()?;
        0
    };
    let load = load(requests, seconds);
    let (measured, usage) = session.metered(|| load.run());
    let measured = measured?;
    let mut values = vec![
        ("requests_per_second", measured.per_second),
        ("p50_us", measured.p50_us),
        ("p99_us", measured.p99_us),
        ("failed", measured.failed),
    ];
    let cpu_us = usage.tunnel_cpu_us_per(measured.requests);
    values.extend(cpu_us.map(|it| ("cpu_us_per_request", it)));
    Ok(Outcome {
        load_command: Some(load.launch.command_line()),
        ..Outcome::of(values, usage)
    })
}

/// The duration in whole seconds, rounded up, for a program that takes no fractions.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs_f64().ceil().max(1.0) as u64
}

fn requests_of(per_second: f64, duration: Duration) -> u64 {
    let requests = (per_second * duration.as_secs_f64()) as u64;
    requests.max(REDIS_TRIAL_REQUESTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_filled_with_requests_in_whole_seconds() {
        let seconds = [0.0, 0.3, 1.0, 1.5].map(Duration::from_secs_f64);
        assert_eq!(seconds.map(whole_seconds), [1, 1, 1, 2]);
        assert_eq!(requests_of(20_000.0, Duration::from_secs(2)), 40_000);
        let few = requests_of(10.0, Duration::from_secs(2));
        assert_eq!(few, REDIS_TRIAL_REQUESTS);
    }
}
