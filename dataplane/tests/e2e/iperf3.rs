//! iperf3 through the tunnel: TCP in each direction, parallel streams, UDP. That it arrives; how
//! fast is for `bench`.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::counters;
use crate::support::peers;
use crate::support::program::Launch;
use crate::support::subject;
use crate::support::tunnel::Tunnel;

/// Bytes of each TCP test.
const TCP_BYTES: u64 = 256 << 20;
/// iperf3 counts what the receiver has when the sender has sent all, which is less by what windows
/// and buffers hold.
const TCP_BYTES_ON_THE_WAY_MAX: u64 = 64 << 20;
/// Bytes of each UDP test: at its rate below, about two seconds.
const UDP_BYTES: u64 = 5 << 20;
/// Slow enough for two cores that run other tests, too.
const UDP_BITS_PER_SECOND: &str = "20M";
/// Datagrams that iperf3 may miss: on a busy machine its own socket overflows, and only counters
/// tell that from losses in the tunnel.
const UDP_LOST_PERCENT_MAX: f64 = 50.0;
/// What the tunnel may lose, in thousandths, by its counters: at this rate nothing should be short
/// of room.
const UDP_LOST_IN_TUNNEL_PER_MILLE_MAX: u64 = 1;

fn iperf3(args: &[&str], bytes: u64) -> Value {
    let peer = peers::iperf3_server();
    run(&Tunnel::to(peer.address), args, bytes)
}

fn run(tunnel: &Tunnel, args: &[&str], bytes: u64) -> Value {
    let traffic = tunnel.traffic();
    let output = Launch::new("iperf3 client", "iperf3")
        .args(["--json", "--client", &traffic.ip().to_string()])
        .args(["--port", &traffic.port().to_string()])
        .args(["--bytes", &bytes.to_string()])
        .args(args)
        .output();
    let report: Value = serde_json::from_str(&output).expect("JSON");
    assert!(report["error"].is_null(), "{}", report["error"]);
    report
}

fn received_bytes(report: &Value) -> u64 {
    let received = &report["end"]["sum_received"]["bytes"];
    received.as_u64().unwrap_or_else(|| panic!("{report:#}"))
}

#[test]
fn tcp_from_the_visitor() {
    let report = iperf3(&[], TCP_BYTES);
    let received = received_bytes(&report);
    let least = TCP_BYTES - TCP_BYTES_ON_THE_WAY_MAX;
    assert!(received >= least, "{}", report["end"]);
}

#[test]
fn tcp_to_the_visitor() {
    let report = iperf3(&["--reverse"], TCP_BYTES);
    let received = received_bytes(&report);
    let least = TCP_BYTES - TCP_BYTES_ON_THE_WAY_MAX;
    assert!(received >= least, "{}", report["end"]);
}

#[test]
fn tcp_in_parallel_streams() {
    let report = iperf3(&["--parallel", "4"], TCP_BYTES);
    let streams = report["end"]["streams"].as_array().expect("streams");
    assert_eq!(streams.len(), 4);
    for stream in streams {
        let bytes = stream["receiver"]["bytes"].as_u64();
        assert!(bytes.is_some_and(|bytes| bytes > 0), "{stream}");
    }
}

#[test]
fn tcp_both_ways_at_once() {
    // iperf3 tells its two connections apart by the order in which they arrive. One core keeps that
    // order; a program that dials from several tasks or threads need not, and iperf3 then sends
    // from both ends of one connection.
    if subject::only_wire("tcp_both_ways_at_once") {
        return;
    }
    let report = iperf3(&["--bidir"], TCP_BYTES / 4);
    assert!(received_bytes(&report) > 0, "{}", report["end"]);
    let reverse = &report["end"]["sum_received_bidir_reverse"]["bytes"];
    assert!(reverse.as_u64().is_some_and(|bytes| bytes > 0), "{reverse}");
}

fn udp(args: &[&str]) {
    let peer = peers::iperf3_server();
    let mut tunnel = Tunnel::to(peer.address);
    let rate = ["--udp", "--bitrate", UDP_BITS_PER_SECOND];
    let report = run(&tunnel, &[&rate, args].concat(), UDP_BYTES);
    let sum = &report["end"]["sum"];
    let lost = sum["lost_percent"].as_f64().expect("a share of losses");
    // The counters of both programs say where; they are in the log that a failure prints.
    for program in [&mut tunnel.client, &mut tunnel.server.program] {
        program.signal(Signal::TERM);
        program.wait_for_exit();
    }
    assert!(lost <= UDP_LOST_PERCENT_MAX, "{sum}");
    assert!(sum["packets"].as_u64().is_some_and(|it| it > 0), "{sum}");
    if subject::only_wire("counters") {
        return;
    }
    let client = counters::of(&tunnel.client);
    let server = counters::of(&tunnel.server.program);
    for (from, to) in [(&client, &server), (&server, &client)] {
        let entered = counters::total(from, "udp_datagrams_in");
        let left = counters::total(to, "udp_datagrams_out");
        assert!(
            left * 1_000 >= entered * (1_000 - UDP_LOST_IN_TUNNEL_PER_MILLE_MAX),
            "{left} of {entered} datagrams left the tunnel"
        );
    }
}

#[test]
fn udp_in_small_datagrams() {
    udp(&["--length", "1150"]);
}

#[test]
fn udp_in_large_datagrams() {
    udp(&["--length", "8192"]);
}

#[test]
fn udp_to_the_visitor() {
    udp(&["--length", "1150", "--reverse"]);
}
