//! iperf3, the generator that everybody knows: its server, its client, its JSON.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use qmux_harness::Launch;
use serde_json::Value;

use super::machine;
use super::place::Place;
use super::requests::Server;

/// How long the server may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// How much longer than its measurement the client may take, for its connections and the exchange
/// of results.
const OVERHEAD_LIMIT: Duration = Duration::from_secs(12);

/// Socket buffers asked for with UDP, in bytes, as far as the system gives them. With the kernel's
/// default of 208 KiB it is iperf3 itself that loses packets whenever it does not run for a
/// millisecond.
const UDP_SOCKET_BUFFER: u64 = 2 << 20;

pub(crate) fn server(place: &Place) -> Result<Server> {
    let server = Server::start(place, 5_201, |address| {
        let (ip, port) = (address.ip(), address.port());
        Ok(Launch::new("iperf3's server", "iperf3")
            .words(&format!("--server --forceflush --bind {ip} --port {port}")))
    })?;
    let listens = |line: &str| line.contains("Server listening");
    let program = &server.program;
    program.wait_for_line("its listener", LISTEN_LIMIT, listens)?;
    Ok(server)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    /// UDP's bytes of payload and bit rate that each stream offers, as iperf3 has it (`500M`);
    /// `None` for TCP.
    pub(crate) udp: Option<(u64, String)>,
    pub(crate) streams: usize,
    pub(crate) direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToService,
    ToVisitor,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Seconds(u64),
    /// This many bytes, to warm up.
    Bytes(u64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Bytes that arrived, all streams and directions together.
    pub(crate) bytes: f64,
    pub(crate) gbit_per_second: f64,
    /// With UDP: percent of the packets that did not arrive.
    pub(crate) lost_percent: Option<f64>,
}

pub(crate) fn launch(test: &Test, extent: Extent, visit: SocketAddr) -> Launch {
    let (ip, port, streams) = (visit.ip(), visit.port(), test.streams);
    let mut words = format!("--json --client {ip} --port {port} --parallel {streams}");
    words += &match extent {
        Extent::Seconds(seconds) => format!(" --time {seconds}"),
        Extent::Bytes(bytes) => format!(" --bytes {bytes}"),
    };
    if let Some((bytes, rate)) = &test.udp {
        let [receive, send] = ["rmem", "wmem"].map(machine::socket_buffer_max);
        let buffer = UDP_SOCKET_BUFFER.min(receive).min(send);
        words += &format!(" --udp --bitrate {rate} --length {bytes} --window {buffer}");
    }
    words += match test.direction {
        Direction::ToService => "",
        Direction::ToVisitor => " --reverse",
        Direction::Both => " --bidir",
    };
    Launch::new("iperf3", "iperf3").words(&words)
}

pub(crate) fn run(test: &Test, extent: Extent, visit: SocketAddr) -> Result<Measured> {
    let measuring = match extent {
        Extent::Seconds(seconds) => Duration::from_secs(seconds),
        Extent::Bytes(_) => Duration::ZERO,
    };
    // If it fails, its JSON says why.
    let output = launch(test, extent, visit).output(measuring + OVERHEAD_LIMIT)?;
    parse(&output, test).context("iperf3")
}

fn parse(output: &str, test: &Test) -> Result<Measured> {
    let report: Value = serde_json::from_str(output)
        .map_err(|error| anyhow!("its output is no JSON ({error}): {output:?}"))?;
    if let Some(error) = report["error"].as_str() {
        bail!("{error}");
    }
    let measured = sums(&report["end"], test).context("its JSON lacks the sums")?;
    ensure!(measured.gbit_per_second.is_normal(), "nothing arrived");
    Ok(measured)
}

/// The sums of one direction or both. With UDP the bytes are those that were sent.
fn sums(end: &Value, test: &Test) -> Option<Measured> {
    let names = match test.udp {
        None => ["sum_received", "sum_received_bidir_reverse"],
        Some(_) => ["sum", "sum_bidir_reverse"],
    };
    let directions = if test.direction == Direction::Both {
        2
    } else {
        1
    };
    let (mut bytes, mut packets, mut lost) = (0.0, 0.0, 0.0);
    for sum in names.iter().take(directions).map(|name| &end[name]) {
        if let Some((payload_bytes, _)) = &test.udp {
            let (sent, missed) = (sum["packets"].as_f64()?, sum["lost_packets"].as_f64()?);
            (packets, lost) = (packets + sent, lost + missed);
            bytes += (sent - missed) * *payload_bytes as f64;
        } else {
            bytes += sum["bytes"].as_f64()?;
        }
    }
    let seconds = end[names[0]]["seconds"].as_f64()?;
    let share = if packets > 0.0 { lost / packets } else { 1.0 };
    Some(Measured {
        bytes,
        gbit_per_second: bytes * 8.0 / seconds / 1e9,
        lost_percent: test.udp.as_ref().map(|_| share * 100.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(direction: Direction) -> Test {
        Test {
            udp: None,
            streams: 1,
            direction,
        }
    }

    #[test]
    fn tcp_counts_what_was_received_both_ways_together() {
        let output = r#"{"end": {
            "sum_sent": {"seconds": 1.0, "bytes": 9000000000},
            "sum_received": {"seconds": 2.0, "bytes": 2000000000},
            "sum_received_bidir_reverse": {"seconds": 2.0, "bytes": 500000000}}}"#;
        for (direction, bytes, gbit) in [
            (Direction::ToService, 2e9, 8.0),
            (Direction::Both, 2.5e9, 10.0),
        ] {
            let measured = parse(output, &tcp(direction)).expect("measured");
            assert_eq!((measured.bytes, measured.gbit_per_second), (bytes, gbit));
            assert_eq!(measured.lost_percent, None);
        }
    }

    #[test]
    fn udp_counts_what_was_not_lost() {
        let test = Test {
            udp: Some((1_000, "1M".into())),
            ..tcp(Direction::ToService)
        };
        let output = r#"{"end": {"sum": {"seconds": 1.0, "packets": 200, "lost_packets": 50, "bytes": 200000}}}"#;
        let measured = parse(output, &test).expect("measured");
        assert_eq!(measured.bytes, 150_000.0);
        assert_eq!(measured.lost_percent, Some(25.0));
    }

    #[test]
    fn failures_are_told() {
        for (output, wanted) in [
            (r#"{"end": {}, "error": "unable to connect"}"#, "unable to"),
            ("iperf3: parameter error", "no JSON"),
            ("{}", "lacks the sums"),
            (
                r#"{"end": {"sum_received": {"seconds": 1.0, "bytes": 0}}}"#,
                "nothing arrived",
            ),
        ] {
            let error = parse(output, &tcp(Direction::ToService)).expect_err("no measurement");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn the_command_line_is_iperf3s() {
        let visit = SocketAddr::from(([127, 0, 0, 1], 80));
        let line = launch(&tcp(Direction::ToVisitor), Extent::Seconds(3), visit).command_line();
        let wanted = "iperf3 --json --client 127.0.0.1 --port 80 --parallel 1 --time 3 --reverse";
        assert_eq!(line, wanted);
    }
}
