//! UDP packets at a fixed rate.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::thread::set_current_timer_slack;

use super::service::Service;
use super::udp_sink::{self, Counts};
use super::wire::{PacketHeader, PacketKind, any_port};
use qmux_udp::{BatchSocket, SendBatch};

/// How long the source sleeps when nothing is due.
const TICK: Duration = Duration::from_micros(200);

/// The most that a source catches up on after it could not run, as time. More would be a burst that
/// nobody has asked for; what is not sent is not counted as offered either.
const CATCH_UP: Duration = Duration::from_millis(2);

/// The last packets count as lost if nothing has arrived for this long.
const SETTLED: Duration = Duration::from_millis(150);

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// Bytes of each packet's payload.
    pub(crate) payload_bytes: usize,
    /// Packets per second.
    pub(crate) rate: f64,
    /// The most packets of one system call. Visitors on real networks send single packets, which
    /// the network card or the kernel hands over many at a time; on loopback only a call with many
    /// does that.
    pub(crate) burst_packets: usize,
}

/// The most UDP packets of one system call of a visitor: this many come together from a network
/// card under load.
pub(crate) const BURST: usize = 16;

impl Stream {
    pub(crate) fn of_gbit(payload_bytes: usize, gbit: f64) -> Self {
        let payload_bytes = payload_bytes.max(PacketHeader::BYTES);
        Self {
            payload_bytes,
            rate: gbit * 1e9 / 8.0 / payload_bytes as f64,
            burst_packets: BURST,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) sent: u64,
    pub(crate) arrived: Counts,
    pub(crate) seconds: f64,
}

impl Delivery {
    pub(crate) fn offered_per_second(&self) -> f64 {
        self.sent as f64 / self.seconds
    }

    pub(crate) fn arrived_per_second(&self) -> f64 {
        self.arrived.packets as f64 / self.seconds
    }

    pub(crate) fn lost_percent(&self) -> f64 {
        if self.sent == 0 {
            return 100.0;
        }
        self.sent.saturating_sub(self.arrived.packets) as f64 / self.sent as f64 * 100.0
    }

    /// What tables show of it, each with its metric's name.
    pub(crate) fn values(&self) -> [(&'static str, f64); 3] {
        let gbit = self.arrived.bytes as f64 * 8.0 / self.seconds / 1e9;
        [
            ("throughput_gbit_s", gbit),
            ("lost_percent", self.lost_percent()),
            ("packets_per_second", self.arrived_per_second()),
        ]
    }
}

#[derive(Debug)]
pub(crate) struct UdpSource {
    runtime: tokio::runtime::Runtime,
    socket: BatchSocket,
    visit: SocketAddr,
    batch: SendBatch,
}

impl UdpSource {
    /// With a port of its own, so that it is one visitor.
    pub(crate) fn new(visit: SocketAddr) -> Result<Self> {
        let (runtime, socket) = udp_sink::bind(any_port(visit)).context("sending UDP")?;
        Ok(Self {
            runtime,
            socket,
            visit,
            batch: SendBatch::new(),
        })
    }

    /// Sends a stream for `duration`, and waits until the service has all that it will get of it.
    pub(crate) fn deliver(
        &mut self,
        stream: &Stream,
        lasts: Duration,
        service: &Service,
    ) -> Result<Delivery> {
        let run = service.udp.begin_run();
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let sent = self.send(stream, lasts, run);
        let _ = set_current_timer_slack(None);
        let (sent, seconds) = sent.context("sending UDP")?;
        let mut arrived = service.udp.counts();
        let mut changed = Instant::now();
        while arrived.packets < sent && changed.elapsed() < SETTLED {
            thread::sleep(Duration::from_millis(5));
            let counts = service.udp.counts();
            if counts != arrived {
                arrived = counts;
                changed = Instant::now();
            }
        }
        Ok(Delivery {
            sent,
            arrived,
            seconds,
        })
    }

    fn send(&mut self, stream: &Stream, lasts: Duration, run: u16) -> io::Result<(u64, f64)> {
        let mut packet = vec![0x5a; stream.payload_bytes.max(PacketHeader::BYTES)];
        let mut header = PacketHeader {
            kind: PacketKind::Count,
            run,
            number: 0,
        };
        let start = Instant::now();
        let mut pace = Pace {
            rate: stream.rate,
            passed: 0.0,
        };
        let Self {
            runtime,
            socket,
            visit,
            batch,
        } = self;
        runtime.block_on(async {
            loop {
                let elapsed = start.elapsed();
                if elapsed >= lasts {
                    return Ok((header.number, elapsed.as_secs_f64()));
                }
                let due = pace.due(elapsed);
                if due == 0 {
                    thread::sleep(TICK);
                    continue;
                }
                for index in 1..=due {
                    header.write(&mut packet);
                    batch.push(socket, *visit, None, &packet).await?;
                    header.number += 1;
                    if index.is_multiple_of(stream.burst_packets as u64) {
                        batch.flush(socket).await?;
                    }
                }
                batch.flush(socket).await?;
            }
        })
    }
}

#[derive(Debug)]
struct Pace {
    rate: f64,
    /// Packets that were due until now, sent or given up.
    passed: f64,
}

impl Pace {
    fn due(&mut self, elapsed: Duration) -> u64 {
        let target = elapsed.as_secs_f64() * self.rate;
        let catch_up = (CATCH_UP.as_secs_f64() * self.rate).max(1.0);
        let due = (target - self.passed).floor();
        if due > catch_up {
            // What lies further back is given up.
            self.passed = target - catch_up.floor();
        }
        let due = due.min(catch_up).floor().max(0.0);
        self.passed += due;
        due as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_due_at_their_rate_and_a_stall_is_not_made_up_for_by_a_burst() {
        for (rate, moments_us, wanted) in [
            (1_000.0, [500, 1_000, 1_500], [0, 1, 0]),
            // 1,000 were due; 2 ms of them are sent.
            (10_000.0, [100_000, 101_000, 101_100], [20, 10, 1]),
        ] {
            let mut pace = Pace { rate, passed: 0.0 };
            let due = moments_us.map(|us| pace.due(Duration::from_micros(us)));
            assert_eq!(due, wanted);
        }
    }

    #[test]
    fn loss_is_what_did_not_arrive() {
        let delivery = Delivery {
            sent: 1_000,
            arrived: Counts {
                packets: 999,
                bytes: 999_000,
                reordered: 0,
            },
            seconds: 2.0,
        };
        assert!((delivery.lost_percent() - 0.1).abs() < 1e-9);
        let rates = [delivery.offered_per_second(), delivery.arrived_per_second()];
        assert_eq!(rates, [500.0, 499.5]);
    }
}
