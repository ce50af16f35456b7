//! `qmux-bench latency`: round trips of small messages, alone and beside bulk.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use crate::commands::options::Common;
use crate::commands::runner::{self, Behind, Case, Outcome, Session};
use crate::harness::cpus;
use crate::load::bulk::{Bulk, Way};
use crate::load::latency::{Period, Times};
use crate::load::open_loop::{self, Schedule};
use crate::load::ping_pong::{RoundTrip as _, Tcp, Udp};
use crate::load::wire::Command;
use crate::report::{Metric, higher, lower, neither};

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

/// Sends messages for a period, at this rate per second if they do not wait for each other.
type Send = fn(SocketAddr, Period, u32) -> io::Result<Times>;

fn ping_pong(visit: SocketAddr, period: Period, _rate: u32) -> io::Result<Times> {
    Tcp::open(visit, Command::PingPong)?.repeat(period)
}

fn udp_ping_pong(visit: SocketAddr, period: Period, _rate: u32) -> io::Result<Times> {
    Udp::open(visit)?.repeat(period)
}

fn open_loop(visit: SocketAddr, period: Period, rate: u32) -> io::Result<Times> {
    open_loop::run(visit, Schedule { rate, period })
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let kinds: [(String, Send); 3] = [
        ("ping-pong".to_owned(), ping_pong),
        (format!("open loop {}/s", args.rate), open_loop),
        ("udp ping-pong".to_owned(), udp_ping_pong),
    ];
    let beside = [
        ("", None),
        (" + bulk up", Some(Way::Up)),
        (" + bulk down", Some(Way::Down)),
    ];
    let mut cases = Vec::new();
    for (name, send) in kinds {
        for (with, bulk) in beside {
            let measure = move |session: &Session<'_>| measure(session, send, bulk, args);
            cases.push(Case {
                behind: Behind::OwnApart,
                ..Case::new(format!("{name}{with}"), measure)
            });
        }
    }
    runner::run(&args.common, "latency", METRICS, &cases)
}

fn measure(session: &Session<'_>, send: Send, way: Option<Way>, args: &Args) -> Result<Outcome> {
    let service = session.service()?;
    let bulk = way.map(|way| Bulk::start(session.visit, way, 1));
    let bulk = bulk.transpose()?;
    let period = args.common.period();
    let visitor = &session.layout.visitor;
    let send = || cpus::run_on(visitor, || send(session.visit, period, args.rate));
    let ((times, bytes), usage) = session.metered(|| match &bulk {
        None => (send(), None),
        Some(bulk) => {
            let (times, bytes, seconds) = bulk.beside(service, send);
            (times, Some((bytes, seconds)))
        }
    });
    let times = times.context("round trips")?;
    bulk.as_ref().map_or(Ok(()), Bulk::check)?;
    ensure!(times.count() > 0, "no message came back");
    let mut values = times.values().to_vec();
    values.extend([
        ("messages", times.count() as f64),
        ("lost", times.failed as f64),
    ]);
    values.extend(bytes.map(|(bytes, seconds)| ("bulk_gbit_s", bytes * 8.0 / seconds / 1e9)));
    Ok(Outcome {
        // What a byte costs is the bulk's; without bulk there are too few bytes to speak of.
        bytes: bytes.map(|(bytes, _)| bytes),
        ..Outcome::of(values, usage)
    })
}
