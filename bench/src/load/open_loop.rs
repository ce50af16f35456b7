//! Requests at a fixed rate, whether or not earlier ones were answered, as independent visitors
//! make them.
//!
//! A request's time counts from the moment at which it was due, not from the one at which it could
//! be sent: else a stall would hide every request that waited for its end (coordinated omission).

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::set_current_timer_slack;

use super::latency::{Period, Times};
use super::wire::{self, Command, MESSAGE_BYTES};

/// Connections that take turns, so that one slow answer does not delay the next by TCP's order.
const CONNECTIONS: u32 = 8;

/// How long answers may still come after the last request; those that do not come are lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Requests per second, over all connections.
    pub(crate) rate: u32,
    pub(crate) period: Period,
}

impl Schedule {
    /// The time at which request `index` is due, from the start.
    fn due(&self, index: u32) -> Duration {
        Duration::from_secs(1) * index / self.rate
    }

    fn requests(&self) -> u32 {
        let seconds = (self.period.warm_up + self.period.measure).as_secs_f64();
        (seconds * f64::from(self.rate)) as u32
    }

    fn first_recorded(&self) -> u32 {
        let mut requests = 0..self.requests();
        let first = requests.find(|index| self.due(*index) >= self.period.warm_up);
        first.unwrap_or(0)
    }
}

/// Makes the requests and waits for the answers; those that were not answered have failed.
pub(crate) fn run(visit: SocketAddr, schedule: Schedule) -> io::Result<Times> {
    let streams =
        (0..CONNECTIONS).map(|_| wire::connect_for(Command::PingPong, visit, ANSWER_LIMIT));
    let mut streams = streams.collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut readers = Vec::new();
    for (connection, stream) in (0..).zip(&streams) {
        let stream = stream.try_clone()?;
        readers.push(read_answers(stream, connection, start, schedule));
    }
    // The kernel may let a sleeper sleep 50 µs longer by default; here that would count as the
    // tunnel's time. Where it is refused, every tunnel gets the same.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let sent = send_requests(&mut streams, start, schedule);
    let _ = set_current_timer_slack(None);
    for stream in &streams {
        // The service answers what it has, then ends.
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut times = Times::default();
    for reader in readers {
        if let Ok(answers) = reader.join() {
            times.merge(&answers);
        }
    }
    sent?;
    let recorded = u64::from(schedule.requests() - schedule.first_recorded());
    times.failed = recorded.saturating_sub(times.count());
    Ok(times)
}

fn send_requests(streams: &mut [TcpStream], start: Instant, schedule: Schedule) -> io::Result<()> {
    for index in 0..schedule.requests() {
        let wait = (start + schedule.due(index)).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        let stream = &mut streams[(index % CONNECTIONS) as usize];
        stream.write_all(&[0x5a; MESSAGE_BYTES])?;
    }
    Ok(())
}

/// Reads the answers of one connection. TCP keeps their order, so that each is known by its place.
fn read_answers(
    mut stream: TcpStream,
    connection: u32,
    start: Instant,
    schedule: Schedule,
) -> JoinHandle<Times> {
    let first_recorded = schedule.first_recorded();
    thread::spawn(move || {
        let mut times = Times::default();
        let mut answer = [0; MESSAGE_BYTES];
        let mut index = connection;
        while stream.read_exact(&mut answer).is_ok() {
            if index >= first_recorded {
                times.note(Some((start + schedule.due(index)).elapsed()));
            }
            index += CONNECTIONS;
        }
        times
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::testing::service;

    const SCHEDULE: Schedule = Schedule {
        rate: 1_000,
        period: Period {
            warm_up: Duration::from_millis(20),
            measure: Duration::from_millis(100),
        },
    };

    #[test]
    fn requests_are_due_at_their_rate() {
        assert_eq!(SCHEDULE.due(0), Duration::ZERO);
        assert_eq!(SCHEDULE.due(1_500), Duration::from_millis(1_500));
        assert_eq!((SCHEDULE.requests(), SCHEDULE.first_recorded()), (120, 20));
    }

    #[test]
    fn every_request_is_answered() {
        let times = run(service().address, SCHEDULE).expect("answers");
        assert_eq!((times.count(), times.failed), (100, 0));
    }

    #[test]
    fn a_stall_counts_for_every_request_that_was_due_in_it() {
        // A service that answers nothing for a while, then everything at once.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let stall = Duration::from_millis(200);
        thread::spawn(move || {
            for stream in listener.incoming().take(CONNECTIONS as usize) {
                let mut stream = stream.expect("a visitor");
                thread::spawn(move || {
                    let mut command = [0];
                    stream.read_exact(&mut command).expect("a command");
                    thread::sleep(stall);
                    let mut answers = stream.try_clone().expect("cloned");
                    drop(io::copy(&mut stream, &mut answers));
                });
            }
        });
        let times = run(address, SCHEDULE).expect("answers");
        // All 100 were due within the stall: half of them must have waited for at least half of the
        // measurement.
        assert_eq!(times.count() + times.failed, 100);
        assert!(times.percentile_ms(50.0) >= 50.0);
    }
}
