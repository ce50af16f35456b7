//! `qmux-bench programs`: what most tunnels carry, small requests over some connections, by
//! programs that everybody knows: redis-benchmark against redis-server, wrk against nginx.

use std::num::{NonZeroU8, NonZeroU16};
use std::time::Duration;

use qmux_bench::harness::BenchError;
use qmux_bench::harness::requests::{Measured, Requests};
use qmux_bench::harness::{redis, wrk};
use qmux_bench::report::{Metric, higher, lower};

use crate::options::{Common, List};
use crate::runner::{self, Behind, Case, Outcome, Session};

/// How requests of real programs are measured.
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

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let mut cases = Vec::new();
    for (kind, name) in Requests::ALL {
        for connections in args.connections.iter().map(|it| it.get()) {
            for cores in args.core_counts.iter().map(|it| it.get()) {
                let measure = move |session: &Session<'_>| {
                    measure(session, kind, usize::from(connections), &args.common)
                };
                let plural = if cores == 1 { "core" } else { "cores" };
                let name = format!("{name} ×{connections} by {cores} {plural}");
                if args.common.wants(&name) {
                    find_programs(kind)?;
                }
                cases.push(Case {
                    cores: Some(usize::from(cores)),
                    behind: Behind::Requests(kind),
                    ..Case::new(name, measure)
                });
            }
        }
    }
    runner::run(&args.common, "programs", METRICS, &cases)
}

fn find_programs(kind: Requests) -> Result<(), BenchError> {
    match kind
        .programs()
        .into_iter()
        .find(|it| qmux_harness::find(it).is_none())
    {
        Some(missing) => Err(BenchError::Failed(format!(
            "{missing} is not in PATH; scripts/setup.sh installs it, or choose other cases by --cases"
        ))),
        None => Ok(()),
    }
}

fn measure(
    session: &Session<'_>,
    kind: Requests,
    connections: usize,
    common: &Common,
) -> Result<Outcome, BenchError> {
    let warm_up = whole_seconds(common.warm_up());
    let seconds = whole_seconds(common.measure());
    let visit = session.visit;
    let (load, command): (Box<dyn Fn() -> Result<Measured, BenchError>>, String) = match kind {
        Requests::RedisGet => {
            redis::set(visit)?;
            let expected = Duration::from_secs(seconds);
            let trial = redis::get(visit, connections, REDIS_TRIAL_REQUESTS, expected)?;
            let requests = requests_of(trial.per_second, common.measure());
            let command = redis::command_line(visit, connections, requests);
            let load = move || redis::get(visit, connections, requests, expected);
            (Box::new(load), command)
        }
        Requests::KeepAlive | Requests::Close => {
            let closes = kind == Requests::Close;
            wrk::run(visit, connections, warm_up, closes)?;
            let command = wrk::launch(visit, connections, seconds, closes).command_line();
            let load = move || wrk::run(visit, connections, seconds, closes);
            (Box::new(load), command)
        }
    };
    let (measured, usage) = session.metered(load);
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
        load_command: Some(command),
        ..Outcome::of(values, usage)
    })
}

/// As long as was asked for, for a program that takes whole seconds.
fn whole_seconds(duration: Duration) -> u64 {
    let seconds = duration.as_millis().div_ceil(1_000);
    u64::try_from(seconds).unwrap_or(u64::MAX).max(1)
}

/// How many requests fill so much time at this rate.
fn requests_of(per_second: f64, duration: Duration) -> u64 {
    let requests = (per_second * duration.as_secs_f64()) as u64;
    requests.max(REDIS_TRIAL_REQUESTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_given_whole_seconds() {
        let seconds = |text: f64| whole_seconds(Duration::from_secs_f64(text));
        assert_eq!(
            [seconds(0.0), seconds(0.3), seconds(1.0), seconds(1.5)],
            [1, 1, 1, 2]
        );
    }

    #[test]
    fn the_time_is_filled_with_requests() {
        assert_eq!(requests_of(20_000.0, Duration::from_secs(2)), 40_000);
        let few = requests_of(10.0, Duration::from_secs(2));
        assert_eq!(few, REDIS_TRIAL_REQUESTS);
    }
}
