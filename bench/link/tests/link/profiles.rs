//! Delay, rate, loss, order and MTU: packets meet with what their direction's profile asks for.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use qmux_link::{Profile, Side, Stats, preset};

use super::{Bench, MBIT, bench, ms, print_stats, symmetric, within_5_percent};

const UDP_AND_IP_HEADER_BYTES: usize = 28;

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
