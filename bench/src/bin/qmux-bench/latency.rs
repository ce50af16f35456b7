//! `qmux-bench latency`: round trips of small messages, alone and beside bulk.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use qmux_bench::harness::{BenchError, cpus};
use qmux_bench::load::bulk::{Bulk, Way};
use qmux_bench::load::latency::Times;
use qmux_bench::load::open_loop::{self, Schedule};
use qmux_bench::load::ping_pong;
use qmux_bench::report::{Metric, higher, lower, neither};

use crate::options::Common;
use crate::runner::{self, Behind, Case, Outcome, Session};

/// How round trips are measured.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Requests per second of the open loop
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
}

const METRICS: &[Metric] = &[
    lower("p50_us", "p50 µs", 0).main(),
    lower("p90_us", "p90 µs", 0),
    lower("p99_us", "p99 µs", 0).charted(),
    lower("p999_us", "p99.9 µs", 0).charted(),
    lower("max_us", "max µs", 0),
    neither("messages", "messages", 0),
    lower("lost", "lost", 0),
    higher("bulk_gbit_s", "bulk Gbit/s", 2),
];

/// How messages are sent.
#[derive(Clone, Copy, Debug)]
enum Messages {
    PingPong,
    UdpPingPong,
    OpenLoop,
}

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let kinds = [
        ("ping-pong".to_owned(), Messages::PingPong),
        (format!("open loop {}/s", args.rate), Messages::OpenLoop),
        ("udp ping-pong".to_owned(), Messages::UdpPingPong),
    ];
    let beside = [
        ("", None),
        (" + bulk up", Some(Way::Up)),
        (" + bulk down", Some(Way::Down)),
    ];
    let mut cases = Vec::new();
    for (name, messages) in kinds {
        for (with, bulk) in beside {
            let name = format!("{name}{with}");
            let case = Case::new(name, move |session| measure(session, messages, bulk, args));
            cases.push(Case {
                behind: Behind::OwnApart,
                ..case
            });
        }
    }
    runner::run(&args.common, "latency", METRICS, &cases)
}

fn measure(
    session: &Session<'_>,
    messages: Messages,
    way: Option<Way>,
    args: &Args,
) -> Result<Outcome, BenchError> {
    let service = session.service()?;
    let bulk = way
        .map(|way| Bulk::start(session.visit, way, 1))
        .transpose()?;
    let (warm_up, measure) = (args.common.warm_up(), args.common.measure());
    let arrived = || bulk.as_ref().map(|bulk| bulk.arrived_bytes(service));
    let ((sent, time, before, after), usage) = session.metered(|| {
        let (start, before) = (Instant::now(), arrived());
        let sent = cpus::run_on(&session.layout.visitor, || {
            send(session.visit, messages, warm_up, measure, args.rate)
        });
        (sent, start.elapsed(), before, arrived())
    });
    let (times, lost) = sent.map_err(BenchError::io("round trips"))?;
    if bulk.as_ref().is_some_and(Bulk::is_broken) {
        return Err(BenchError::Failed("the bulk connection broke".into()));
    }
    if times.count() == 0 {
        return Err(BenchError::Failed("no message came back".into()));
    }
    let mut values = times.values().to_vec();
    values.extend([("messages", times.count() as f64), ("lost", lost as f64)]);
    let bytes = before
        .zip(after)
        .map(|(before, after)| (after - before) as f64);
    values.extend(bytes.map(|bytes| ("bulk_gbit_s", bytes * 8.0 / time.as_secs_f64() / 1e9)));
    Ok(Outcome {
        // What a byte costs is the bulk's; without bulk there are too few bytes to speak of.
        bytes,
        ..Outcome::of(values, usage)
    })
}

fn send(
    visit: SocketAddr,
    messages: Messages,
    warm_up: Duration,
    measure: Duration,
    rate: u32,
) -> std::io::Result<(Times, u64)> {
    match messages {
        Messages::PingPong => Ok((ping_pong::tcp(visit, warm_up, measure)?, 0)),
        Messages::UdpPingPong => ping_pong::udp(visit, warm_up, measure),
        Messages::OpenLoop => {
            let schedule = Schedule {
                rate,
                warm_up,
                measure,
            };
            let answers = open_loop::run(visit, schedule)?;
            Ok((answers.times, answers.lost))
        }
    }
}
