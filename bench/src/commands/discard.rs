//! `qmux-bench discard`: throughput by an own source and sink, with as little work beside the
//! tunnel's as possible.

use std::thread;

use anyhow::{Result, ensure};

use crate::load::bulk::{Bulk, Way};
use crate::load::udp_source::{Stream, UdpSource};
use crate::report::{Metric, higher, lower};

use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Case, Outcome, Session};

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

const METRICS: &[Metric] = &[
    higher("throughput_gbit_s", "Gbit/s", 2).main(),
    lower("lost_percent", "lost %", 2),
    higher("packets_per_second", "packets/s", 0),
];

pub(crate) fn run(args: &Args) -> Result<bool> {
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
        let stream = Stream::of_gbit(payload_bytes, args.udp_gbit);
        cases.push(Case::new(name, move |session| {
            measure_udp(session, &stream, common)
        }));
    }
    runner::run(common, "discard", METRICS, &cases)
}

pub(crate) fn measure_tcp(
    session: &Session<'_>,
    way: Way,
    connections: usize,
    common: &Common,
) -> Result<Outcome> {
    let service = session.service()?;
    let bulk = Bulk::start_all(session.visit, way, connections, service)?;
    thread::sleep(common.warm_up());
    let measure = || bulk.beside(service, || thread::sleep(common.measure()));
    let (((), bytes, seconds), usage) = session.metered(measure);
    bulk.check()?;
    ensure!(bytes > 0.0, "nothing arrived");
    let gbit_per_second = bytes * 8.0 / seconds / 1e9;
    Ok(Outcome {
        bytes: Some(bytes),
        ..Outcome::of(vec![("throughput_gbit_s", gbit_per_second)], usage)
    })
}

fn measure_udp(session: &Session<'_>, stream: &Stream, common: &Common) -> Result<Outcome> {
    let service = session.service()?;
    let mut source = UdpSource::new(session.visit)?;
    source.deliver(stream, common.warm_up(), service)?;
    let deliver = || source.deliver(stream, common.measure(), service);
    let (delivered, usage) = session.metered(deliver);
    let delivered = delivered?;
    Ok(Outcome {
        bytes: Some(delivered.arrived.bytes as f64),
        ..Outcome::of(delivered.values().into(), usage)
    })
}
