//! iperf3, the generator that everybody knows: its server, its client, its JSON.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::place::Place;
use super::server::Server;
use super::{BenchError, machine};
use qmux_harness::Launch;

/// How long the server may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// How much longer than its measurement the client may take, for its connections and the exchange
/// of results.
const OVERHEAD_LIMIT: Duration = Duration::from_secs(12);

/// Socket buffers asked for with UDP, in bytes, as far as the system gives them. With the kernel's
/// default of 208 KiB it is iperf3 itself that loses packets whenever it does not run for a
/// millisecond.
const UDP_SOCKET_BUFFER: u64 = 2 << 20;

/// Starts iperf3's server and waits until it listens.
pub fn server(place: &Place) -> Result<Server, BenchError> {
    let server = Server::start(place, 5_201, |address| {
        Ok(Launch::new("iperf3's server", "iperf3")
            .args(["--server", "--forceflush"])
            .args(["--bind".to_owned(), address.ip().to_string()])
            .args(["--port".to_owned(), address.port().to_string()]))
    })?;
    let listens = |line: &str| line.contains("Server listening");
    server
        .program
        .wait_for_line("its listener", LISTEN_LIMIT, listens)?;
    Ok(server)
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// UDP's payload and offered bit rate per stream; `None` for TCP.
    pub udp: Option<Udp>,
    /// How many streams at a time.
    pub streams: usize,
    /// Which way the bytes go.
    pub direction: Direction,
}

/// A UDP test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Bytes of each packet's payload.
    pub payload_bytes: u64,
    /// Bits per second of each stream, as iperf3 has it: `500M`.
    pub rate: String,
}

/// Which way the bytes of a test go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the visitor to the service.
    ToService,
    /// From the service to the visitor.
    ToVisitor,
    /// Both ways at once.
    Both,
}

/// How much of a test to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many seconds.
    Seconds(u64),
    /// So many bytes, to warm up.
    Bytes(u64),
}

/// What iperf3 has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Bytes that arrived, all streams and directions together.
    pub bytes: f64,
    /// The seconds in which they did.
    pub seconds: f64,
    /// With UDP: percent of the packets that did not arrive.
    pub lost_percent: Option<f64>,
}

impl Measured {
    /// What arrived, in Gbit/s.
    pub fn gbit_per_second(&self) -> f64 {
        self.bytes * 8.0 / self.seconds / 1e9
    }
}

/// iperf3's command line towards `visit`.
pub fn launch(test: &Test, extent: Extent, visit: SocketAddr) -> Launch {
    let mut launch = Launch::new("iperf3", "iperf3")
        .args(["--json"])
        .args(["--client".to_owned(), visit.ip().to_string()])
        .args(["--port".to_owned(), visit.port().to_string()])
        .args(["--parallel".to_owned(), test.streams.to_string()])
        .args(match extent {
            Extent::Seconds(seconds) => ["--time".to_owned(), seconds.to_string()],
            Extent::Bytes(bytes) => ["--bytes".to_owned(), bytes.to_string()],
        });
    if let Some(udp) = &test.udp {
        let limits = ["rmem", "wmem"].map(machine::socket_buffer_max);
        let buffer = UDP_SOCKET_BUFFER.min(limits[0]).min(limits[1]);
        launch = launch
            .args(["--udp", "--bitrate", &udp.rate])
            .args(["--length".to_owned(), udp.payload_bytes.to_string()])
            .args(["--window".to_owned(), buffer.to_string()]);
    }
    match test.direction {
        Direction::ToService => launch,
        Direction::ToVisitor => launch.args(["--reverse"]),
        Direction::Both => launch.args(["--bidir"]),
    }
}

/// Runs iperf3 towards `visit`.
pub fn run(test: &Test, extent: Extent, visit: SocketAddr) -> Result<Measured, BenchError> {
    let measuring = match extent {
        Extent::Seconds(seconds) => Duration::from_secs(seconds),
        Extent::Bytes(_) => Duration::ZERO,
    };
    let output = launch(test, extent, visit).output(measuring + OVERHEAD_LIMIT)?;
    parse(&output, test).map_err(|problem| BenchError::Output {
        what: "iperf3".into(),
        problem,
    })
}

fn parse(output: &str, test: &Test) -> Result<Measured, String> {
    let report: Value = serde_json::from_str(output)
        .map_err(|error| format!("its output is no JSON ({error}): {output:?}"))?;
    if let Some(error) = report["error"].as_str() {
        return Err(error.to_owned());
    }
    let end = &report["end"];
    let measured = match &test.udp {
        None => parse_tcp(end, test.direction),
        Some(udp) => parse_udp(end, udp, test.direction),
    };
    let measured = measured.ok_or("its JSON lacks the sums")?;
    if measured.bytes > 0.0 && measured.seconds > 0.0 {
        Ok(measured)
    } else {
        Err("nothing arrived".into())
    }
}

fn parse_tcp(end: &Value, direction: Direction) -> Option<Measured> {
    let sum = &end["sum_received"];
    let mut bytes = sum["bytes"].as_f64()?;
    if direction == Direction::Both {
        bytes += end["sum_received_bidir_reverse"]["bytes"].as_f64()?;
    }
    Some(Measured {
        bytes,
        seconds: sum["seconds"].as_f64()?,
        lost_percent: None,
    })
}

fn parse_udp(end: &Value, udp: &Udp, direction: Direction) -> Option<Measured> {
    let mut sums = vec![&end["sum"]];
    if direction == Direction::Both {
        sums.push(&end["sum_bidir_reverse"]);
    }
    let (mut sent, mut arrived) = (0.0, 0.0);
    for sum in &sums {
        let packets = sum["packets"].as_f64()?;
        sent += packets;
        arrived += packets - sum["lost_packets"].as_f64()?;
    }
    let payload_bytes = udp.payload_bytes as f64;
    Some(Measured {
        bytes: arrived * payload_bytes,
        seconds: sums[0]["seconds"].as_f64()?,
        lost_percent: Some(if sent > 0.0 {
            (sent - arrived) / sent * 100.0
        } else {
            100.0
        }),
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

    const BOTH_WAYS: &str = r#"{"end": {
        "sum_sent": {"seconds": 1.0, "bytes": 9000000000},
        "sum_received": {"seconds": 2.0, "bytes": 2000000000},
        "sum_received_bidir_reverse": {"seconds": 2.0, "bytes": 500000000}}}"#;

    #[test]
    fn tcp_counts_what_was_received() {
        let measured = parse(BOTH_WAYS, &tcp(Direction::ToService)).expect("measured");
        assert_eq!(measured.bytes, 2e9);
        assert_eq!(measured.gbit_per_second(), 8.0);
        assert_eq!(measured.lost_percent, None);
    }

    #[test]
    fn both_ways_are_added_up() {
        let measured = parse(BOTH_WAYS, &tcp(Direction::Both)).expect("measured");
        assert_eq!(measured.gbit_per_second(), 10.0);
    }

    #[test]
    fn udp_counts_what_was_not_lost() {
        let test = Test {
            udp: Some(Udp {
                payload_bytes: 1_000,
                rate: "1M".into(),
            }),
            ..tcp(Direction::ToService)
        };
        let output = r#"{"end": {"sum": {"seconds": 1.0, "packets": 200, "lost_packets": 50, "bytes": 200000}}}"#;
        let measured = parse(output, &test).expect("measured");
        assert_eq!(measured.bytes, 150_000.0);
        assert_eq!(measured.lost_percent, Some(25.0));
    }

    #[test]
    fn failures_are_told() {
        let failed = r#"{"end": {}, "error": "unable to connect"}"#;
        let test = tcp(Direction::ToService);
        assert_eq!(parse(failed, &test), Err("unable to connect".into()));
        assert!(parse("iperf3: parameter error", &test).is_err());
        assert!(parse("{}", &test).is_err());
        let nothing = r#"{"end": {"sum_received": {"seconds": 1.0, "bytes": 0}}}"#;
        assert_eq!(parse(nothing, &test), Err("nothing arrived".into()));
    }

    #[test]
    fn the_command_line_is_iperf3s() {
        let visit = SocketAddr::from(([127, 0, 0, 1], 80));
        let line = launch(&tcp(Direction::ToVisitor), Extent::Seconds(3), visit).command_line();
        let wanted = "iperf3 --json --client 127.0.0.1 --port 80 --parallel 1 --time 3 --reverse";
        assert_eq!(line, wanted);
    }
}
