//! UDP packets at a fixed rate.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

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

/// The last packets count as lost if nothing has arrived for so long.
const SETTLED: Duration = Duration::from_millis(150);

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// Bytes of each packet's payload.
    pub payload_bytes: usize,
    /// Packets per second.
    pub rate: f64,
    /// The most packets of one system call. Visitors on real networks send single packets, which
    /// the network card or the kernel hands over many at a time; on loopback only a call with many
    /// does that.
    pub burst_packets: usize,
    /// For how long.
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delivery {
    /// Packets that were sent.
    pub sent: u64,
    /// What arrived.
    pub arrived: Counts,
    /// How long was sent.
    pub seconds: f64,
}

impl Delivery {
    /// Packets offered per second.
    pub fn offered_per_second(&self) -> f64 {
        exact(self.sent) / self.seconds
    }

    /// Packets that arrived per second of sending.
    pub fn arrived_per_second(&self) -> f64 {
        exact(self.arrived.packets) / self.seconds
    }

    /// Payload that arrived, in Gbit/s.
    pub fn gbit_per_second(&self) -> f64 {
        exact(self.arrived.bytes) * 8.0 / self.seconds / 1e9
    }

    /// What tables show of it, each with its metric's name.
    pub fn values(&self) -> [(&'static str, f64); 3] {
        [
            ("throughput_gbit_s", self.gbit_per_second()),
            ("lost_percent", self.lost_percent()),
            ("packets_per_second", self.arrived_per_second()),
        ]
    }

    /// Percent of the packets that did not arrive.
    pub fn lost_percent(&self) -> f64 {
        if self.sent == 0 {
            return 100.0;
        }
        exact(self.sent.saturating_sub(self.arrived.packets)) / exact(self.sent) * 100.0
    }
}

fn exact(count: u64) -> f64 {
    count as f64
}

/// A socket that sends.
#[derive(Debug)]
pub struct UdpSource {
    runtime: tokio::runtime::Runtime,
    socket: BatchSocket,
    visit: SocketAddr,
    batch: SendBatch,
}

impl UdpSource {
    /// With a port of its own, so that it is one visitor.
    pub fn new(visit: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let socket = udp_sink::bind(any_port(visit))?;
        let socket = {
            let _context = runtime.enter();
            BatchSocket::new(socket)?
        };
        Ok(Self {
            runtime,
            socket,
            visit,
            batch: SendBatch::new(),
        })
    }

    /// Sends a stream and waits until the service has what it will get of it.
    pub fn deliver(&mut self, stream: &Stream, service: &Service) -> io::Result<Delivery> {
        let run = service.udp.begin_run();
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let sent = self.send(stream, run);
        let _ = set_current_timer_slack(None);
        let (sent, seconds) = sent?;
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

    fn send(&mut self, stream: &Stream, run: u16) -> io::Result<(u64, f64)> {
        let mut packet = vec![0x5a; stream.payload_bytes.max(PacketHeader::BYTES)];
        let mut header = PacketHeader {
            kind: PacketKind::Count,
            run,
            number: 0,
        };
        let start = Instant::now();
        let mut pace = Pace::new(stream.rate);
        let Self {
            runtime,
            socket,
            visit,
            batch,
        } = self;
        runtime.block_on(async {
            loop {
                let elapsed = start.elapsed();
                if elapsed >= stream.duration {
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

/// How many packets are due.
#[derive(Debug)]
struct Pace {
    rate: f64,
    /// Packets that were due until now, sent or given up.
    passed: f64,
}

impl Pace {
    fn new(rate: f64) -> Self {
        Self { rate, passed: 0.0 }
    }

    /// How many to send now.
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
    use crate::harness::place::Place;

    #[test]
    fn packets_are_due_at_their_rate() {
        let mut pace = Pace::new(1_000.0);
        let due: Vec<u64> = (1..=5)
            .map(|step| pace.due(Duration::from_micros(500 * step)))
            .collect();
        assert_eq!(due, [0, 1, 0, 1, 0]);
    }

    #[test]
    fn a_stall_is_not_made_up_for_by_a_burst() {
        let mut pace = Pace::new(10_000.0);
        // 1,000 were due; 2 ms of them are sent.
        assert_eq!(pace.due(Duration::from_millis(100)), 20);
        assert_eq!(pace.due(Duration::from_millis(101)), 10);
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
        assert_eq!(delivery.offered_per_second(), 500.0);
        assert_eq!(delivery.arrived_per_second(), 499.5);
    }

    #[test]
    fn packets_reach_the_service() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let mut source = UdpSource::new(service.address).expect("a source");
        for burst_packets in [1, 16] {
            let stream = Stream {
                payload_bytes: 100,
                rate: 5_000.0,
                burst_packets,
                duration: Duration::from_millis(100),
            };
            let delivery = source.deliver(&stream, &service).expect("delivered");
            assert!(delivery.sent > 0 && delivery.arrived.packets > 0);
            assert!(delivery.arrived.packets <= delivery.sent);
        }
    }
}
