//! Segments and TCP streams across the link.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qmux_link::{Loss, Profile, QueueLimit, Side};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

use super::{Bench, MBIT, ms, print_stats, symmetric, within_5_percent};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn what_is_sent_as_segments_crosses_the_link_as_packets() {
    const PACKETS: usize = 40;
    const PAYLOAD_BYTES: usize = 1_200;
    let Some(bench) = symmetric(Profile::line(100_000_000, ms(1))) else {
        return;
    };
    let receiver = bench.udp(Side::Right);
    let sender = bench.udp(Side::Left);
    let contents: Vec<u8> = (0..PACKETS * PAYLOAD_BYTES).map(pattern).collect();
    let transmit = Transmit {
        destination: receiver.local_addr().unwrap(),
        ecn: None,
        contents: &contents,
        segment_size: Some(PAYLOAD_BYTES),
        src_ip: None,
    };
    let state = UdpSocketState::new(UdpSockRef::from(&sender)).unwrap();
    assert!(
        state.max_gso_segments() >= PACKETS,
        "no segmentation offload"
    );
    state
        .try_send(UdpSockRef::from(&sender), &transmit)
        .unwrap();
    let mut buffer = [0; 2_000];
    for packet in contents.chunks(PAYLOAD_BYTES) {
        let bytes = receiver.recv(&mut buffer).unwrap();
        assert!(buffer[..bytes] == *packet);
    }
    // The counters are published after the packets have left.
    let deadline = Instant::now() + PATIENCE;
    while bench.stats().left_to_right.counters.delivered_packets < PACKETS as u64 {
        assert!(
            Instant::now() < deadline,
            "not counted: {:?}",
            bench.stats()
        );
        thread::sleep(ms(1));
    }
    let counters = bench.stats().left_to_right.counters;
    assert_eq!(counters.offered_packets, PACKETS as u64);
    assert_eq!(counters.delivered_packets, PACKETS as u64);
}

/// A byte that depends on its position.
fn pattern(position: usize) -> u8 {
    (position.wrapping_mul(0x9e37_79b9) >> 16) as u8
}

#[test]
fn streams_come_through_unchanged_whatever_happens_to_their_packets() {
    const BYTES: usize = 8_000_000;
    let profile = Profile {
        jitter: ms(1),
        loss: Loss::Bursts {
            p_enter: 0.001,
            p_leave: 0.5,
            p_loss: 1.0,
        },
        reorder: 0.01,
        duplicate: 0.01,
        ..Profile::line(300_000_000, ms(2))
    };
    let Some(bench) = symmetric(profile) else {
        return;
    };
    let address = SocketAddr::new(bench.network.addr(Side::Right), 0);
    let listener = bench
        .network
        .within(Side::Right, || TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let address = listener.local_addr().unwrap();
    let sent: Vec<u8> = (0..BYTES).map(pattern).collect();
    let (received, returned) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = vec![0; BYTES];
            stream.read_exact(&mut received).unwrap();
            stream.write_all(&received).unwrap();
            received
        });
        let mut stream = bench
            .network
            .within(Side::Left, || TcpStream::connect(address))
            .unwrap()
            .unwrap();
        stream.write_all(&sent).unwrap();
        let mut returned = Vec::new();
        stream.read_to_end(&mut returned).unwrap();
        (server.join().unwrap(), returned)
    });
    assert!(received == sent, "changed on the way there");
    assert!(returned == sent, "changed on the way back");
    let stats = bench.stats();
    assert!(stats.left_to_right.counters.lost_packets > 0);
    assert!(stats.right_to_left.counters.reordered_packets > 0);
}

/// The goodput of one TCP stream from right to left in Mbit/s; `None` without iperf3.
fn iperf3(bench: &Bench, seconds: u32) -> Option<f64> {
    if Command::new("iperf3").arg("--version").output().is_err() {
        println!("SKIPPED: there is no iperf3; scripts/setup.sh installs it");
        return None;
    }
    let left = bench.network.addr(Side::Left).to_string();
    let mut server = bench
        .network
        .command(Side::Left, "iperf3")
        .args(["--server", "--bind", &left, "--forceflush"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let listening = BufReader::new(server.stdout.as_mut().unwrap())
        .lines()
        .any(|line| line.unwrap().starts_with("Server listening"));
    assert!(listening);
    let seconds = seconds.to_string();
    let report = bench
        .network
        .command(Side::Right, "iperf3")
        .args(["--client", &left, "--time", &seconds, "--omit", "1"])
        .arg("--json")
        .output()
        .unwrap()
        .stdout;
    server.kill().unwrap();
    server.wait().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let bits_per_s = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Some(bits_per_s.unwrap_or_else(|| panic!("{report}")) / MBIT)
}

/// The share of TCP's payload in its packets: 20 bytes of IP, 20 of TCP and 12 of timestamps in
/// 1,500.
const TCP_PAYLOAD_SHARE: f64 = 1_448.0 / 1_500.0;

#[test]
fn one_tcp_stream_fills_a_clean_line() {
    let Some(bench) = symmetric(Profile::line(200_000_000, ms(5))) else {
        return;
    };
    if let Some(goodput) = iperf3(&bench, 3) {
        within_5_percent("TCP in Mbit/s", goodput, 200.0 * TCP_PAYLOAD_SHARE);
        print_stats(&bench.stats());
    }
}

#[test]
fn a_fast_line_is_never_faster_than_asked() {
    for gbit in [1_u32, 2, 4] {
        let profile = Profile {
            queue: QueueLimit::Bytes(4 << 20),
            ..Profile::line(u64::from(gbit) * 1_000_000_000, ms(1))
        };
        let Some(bench) = symmetric(profile) else {
            return;
        };
        let Some(goodput) = iperf3(&bench, 3) else {
            return;
        };
        let asked = f64::from(gbit) * 1e3 * TCP_PAYLOAD_SHARE;
        println!(
            "{gbit} Gbit/s: TCP has {:.1} % of it",
            goodput / asked * 100.0
        );
        print_stats(&bench.stats());
        // How much of the rate is reached depends on the machine, and is not judged.
        assert!(goodput < asked * 1.05);
    }
}
