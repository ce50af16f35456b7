//! `qmux-bench discard`: throughput by an own source and sink, with as little work beside the
//! tunnel's as possible.

use std::thread;
use std::time::{Duration, Instant};

use qmux_bench::harness::BenchError;
use qmux_bench::load::bulk::{Bulk, Way};
use qmux_bench::load::udp_source::{Stream, UdpSource};
use qmux_bench::report::{Metric, higher, lower};

use crate::options::{Common, List};
use crate::runner::{self, Case, Outcome, Session};

/// How throughput is measured by an own source and sink.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Parallel TCP connections
    #[arg(long, value_name = "LIST", default_value = "1,4")]
    connections: List<usize>,
    /// Bytes of UDP payloads
    #[arg(long, value_name = "LIST", default_value = "1150,8192")]
    udp_sizes: List<usize>,
    /// Gbit/s that UDP offers
    #[arg(long, value_name = "RATE", default_value_t = 1.0)]
    udp_gbit: f64,
}

/// The most UDP packets of one system call of a visitor: so many come together from a network card
/// under load.
pub(crate) const BURST: usize = 16;

const METRICS: &[Metric] = &[
    higher("throughput_gbit_s", "Gbit/s", 2).main(),
    lower("lost_percent", "lost %", 2),
    higher("packets_per_second", "packets/s", 0),
];

pub(crate) fn run(args: &Args) -> Result<bool, BenchError> {
    let common = &args.common;
    let mut cases = Vec::new();
    for (way, name) in [(Way::Up, "up"), (Way::Down, "down")] {
        for &connections in args.connections.iter() {
            let name = format!("tcp {name} ×{connections}");
            cases.push(Case::new(name, move |session| {
                measure_tcp(session, way, connections, common)
            }));
        }
    }
    for &payload_bytes in args.udp_sizes.iter() {
        let name = format!("udp {payload_bytes} B {} Gbit/s", args.udp_gbit);
        let rate = args.udp_gbit * 1e9 / 8.0 / payload_bytes as f64;
        let stream = Stream {
            payload_bytes,
            rate,
            burst_packets: BURST,
            duration: common.measure(),
        };
        cases.push(Case::new(name, move |session| {
            measure_udp(session, &stream, common.warm_up())
        }));
    }
    runner::run(common, "discard", METRICS, &cases)
}

/// Bulk over TCP.
pub(crate) fn measure_tcp(
    session: &Session<'_>,
    way: Way,
    connections: usize,
    common: &Common,
) -> Result<Outcome, BenchError> {
    let service = session.service()?;
    let bulk = Bulk::start(session.visit, way, connections)?;
    thread::sleep(common.warm_up());
    let ((bytes, time), usage) = session.metered(|| {
        let (start, before) = (Instant::now(), bulk.arrived_bytes(service));
        thread::sleep(common.measure());
        let bytes = bulk.arrived_bytes(service) - before;
        (bytes as f64, start.elapsed())
    });
    if bulk.is_broken() {
        return Err(BenchError::Failed("a bulk connection broke".into()));
    }
    if bytes == 0.0 {
        return Err(BenchError::Failed("nothing arrived".into()));
    }
    let gbit_per_second = bytes * 8.0 / time.as_secs_f64() / 1e9;
    Ok(Outcome {
        bytes: Some(bytes),
        ..Outcome::of(vec![("throughput_gbit_s", gbit_per_second)], usage)
    })
}

/// UDP at a fixed rate.
pub(crate) fn measure_udp(
    session: &Session<'_>,
    stream: &Stream,
    warm_up: Duration,
) -> Result<Outcome, BenchError> {
    let service = session.service()?;
    let failed = || BenchError::io("sending UDP");
    let mut source = UdpSource::new(session.visit).map_err(failed())?;
    let warm_up = Stream {
        duration: warm_up,
        ..*stream
    };
    source.deliver(&warm_up, service).map_err(failed())?;
    let (delivered, usage) = session.metered(|| source.deliver(stream, service));
    let delivered = delivered.map_err(failed())?;
    Ok(Outcome {
        bytes: Some(delivered.arrived.bytes as f64),
        ..Outcome::of(delivered.values().into(), usage)
    })
}
