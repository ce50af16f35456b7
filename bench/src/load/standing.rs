//! Loads that work for a while, stand still and work again, over the same connections: what a
//! tunnel does for each unit of their work can be counted exactly, by whatever is begun and ended
//! while they stand.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::bulk::{Bulk, Way};
use super::connect::{self, Ask};
use super::latency::Period;
use super::ping_pong::{RoundTrip as _, Tcp};
use super::service::Service;
use super::udp_source::{Stream, UdpSource};
use super::wire::Command;

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Nothing: what passes is time, in milliseconds.
    Idle,
    /// Small messages there and back, one at a time, on one TCP connection.
    RoundTrips,
    /// Visitors that connect, say something small, hear it back and close; this many at a time.
    Visitors(usize),
    /// UDP datagrams to the service.
    Datagrams(Stream),
    /// TCP, as many bytes as go through. It does not stand still, so that what is counted begins
    /// and ends at some byte.
    Bulk(Way),
}

/// A load that is ready to work.
#[derive(Debug)]
pub struct Standing<'a> {
    visit: SocketAddr,
    service: &'a Service,
    state: State,
    done: u64,
    /// Datagrams that were sent so far; `None` of other work, which loses nothing.
    pub(crate) sent: Option<u64>,
}

#[derive(Debug)]
enum State {
    Idle(Instant),
    RoundTrips(Tcp),
    Visitors(usize),
    Datagrams(Box<UdpSource>, Stream),
    Bulk(Bulk),
}

impl<'a> Standing<'a> {
    /// Connects where the work needs a connection.
    pub fn start(work: Work, visit: SocketAddr, service: &'a Service) -> Result<Self> {
        let state = match work {
            Work::Idle => State::Idle(Instant::now()),
            Work::RoundTrips => {
                let visitor = Tcp::open(visit, Command::PingPong);
                State::RoundTrips(visitor.with_context(|| format!("connecting to {visit}"))?)
            }
            Work::Visitors(at_a_time) => State::Visitors(at_a_time),
            Work::Datagrams(stream) => State::Datagrams(Box::new(UdpSource::new(visit)?), stream),
            Work::Bulk(way) => State::Bulk(Bulk::start(visit, way, 1)?),
        };
        Ok(Self {
            visit,
            service,
            state,
            done: 0,
            sent: matches!(work, Work::Datagrams(_)).then_some(0),
        })
    }

    /// Runs the load for `duration`.
    pub fn work(&mut self, duration: Duration) -> Result<()> {
        match &mut self.state {
            State::Idle(_) => thread::sleep(duration),
            State::RoundTrips(visitor) => {
                let times = visitor.repeat(Period::of(duration));
                self.done += times.context("a round trip")?.count();
            }
            State::Visitors(at_a_time) => {
                let period = Period::of(duration);
                let times = connect::visits(self.visit, Ask::Echo, *at_a_time, period);
                let times = times.context("visitors")?;
                self.done += times.count();
                ensure!(times.failed == 0, "{} visits failed", times.failed);
            }
            State::Datagrams(source, stream) => {
                let delivery = source.deliver(stream, duration, self.service)?;
                self.sent = self.sent.map(|sent| sent + delivery.sent);
                self.done += delivery.arrived.packets;
            }
            State::Bulk(bulk) => {
                thread::sleep(duration);
                bulk.check()?;
            }
        }
        Ok(())
    }

    /// What has been done so far: milliseconds, round trips, visits, datagrams that arrived, bytes
    /// that arrived.
    pub fn done(&self) -> u64 {
        match &self.state {
            State::Idle(since) => since.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            State::Bulk(bulk) => bulk.arrived_bytes(self.service),
            _ => self.done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing::{closed, service};

    #[test]
    fn work_is_counted_over_several_times() {
        let service = service();
        let datagrams = |burst_packets| {
            Work::Datagrams(Stream {
                payload_bytes: 64,
                rate: 5_000.0,
                burst_packets,
            })
        };
        for work in [
            Work::Idle,
            Work::RoundTrips,
            Work::Visitors(1),
            Work::Visitors(4),
            datagrams(1),
            datagrams(16),
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
            assert!(load.sent.is_none_or(|sent| sent >= last), "{work:?}");
        }
    }

    #[test]
    fn work_that_fails_is_an_error() {
        let (service, closed) = (service(), closed());
        assert!(Standing::start(Work::RoundTrips, closed, &service).is_err());
        let mut load = Standing::start(Work::Visitors(1), closed, &service).expect("ready");
        assert!(load.work(Duration::from_millis(10)).is_err());
    }
}
