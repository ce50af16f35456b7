//! Numbered packets in one direction at a steady pace, and what arrives of them.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use qmux_link::Side;

use super::{Bench, ms};

/// A flood is over when no packet comes for this long: longer than a busy machine keeps a thread
/// waiting.
const FLOOD_PAUSE_MAX: Duration = Duration::from_secs(2);

impl Bench {
    /// Sends numbered packets at a steady pace and listens until no more come.
    pub(super) fn flood(
        &self,
        from: Side,
        payload_bytes: usize,
        packets_per_s: u64,
        packets: u64,
    ) -> Flood {
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
pub(super) struct Flood {
    /// The packets' numbers as they arrived.
    pub(super) numbers: Vec<u64>,
    /// The time from the first packet to the last.
    pub(super) duration: Duration,
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
