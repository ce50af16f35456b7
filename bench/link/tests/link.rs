//! Compares the link emulator with what its profiles ask for, from programs and sockets at its two
//! ends.
//!
//! It needs root rights, /dev/net/tun and `ip`; where they are missing each test says so and ends,
//! as it does if `QMUX_LINK_LEFT_OUT` is set: these tests wait for packets for most of a minute.
//! Run it with `--nocapture` to see what was measured.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use qmux_link::{Loss, Network, Profile, QueueLimit, Side, Stats, preset};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};

const SEED: u64 = 20_240_611;
const MBIT: f64 = 1e6;
const UDP_AND_IP_HEADER_BYTES: usize = 28;

/// A flood is over when no packet comes for this long: longer than a busy machine keeps a thread
/// waiting.
const FLOOD_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the tests measure one after the other: at the same time they would measure the scheduler.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Bench {
    network: Network,
    _turn: MutexGuard<'static, ()>,
}

/// A network, or `None` after saying why there is none.
fn bench(left_to_right: Profile, right_to_left: Profile) -> Option<Bench> {
    if std::env::var_os("QMUX_LINK_LEFT_OUT").is_some() {
        println!("SKIPPED: QMUX_LINK_LEFT_OUT is set");
        return None;
    }
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    match Network::new(left_to_right, right_to_left, SEED) {
        Ok(network) => Some(Bench {
            network,
            _turn: turn,
        }),
        Err(error) if error.is_unsupported() => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn symmetric(profile: Profile) -> Option<Bench> {
    bench(profile.clone(), profile)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn within_5_percent(what: &str, measured: f64, asked: f64) {
    let off = measured / asked - 1.0;
    println!(
        "{what}: {measured:.4}, asked {asked:.4}, {:+.2} %",
        off * 100.0
    );
    assert!(off.abs() <= 0.05, "{what} is {measured}, asked was {asked}");
}

impl Bench {
    /// A socket on a host, with a buffer that a stalled test does not overflow.
    fn udp(&self, side: Side) -> UdpSocket {
        let address = SocketAddr::new(self.network.addr(side), 0);
        let socket = self
            .network
            .within(side, || UdpSocket::bind(address))
            .unwrap()
            .unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 32 << 20).unwrap();
        socket.set_read_timeout(Some(ms(500))).unwrap();
        socket
    }

    fn stats(&self) -> Stats {
        self.network.stats().unwrap()
    }

    /// Packets that reached a host and did not fit into a socket's buffer.
    fn socket_drops(&self, side: Side) -> u64 {
        let table = self
            .network
            .within(side, || fs::read_to_string("/proc/thread-self/net/snmp"))
            .unwrap()
            .unwrap();
        let mut rows = table.lines().filter(|line| line.starts_with("Udp:"));
        let column = rows
            .next()
            .unwrap()
            .split_whitespace()
            .position(|name| name == "RcvbufErrors")
            .unwrap();
        let values = rows.next().unwrap();
        values
            .split_whitespace()
            .nth(column)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Sends numbered packets at a steady pace and listens until no more come.
    fn flood(&self, from: Side, payload_bytes: usize, packets_per_s: u64, packets: u64) -> Flood {
        let receiver = self.udp(from.opposite());
        receiver.set_read_timeout(Some(FLOOD_PAUSE_MAX)).unwrap();
        let sender = self.udp(from);
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| send_paced(&sender, payload_bytes, packets_per_s, packets));
            receive_all(&receiver)
        })
    }
}

/// The result of a flood.
struct Flood {
    /// The packets' numbers as they arrived.
    numbers: Vec<u64>,
    /// The time from the first packet to the last.
    duration: Duration,
}

/// The most packets that a sender that was kept waiting sends at once: a small part of the
/// interface's queue, and more than becomes due, at the rates here, while a busy machine keeps the
/// sender waiting.
const BURST_MAX: u64 = 2_000;

/// The number of packets that are due by now, and the start to count from: packets that are more
/// than a burst behind are put off rather than sent at once.
fn due(started: &mut Instant, now: Instant, packets_per_s: u64, sent: u64) -> u64 {
    let elapsed = now.duration_since(*started).as_nanos();
    let due = (elapsed * u128::from(packets_per_s) / 1_000_000_000) as u64;
    let behind = due.saturating_sub(sent + BURST_MAX);
    *started += Duration::from_nanos(behind * 1_000_000_000 / packets_per_s);
    due - behind
}

#[test]
fn a_sender_that_stalled_does_not_make_up_for_all_of_it() {
    let now = Instant::now();
    let mut started = now;
    assert_eq!(due(&mut started, now + ms(10), 100_000, 0), 1_000);
    assert_eq!(started, now);
    // 99,000 are due, and what is put off stays so.
    let later = now + ms(1_000);
    assert_eq!(due(&mut started, later, 100_000, 1_000), 3_000);
    assert_eq!(due(&mut started, later, 100_000, 3_000), 3_000);
    assert_eq!(due(&mut started, later + ms(1), 100_000, 3_000), 3_100);
}

fn send_paced(socket: &UdpSocket, payload_bytes: usize, packets_per_s: u64, packets: u64) {
    let mut payload = vec![0; payload_bytes];
    let mut started = Instant::now();
    let mut sent = 0_u64;
    while sent < packets {
        let due = due(&mut started, Instant::now(), packets_per_s, sent);
        while sent < due.min(packets) {
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            socket.send(&payload).unwrap();
            sent += 1;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

fn receive_all(socket: &UdpSocket) -> Flood {
    let mut buffer = [0; 2_000];
    let mut numbers = Vec::new();
    let (mut first, mut last) = (None, None);
    // The first packet may take as long as the delay.
    while let Ok(bytes) = socket.recv(&mut buffer) {
        assert!(bytes >= 8);
        numbers.push(u64::from_be_bytes(buffer[..8].try_into().unwrap()));
        let now = Instant::now();
        first.get_or_insert(now);
        last = Some(now);
    }
    let duration = first.zip(last).map(|(first, last)| last - first);
    Flood {
        numbers,
        duration: duration.unwrap_or_default(),
    }
}

/// The quickest tenth of round trips of small packets, with an echo on the other side. The others
/// may have waited for a CPU: on a busy machine that is most of them.
fn round_trip(bench: &Bench, pings: u64) -> Duration {
    let echo = bench.udp(Side::Right);
    let pinger = bench.udp(Side::Left);
    pinger.connect(echo.local_addr().unwrap()).unwrap();
    let over = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !over.load(Ordering::SeqCst) {
                // The receive has timed out: the ping got lost, and the next one comes after the
                // pinger's timeout.
                if let Ok((bytes, source)) = echo.recv_from(&mut buffer) {
                    echo.send_to(&buffer[..bytes], source).unwrap();
                }
            }
        });
        let times = (0..pings).filter_map(|number| ping(&pinger, number));
        let times = times.collect::<Vec<_>>();
        over.store(true, Ordering::SeqCst);
        times
    });
    assert!(times.len() as u64 > pings / 2, "{} echoes", times.len());
    times.sort();
    times[times.len() / 10]
}

fn ping(socket: &UdpSocket, number: u64) -> Option<Duration> {
    let sent = Instant::now();
    socket.send(&number.to_be_bytes()).unwrap();
    let mut buffer = [0; 64];
    loop {
        // An error is a timeout: the ping or its echo got lost.
        socket.recv(&mut buffer).ok()?;
        if buffer[..8] == number.to_be_bytes() {
            return Some(sent.elapsed());
        }
    }
}

fn print_stats(stats: &Stats) {
    for (name, direction) in [
        ("left to right", &stats.left_to_right),
        ("right to left", &stats.right_to_left),
    ] {
        println!(
            "{name}: {} packets, {} dropped outside of the link, {} failed, late p50 {:?} p99 {:?} max {:?}, cpu {:?}",
            direction.counters.delivered_packets,
            direction.dropped_by_interface_packets,
            direction.failed_packets,
            direction.lateness.p50,
            direction.lateness.p99,
            direction.lateness.max,
            direction.cpu,
        );
    }
}

#[test]
fn asked_for_200_mbit_20_ms_and_1_percent_it_delivers_each() {
    let reference = preset("reference").unwrap();
    let Some(bench) = bench(reference.left_to_right, reference.right_to_left) else {
        return;
    };

    let round_trip = round_trip(&bench, 100);
    within_5_percent("round trip in ms", round_trip.as_secs_f64() * 1e3, 40.0);

    // 1.25 times the rate for three seconds.
    let flood = bench.flood(Side::Left, 1_472, 20_833, 62_500);
    let bits = (flood.numbers.len() - 1) as f64 * 1_500.0 * 8.0;
    let rate = bits / flood.duration.as_secs_f64() / MBIT;
    // Packets that get lost have used the line.
    within_5_percent("rate behind the loss in Mbit/s", rate, 200.0);
    within_5_percent("rate of the line in Mbit/s", rate / 0.99, 200.0);

    // 700,000 packets have 7,000 losses with a deviation of 83: 5 % are four of these.
    let outside = |stats: &Stats| {
        stats.left_to_right.dropped_by_interface_packets + bench.socket_drops(Side::Right)
    };
    let before = bench.stats();
    let outside_before = outside(&before);
    let before = before.left_to_right.counters;
    let packets = 700_000;
    let flood = bench.flood(Side::Left, 36, 150_000, packets);
    let after = bench.stats();
    let counters = after.left_to_right.counters;
    let arrived = flood.numbers.len() as u64;
    let queue = counters.dropped_by_queue_packets - before.dropped_by_queue_packets;
    let elsewhere = outside(&after) - outside_before;
    println!(
        "{packets} small packets: {arrived} arrived, {queue} dropped by the queue, {elsewhere} outside of the link"
    );
    let lost = packets - arrived - queue - elsewhere;
    assert_eq!(lost, counters.lost_packets - before.lost_packets);
    within_5_percent(
        "loss in %",
        lost as f64 / (packets - queue - elsewhere) as f64 * 100.0,
        1.0,
    );
    print_stats(&after);
}

#[test]
fn each_direction_has_its_own_rate() {
    let Some(bench) = bench(
        Profile::line(60_000_000, ms(5)),
        Profile::line(12_000_000, ms(5)),
    ) else {
        return;
    };
    for (side, mbit) in [(Side::Left, 60.0), (Side::Right, 12.0)] {
        let packets_per_s = (mbit * 1.5 * MBIT / 12_000.0) as u64;
        let flood = bench.flood(side, 1_472, packets_per_s, 2 * packets_per_s);
        let bits = (flood.numbers.len() - 1) as f64 * 12_000.0;
        let rate = bits / flood.duration.as_secs_f64() / MBIT;
        within_5_percent("rate in Mbit/s", rate, mbit);
    }
}

#[test]
fn reordered_and_duplicated_packets_arrive_as_counted() {
    let profile = Profile {
        delay: ms(10),
        reorder: 0.02,
        duplicate: 0.01,
        ..Profile::default()
    };
    let Some(bench) = symmetric(profile) else {
        return;
    };
    let packets = 100_000;
    let flood = bench.flood(Side::Right, 100, 25_000, packets);
    let stats = bench.stats().right_to_left;
    let counters = stats.counters;
    let distinct: HashSet<u64> = flood.numbers.iter().copied().collect();
    let arrived = distinct.len() as u64;
    // A sender that was kept waiting makes up for it by a burst, which need not fit into the
    // interface's queue; nor need what arrives fit into the buffer of a receiver that was.
    let (interface, socket) = (
        stats.dropped_by_interface_packets,
        bench.socket_drops(Side::Left),
    );
    println!(
        "{arrived} of {packets} packets arrived, {interface} and {socket} dropped before and behind the link"
    );
    let all = flood.numbers.len() as u64;
    assert_eq!(
        all + interface + socket,
        packets + counters.duplicated_packets
    );
    assert!(interface + socket < packets / 50, "too few to measure");
    // Some of the packets that the socket dropped may have been one of two duplicates.
    assert!(arrived + interface <= packets && packets <= arrived + interface + socket);
    let duplicates = all - arrived;
    assert!(duplicates <= counters.duplicated_packets);
    assert!(counters.duplicated_packets <= duplicates + socket);
    within_5_percent("duplicates", duplicates as f64, 1_000.0);

    // A packet has overtaken if one with a smaller number comes after it.
    let mut smallest_to_come = u64::MAX;
    let mut overtakers = HashSet::new();
    for number in flood.numbers.iter().rev() {
        if smallest_to_come < *number {
            overtakers.insert(*number);
        }
        smallest_to_come = smallest_to_come.min(*number);
    }
    within_5_percent(
        "overtakers",
        overtakers.len() as f64,
        counters.reordered_packets as f64,
    );
    within_5_percent(
        "share of overtakers in %",
        overtakers.len() as f64 / 1e3,
        2.0,
    );
}

#[test]
fn a_packet_above_a_hidden_mtu_disappears() {
    let profile = Profile {
        mtu: 1_400,
        mtu_hidden: true,
        ..Profile::default()
    };
    let Some(bench) = symmetric(profile) else {
        return;
    };
    let receiver = bench.udp(Side::Right);
    let sender = bench.udp(Side::Left);
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let fits = 1_400 - UDP_AND_IP_HEADER_BYTES;
    sender.send(&vec![1; fits + 1]).unwrap();
    sender.send(&vec![2; fits]).unwrap();
    let mut buffer = [0; 2_000];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), fits);
    assert_eq!(buffer[0], 2);
    let counters = bench.stats().left_to_right.counters;
    assert_eq!(counters.dropped_by_mtu_packets, 1);
}

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

fn namespace_path(network: &Network, side: Side) -> PathBuf {
    PathBuf::from("/run/netns").join(network.namespace(side))
}

#[test]
fn nothing_stays_behind_not_even_after_a_panic() {
    let Some(bench) = symmetric(Profile::default()) else {
        return;
    };
    let Bench { network, _turn } = bench;
    let paths = [Side::Left, Side::Right].map(|side| namespace_path(&network, side));
    assert!(paths.iter().all(|path| path.exists()));
    let mut sleeper = network
        .command(Side::Left, "sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    // The process is in the namespace once its program runs.
    while fs::read_to_string(format!("/proc/{}/comm", sleeper.id())).unwrap() != "sleep\n" {
        thread::sleep(ms(1));
    }
    let panic = thread::spawn(move || {
        let _network = network;
        panic!("a test that fails with a network");
    });
    assert!(panic.join().is_err());
    assert!(!paths.iter().any(|path| path.exists()));
    assert!(!sleeper.wait().unwrap().success());
}

#[test]
fn what_a_killed_process_left_behind_is_removed_by_the_next() {
    // No process has this id: it is above what the kernel gives out (PID_MAX_LIMIT).
    let stale = "qmux-link-4194305-1-0-left";
    let Some(bench) = symmetric(Profile::default()) else {
        return;
    };
    let ip = |arguments: &[&str]| Command::new("ip").args(arguments).status();
    if !matches!(ip(&["netns", "add", stale]), Ok(status) if status.success()) {
        println!("SKIPPED: `ip` is not on the PATH");
        return;
    }
    let next = Network::new(Profile::default(), Profile::default(), SEED).unwrap();
    assert!(!PathBuf::from("/run/netns").join(stale).exists());
    assert!(namespace_path(&bench.network, Side::Left).exists());
    assert!(namespace_path(&next, Side::Left).exists());
}

#[test]
fn a_host_reaches_nothing_but_the_other_one() {
    let Some(bench) = symmetric(Profile::default()) else {
        return;
    };
    let outside: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let error = bench
        .network
        .within(Side::Left, || {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", outside)
        })
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
}
