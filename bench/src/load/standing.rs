//! Loads that work for a while, stand still and work again, over the same connections: what a
//! tunnel does for each unit of their work can be counted exactly, by whatever is begun and ended
//! while they stand.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::bulk::{Bulk, Way};
use super::connect::{self, Ask, Period};
use super::ping_pong;
use super::service::Service;
use super::udp_source::{Stream, UdpSource};
use crate::harness::BenchError;

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Nothing: what passes is time, in milliseconds.
    Idle,
    /// Small messages there and back, one at a time, on one TCP connection.
    RoundTrips,
    /// Visitors that connect, say something small, hear it back and close; so many at a time.
    Visitors(usize),
    /// UDP datagrams to the service.
    Datagrams {
        /// Bytes of each.
        payload_bytes: usize,
        /// How many per second.
        rate: f64,
        /// The most of one system call of the visitor.
        burst_packets: usize,
    },
    /// TCP, as many bytes as go through. It does not stand still, so that what is counted begins
    /// and ends at some byte.
    Bulk(Way),
}

/// A load that is ready to work.
#[derive(Debug)]
pub struct Standing<'a> {
    service: &'a Service,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle(Instant),
    RoundTrips(RoundTrips),
    Visitors(Visitors),
    Datagrams(Box<Datagrams>),
    Bulk(Bulk),
}

impl<'a> Standing<'a> {
    /// Connects where the work needs a connection.
    pub fn start(work: Work, visit: SocketAddr, service: &'a Service) -> Result<Self, BenchError> {
        let state = match work {
            Work::Idle => State::Idle(Instant::now()),
            Work::RoundTrips => State::RoundTrips(RoundTrips {
                visitor: ping_pong::Tcp::open(visit)
                    .map_err(BenchError::io(format!("connecting to {visit}")))?,
                done: 0,
            }),
            Work::Visitors(at_a_time) => State::Visitors(Visitors {
                visit,
                at_a_time,
                done: 0,
            }),
            Work::Datagrams {
                payload_bytes,
                rate,
                burst_packets,
            } => State::Datagrams(Box::new(Datagrams {
                source: UdpSource::new(visit).map_err(BenchError::io("a UDP socket"))?,
                stream: Stream {
                    payload_bytes,
                    rate,
                    burst_packets,
                    duration: Duration::ZERO,
                },
                sent: 0,
                arrived: 0,
            })),
            Work::Bulk(way) => State::Bulk(Bulk::start(visit, way, 1)?),
        };
        Ok(Self { service, state })
    }

    /// Works for so long.
    pub fn work(&mut self, duration: Duration) -> Result<(), BenchError> {
        match &mut self.state {
            State::Idle(_) => {
                thread::sleep(duration);
                Ok(())
            }
            State::RoundTrips(it) => it.work(duration),
            State::Visitors(it) => it.work(duration),
            State::Datagrams(it) => it.work(duration, self.service),
            State::Bulk(bulk) => {
                thread::sleep(duration);
                if bulk.is_broken() {
                    return Err(BenchError::Failed("the bulk connection broke".into()));
                }
                Ok(())
            }
        }
    }

    /// What has been done so far: milliseconds, round trips, visits, datagrams that arrived, bytes
    /// that arrived.
    pub fn done(&self) -> u64 {
        match &self.state {
            State::Idle(since) => since.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            State::RoundTrips(it) => it.done,
            State::Visitors(it) => it.done,
            State::Datagrams(it) => it.arrived,
            State::Bulk(bulk) => bulk.arrived_bytes(self.service),
        }
    }

    /// Datagrams that were sent so far; `None` of other work, which loses nothing.
    pub fn sent(&self) -> Option<u64> {
        match &self.state {
            State::Datagrams(it) => Some(it.sent),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct RoundTrips {
    visitor: ping_pong::Tcp,
    done: u64,
}

impl RoundTrips {
    fn work(&mut self, duration: Duration) -> Result<(), BenchError> {
        let start = Instant::now();
        while start.elapsed() < duration {
            let round_trip = self.visitor.round_trip();
            round_trip.map_err(BenchError::io("a round trip"))?;
            self.done += 1;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Visitors {
    visit: SocketAddr,
    at_a_time: usize,
    done: u64,
}

impl Visitors {
    fn work(&mut self, duration: Duration) -> Result<(), BenchError> {
        let period = Period::of(duration);
        let visits = match self.at_a_time {
            0 | 1 => connect::sequential(self.visit, Ask::Echo, period),
            _ => connect::concurrent(self.visit, Ask::Echo, self.at_a_time, period)
                .map_err(BenchError::io("visitors"))?,
        };
        self.done += visits.times.count();
        match visits.failed {
            0 => Ok(()),
            failed => Err(BenchError::Failed(format!("{failed} visits failed"))),
        }
    }
}

#[derive(Debug)]
struct Datagrams {
    source: UdpSource,
    stream: Stream,
    sent: u64,
    arrived: u64,
}

impl Datagrams {
    fn work(&mut self, duration: Duration, service: &Service) -> Result<(), BenchError> {
        let stream = Stream {
            duration,
            ..self.stream
        };
        let delivery = self
            .source
            .deliver(&stream, service)
            .map_err(BenchError::io("sending UDP"))?;
        self.sent += delivery.sent;
        self.arrived += delivery.arrived.packets;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::place::Place;

    #[test]
    fn work_is_counted_over_several_times() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let datagrams = Work::Datagrams {
            payload_bytes: 64,
            rate: 1_000.0,
            burst_packets: 1,
        };
        for work in [
            Work::Idle,
            Work::RoundTrips,
            Work::Visitors(1),
            Work::Visitors(4),
            datagrams,
            Work::Bulk(Way::Up),
            Work::Bulk(Way::Down),
        ] {
            let mut load = Standing::start(work, service.address, &service).expect("ready");
            let mut last = 0;
            for _ in 0..2 {
                while load.done() == last {
                    load.work(Duration::from_millis(10)).expect("work");
                }
                last = load.done();
            }
            assert!(load.sent().is_none_or(|sent| sent >= last), "{work:?}");
        }
    }

    #[test]
    fn work_that_fails_is_an_error() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let closed = closed.expect("an address");
        assert!(Standing::start(Work::RoundTrips, closed, &service).is_err());
        let mut load = Standing::start(Work::Visitors(1), closed, &service).expect("ready");
        assert!(load.work(Duration::from_millis(10)).is_err());
    }
}
