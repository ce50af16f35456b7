//! Many flows that are open at a time and do next to nothing.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::ping_pong::{RoundTrip, Tcp, Udp};
use super::wire::Command;

/// TCP flows that are opened at a time.
const OPENING_MAX: usize = 64;

/// The most times that a UDP request is sent until its answer comes.
const UDP_TRIES_MAX: usize = 6;

pub(crate) struct Flows(Vec<Box<dyn RoundTrip>>);

impl Flows {
    /// Opens TCP flows; each has had a message echoed, so that it is open to its end.
    pub(crate) fn open_tcp(visit: SocketAddr, count: usize) -> io::Result<Self> {
        let open = || Ok(Box::new(Tcp::open(visit, Command::Echo)?) as _);
        Self::open(count, OPENING_MAX, open)
    }

    /// Opens UDP flows; each has had a packet echoed.
    pub(crate) fn open_udp(visit: SocketAddr, count: usize) -> io::Result<Self> {
        Self::open(count, 1, || Ok(Box::new(Udp::open(visit)?) as _))
    }

    fn open(
        count: usize,
        at_a_time: usize,
        open: impl Fn() -> io::Result<Box<dyn RoundTrip>> + Sync,
    ) -> io::Result<Self> {
        let open_some = |count: usize| -> io::Result<Vec<_>> {
            let talking = (0..count).map(|_| {
                let mut flow = open()?;
                echo(&mut *flow)?;
                Ok(flow)
            });
            talking.collect()
        };
        thread::scope(|scope| {
            let share = |thread: usize| (count + thread) / at_a_time;
            let threads: Vec<_> = (0..at_a_time)
                .map(|thread| scope.spawn(move || open_some(share(thread))))
                .collect();
            let mut flows = Vec::with_capacity(count);
            for thread in threads {
                let panicked = |_| io::Error::other("opening flows has panicked");
                flows.extend(thread.join().map_err(panicked)??);
            }
            Ok(Self(flows))
        })
    }

    /// Sends small messages and waits for their echoes, on one flow after the other, at this rate
    /// over all flows or as near to it as one answer after the other allows. Returns how many.
    pub(crate) fn chatter(&mut self, per_second: u32, duration: Duration) -> io::Result<u32> {
        let start = Instant::now();
        let (mut messages, all) = (0, self.0.len());
        while all > 0 && start.elapsed() < duration {
            let due = start + Duration::from_secs(1) * messages / per_second;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            echo(&mut *self.0[messages as usize % all])?;
            messages += 1;
        }
        Ok(messages)
    }
}

fn echo(flow: &mut dyn RoundTrip) -> io::Result<()> {
    for _ in 0..UDP_TRIES_MAX {
        // One that is lost is the right of a UDP packet.
        if flow.round_trip()?.is_some() {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing::service;

    #[test]
    fn flows_stay_open_and_talk() {
        let service = service();
        let tcp = Flows::open_tcp(service.address, 100).expect("open");
        let udp = Flows::open_udp(service.address, 20).expect("open");
        for (mut flows, count) in [(tcp, 100), (udp, 20)] {
            assert_eq!(flows.0.len(), count);
            let messages = flows.chatter(1_000, Duration::from_millis(50));
            assert!(messages.expect("answers") > 0);
        }
    }
}
