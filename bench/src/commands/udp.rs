//! `qmux-bench udp`: the highest packet rate at which next to nothing is lost.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Case, Outcome, Session};
use crate::load::udp_source::{BURST, Delivery, Stream, UdpSource};
use crate::report::{Metric, higher, lower, neither};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Bytes of payloads
    #[arg(long, value_name = "LIST", default_value = "64,512,1150,8192")]
    sizes: List<usize>,
}

const METRICS: &[Metric] = &[
    higher("packets_per_second", "packets/s", 0).main(),
    higher("throughput_gbit_s", "Gbit/s", 2),
    lower("lost_percent", "lost %", 3),
    lower("reordered_percent", "reordered %", 3),
    lower("cpu_ns_per_packet", "CPU ns/packet", 0).charted(),
    neither("source_limited", "source limited", 0),
];

/// The loss that is next to nothing, in percent.
const LOST_PERCENT_MAX: f64 = 0.1;

/// Where the search begins, in packets per second.
const RATE_FIRST: f64 = 10_000.0;

/// The rate, in packets per second, at which the search gives up: a tunnel that does not carry this
/// few carries none.
const RATE_LAST: f64 = 10.0;

/// The search ends when the rate that passes and the one that does not are as near to each other as
/// this.
const PRECISION: f64 = 1.07;

/// A source that offers less than this share of what it should is at its own limit.
const OFFERED_SHARE_MIN: f64 = 0.93;

/// How long one trial takes.
const TRIAL: Duration = Duration::from_millis(600);

/// A trial that loses more is tried once more: on a shared machine one stall is not the tunnel's
/// limit.
const TRIES: usize = 2;

/// The most times that the rate that was found is lowered if it does not hold for the whole
/// measurement, and the factor by which it is lowered.
const LOWERED_MAX: usize = 5;
const LOWERED_BY: f64 = 0.9;

pub(crate) fn run(args: &Args) -> Result<bool> {
    let sizes = args.sizes.iter();
    let cases: Vec<Case<'_>> = sizes
        .map(|&payload_bytes| {
            let name = format!("udp {payload_bytes} B");
            Case::new(name, move |session| measure(session, payload_bytes, args))
        })
        .collect();
    runner::run(&args.common, "udp", METRICS, &cases)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    Passed,
    Lost,
    SourceLimited,
}

/// The highest rate that passes, and whether the source was the limit. Zero if none passes.
fn search(mut trial: impl FnMut(f64) -> Result<Trial>) -> Result<(f64, bool)> {
    let (mut passed, mut rate) = (0.0, RATE_FIRST);
    // Up in powers of two, or down if not even the first passes.
    let (mut failed, mut source_limited) = loop {
        match trial(rate)? {
            Trial::Passed => {
                passed = rate;
                rate *= 2.0;
            }
            Trial::SourceLimited => break (rate, true),
            Trial::Lost if passed > 0.0 || rate < RATE_LAST => break (rate, false),
            Trial::Lost => {
                let failed = rate;
                rate /= 4.0;
                if trial(rate)? == Trial::Passed {
                    passed = rate;
                    break (failed, false);
                }
            }
        }
    };
    while passed > 0.0 && failed / passed > PRECISION {
        // The geometric mean: rates differ by factors.
        let middle = (passed * failed).sqrt();
        match trial(middle)? {
            Trial::Passed => passed = middle,
            Trial::Lost => (failed, source_limited) = (middle, false),
            Trial::SourceLimited => (failed, source_limited) = (middle, true),
        }
    }
    Ok((passed, source_limited))
}

fn measure(session: &Session<'_>, payload_bytes: usize, args: &Args) -> Result<Outcome> {
    let service = session.service()?;
    let mut source = UdpSource::new(session.visit)?;
    let mut deliver = |rate, duration| {
        let stream = Stream {
            payload_bytes,
            rate,
            burst_packets: BURST,
        };
        source.deliver(&stream, duration, service)
    };
    deliver(RATE_FIRST, args.common.warm_up())?;
    let (mut rate, source_limited) = search(|rate| {
        let mut result = Trial::Lost;
        for _ in 0..TRIES {
            result = judge(&deliver(rate, TRIAL)?, rate);
            if result != Trial::Lost {
                break;
            }
        }
        Ok(result)
    })?;
    ensure!(rate > 0.0, "packets are lost at every rate");
    let mut lowered = 0;
    loop {
        let (delivery, usage) = session.metered(|| deliver(rate, args.common.measure()));
        let delivery = delivery?;
        if delivery.lost_percent() > LOST_PERCENT_MAX && lowered < LOWERED_MAX {
            rate *= LOWERED_BY;
            lowered += 1;
            continue;
        }
        let packets = delivery.arrived.packets as f64;
        let reordered = delivery.arrived.reordered as f64 / packets.max(1.0) * 100.0;
        let mut values = delivery.values().to_vec();
        values.extend([
            ("reordered_percent", reordered),
            ("source_limited", f64::from(u8::from(source_limited))),
        ]);
        let cpu_us = usage.tunnel_cpu_us_per(packets);
        values.extend(cpu_us.map(|us| ("cpu_ns_per_packet", us * 1e3)));
        return Ok(Outcome {
            bytes: Some(delivery.arrived.bytes as f64),
            ..Outcome::of(values, usage)
        });
    }
}

fn judge(delivery: &Delivery, rate: f64) -> Trial {
    if delivery.lost_percent() > LOST_PERCENT_MAX {
        Trial::Lost
    } else if delivery.offered_per_second() < rate * OFFERED_SHARE_MIN {
        Trial::SourceLimited
    } else {
        Trial::Passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with a tunnel that carries `tunnel` packets per second, and a source that sends up
    /// to `source`.
    fn found(tunnel: f64, source: f64) -> (f64, bool) {
        let result = search(|rate| {
            Ok(if rate > source && source <= tunnel {
                Trial::SourceLimited
            } else if rate > tunnel {
                Trial::Lost
            } else {
                Trial::Passed
            })
        });
        result.expect("every trial succeeds")
    }

    #[test]
    fn the_limit_is_found_from_below_and_told_from_that_of_the_source() {
        for (tunnel, source) in [
            (700.0, f64::INFINITY),
            (9_000.0, f64::INFINITY),
            (10_000.0, f64::INFINITY),
            (123_456.0, f64::INFINITY),
            (3_000_000.0, f64::INFINITY),
            (1e9, 100_000.0),
        ] {
            let (rate, source_limited) = found(tunnel, source);
            let limit = source.min(tunnel);
            assert!(
                (limit / PRECISION..=limit).contains(&rate),
                "{rate} for {limit}"
            );
            assert_eq!(source_limited, source < tunnel);
        }
    }

    #[test]
    fn a_tunnel_that_carries_nothing_is_found_out() {
        assert_eq!(found(0.0, 1e9).0, 0.0);
    }
}
