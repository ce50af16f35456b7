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

mod flood;
mod hosts;
mod profiles;
mod streams;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qmux_link::{Network, Profile, Side, Stats};

const SEED: u64 = 20_240_611;
const MBIT: f64 = 1e6;

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
