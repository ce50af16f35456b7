//! `qmux-bench iperf`: throughput by iperf3.

use anyhow::Result;
use std::thread;
use std::time::Duration;

use crate::harness::iperf3::{self, Direction, Extent, Test};
use crate::report::{Metric, higher, lower};

use crate::commands::options::{Common, List};
use crate::commands::runner::{self, Behind, Case, Outcome, Session};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Bit rates that each UDP stream offers, as iperf3 has them
    #[arg(long, value_name = "LIST", default_value = "500M,1G")]
    udp_rates: List<String>,
    /// Bytes of UDP payloads
    #[arg(long, value_name = "LIST", default_value = "1150,8192")]
    udp_sizes: List<u64>,
    /// Parallel TCP streams
    #[arg(long, value_name = "LIST", default_value = "1,2,4")]
    streams: List<usize>,
    /// Parallel UDP streams
    #[arg(long, value_name = "LIST", default_value = "1")]
    udp_streams: List<usize>,
}

const METRICS: &[Metric] = &[
    higher("throughput_gbit_s", "Gbit/s", 2).main(),
    lower("lost_percent", "lost %", 2),
];

/// What iperf3 moves before a measurement, so that windows are open and memory is there. On a slow
/// link that would take longer than the measurement.
const WARM_UP_BYTES: u64 = 64 << 20;
const WARM_UP_BYTES_UDP: u64 = 4 << 20;
const WARM_UP_BYTES_SLOW: u64 = 256 << 10;

/// The first run through a new tunnel shows whether it works; so often it is tried, with pauses.
const TRIES_MAX: usize = 10;
const PAUSE: Duration = Duration::from_millis(200);

/// The time between a warm-up by UDP and the measurement. A tunnel's first datagrams may wait for
/// its congestion window, and arrive after the TCP connection that ends iperf3's test. iperf3's
/// server takes whatever datagram comes next for the beginning of the next test's stream, and then
/// the true one waits for an answer for ever.
const PAUSE_AFTER_UDP: Duration = Duration::from_millis(300);

pub(crate) fn run(args: &Args) -> Result<bool> {
    let case = |(name, test): (String, Test)| Case {
        behind: Behind::Iperf3,
        ..Case::new(name, move |session| measure(session, &test, &args.common))
    };
    let cases: Vec<Case<'_>> = tests(args).into_iter().map(case).collect();
    runner::run(&args.common, "iperf", METRICS, &cases)
}

fn tests(args: &Args) -> Vec<(String, Test)> {
    let tcp = |streams, direction| Test {
        udp: None,
        streams,
        direction,
    };
    let streams = args.streams.iter();
    let mut tests: Vec<(String, Test)> = streams
        .map(|&streams| {
            (
                format!("tcp ×{streams}"),
                tcp(streams, Direction::ToService),
            )
        })
        .collect();
    tests.push(("tcp reverse".into(), tcp(1, Direction::ToVisitor)));
    tests.push(("tcp both ways".into(), tcp(1, Direction::Both)));
    for &streams in args.udp_streams.iter() {
        for bytes in args.udp_sizes.iter() {
            for rate in args.udp_rates.iter() {
                let times = if streams == 1 {
                    String::new()
                } else {
                    format!("{streams}×")
                };
                let test = Test {
                    udp: Some((*bytes, rate.clone())),
                    ..tcp(streams, Direction::ToService)
                };
                tests.push((format!("udp {bytes} B {times}{rate}"), test));
            }
        }
    }
    tests
}

fn measure(session: &Session<'_>, test: &Test, common: &Common) -> Result<Outcome> {
    warm_up(session, test, common)?;
    if test.udp.is_some() {
        thread::sleep(PAUSE_AFTER_UDP);
    }
    // iperf3 takes whole seconds.
    let extent = Extent::Seconds(common.seconds.ceil().max(1.0) as u64);
    let (measured, usage) = session.metered(|| iperf3::run(test, extent, session.visit));
    let measured = measured?;
    let mut values = vec![("throughput_gbit_s", measured.gbit_per_second)];
    values.extend(measured.lost_percent.map(|lost| ("lost_percent", lost)));
    Ok(Outcome {
        bytes: Some(measured.bytes),
        load_command: Some(iperf3::launch(test, extent, session.visit).command_line()),
        ..Outcome::of(values, usage)
    })
}

fn warm_up(session: &Session<'_>, test: &Test, common: &Common) -> Result<()> {
    let bytes = match (common.path.is_slow(), &test.udp) {
        (true, _) => WARM_UP_BYTES_SLOW,
        (false, Some(_)) => WARM_UP_BYTES_UDP,
        (false, None) => WARM_UP_BYTES,
    };
    let run = || iperf3::run(test, Extent::Bytes(bytes), session.visit);
    for _ in 1..TRIES_MAX {
        if run().is_ok() {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    run().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn every_combination_is_a_case() {
        let alone = Alone::parse_from(["iperf", "--udp-sizes", "1150", "--udp-streams", "1,2"]);
        let tests = tests(&alone.args).into_iter();
        let names: Vec<String> = tests.map(|(name, _)| name).collect();
        let wanted = [
            "tcp ×1",
            "tcp ×2",
            "tcp ×4",
            "tcp reverse",
            "tcp both ways",
            "udp 1150 B 500M",
            "udp 1150 B 1G",
            "udp 1150 B 2×500M",
            "udp 1150 B 2×1G",
        ];
        assert_eq!(names, wanted);
    }
}
