//! Visitors that come, say something small and go.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::latency::Times;
use super::service::GREETING;
use super::wire::{self, Command, MESSAGE_BYTES};

/// How long a visit may take before it counts as failed.
const VISIT_LIMIT: Duration = Duration::from_secs(10);

/// How long a visitor waits after a failure, so that failures are not the fastest visits.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);

/// What a visitor comes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Its message back.
    Echo,
    /// The first byte, which the service sends unasked.
    Greeting,
}

/// For how long visitors come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Before anything is recorded.
    pub warm_up: Duration,
    /// While it is.
    pub measure: Duration,
}

impl Period {
    /// Recorded from the first visitor on.
    pub fn of(measure: Duration) -> Self {
        Self {
            warm_up: Duration::ZERO,
            measure,
        }
    }
}

/// What came of the visits.
#[derive(Clone, Debug, Default)]
pub struct Visits {
    /// From the start of the connection to the last byte of the answer.
    pub times: Times,
    /// Visits that did not get their answer.
    pub failed: u64,
    /// How long they were recorded.
    pub seconds: f64,
}

impl Visits {
    /// Successful visits per second.
    pub fn per_second(&self) -> f64 {
        let count = self.times.count() as f64;
        count / self.seconds
    }

    fn note<E>(&mut self, result: &Result<(), E>, start: Instant) {
        match result {
            Ok(()) => self.times.record(start.elapsed()),
            Err(_) => self.failed += 1,
        }
    }

    fn take(&mut self, other: &Self) {
        self.times.merge(&other.times);
        self.failed += other.failed;
    }
}

/// The message that asks for an echo, with the command in front.
fn request() -> [u8; MESSAGE_BYTES + 1] {
    let mut request = [0x5a; MESSAGE_BYTES + 1];
    request[0] = Command::Echo.byte();
    request
}

fn check(answer: &[u8], wanted: &[u8]) -> io::Result<()> {
    if answer == wanted {
        Ok(())
    } else {
        Err(io::Error::other("an answer is not what was asked for"))
    }
}

/// One visitor after the other.
pub fn sequential(visit: SocketAddr, ask: Ask, period: Period) -> Visits {
    let mut visits = Visits::default();
    let recording = Instant::now() + period.warm_up;
    let end = recording + period.measure;
    loop {
        let start = Instant::now();
        if start >= end {
            visits.seconds = (start - recording).as_secs_f64();
            return visits;
        }
        let result = visit_once(visit, ask);
        if start >= recording {
            visits.note(&result, start);
        }
        if result.is_err() {
            std::thread::sleep(PAUSE_AFTER_FAILURE);
        }
    }
}

fn visit_once(visit: SocketAddr, ask: Ask) -> io::Result<()> {
    let mut stream = wire::connect(visit, VISIT_LIMIT)?;
    match ask {
        Ask::Echo => {
            let mut answer = [0; MESSAGE_BYTES];
            stream.write_all(&request())?;
            stream.read_exact(&mut answer)?;
            check(&answer, &request()[1..])
        }
        Ask::Greeting => {
            let mut answer = [0; 1];
            stream.read_exact(&mut answer)?;
            check(&answer, &[GREETING])
        }
    }
}

/// So many visitors at a time.
pub fn concurrent(
    visit: SocketAddr,
    ask: Ask,
    visitors: usize,
    period: Period,
) -> io::Result<Visits> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let recording = Instant::now() + period.warm_up;
        let end = recording + period.measure;
        let tasks: Vec<_> = (0..visitors)
            .map(|_| tokio::spawn(come_again(visit, ask, recording, end)))
            .collect();
        let mut visits = Visits::default();
        for task in tasks {
            visits.take(&task.await.map_err(io::Error::other)?);
        }
        visits.seconds = (Instant::now() - recording).as_secs_f64();
        Ok(visits)
    })
}

async fn come_again(visit: SocketAddr, ask: Ask, recording: Instant, end: Instant) -> Visits {
    let mut visits = Visits::default();
    loop {
        let start = Instant::now();
        if start >= end {
            return visits;
        }
        let visiting = visit_asynchronously(visit, ask);
        let result = tokio::time::timeout(VISIT_LIMIT, visiting).await;
        let result = result.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if start >= recording {
            visits.note(&result, start);
        }
        if result.is_err() {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

async fn visit_asynchronously(visit: SocketAddr, ask: Ask) -> io::Result<()> {
    let mut stream = tokio::net::TcpStream::connect(visit).await?;
    stream.set_nodelay(true)?;
    match ask {
        Ask::Echo => {
            let mut answer = [0; MESSAGE_BYTES];
            stream.write_all(&request()).await?;
            stream.read_exact(&mut answer).await?;
            check(&answer, &request()[1..])
        }
        Ask::Greeting => {
            let mut answer = [0; 1];
            stream.read_exact(&mut answer).await?;
            check(&answer, &[GREETING])
        }
    }
}

/// Visits again and again until one succeeds: the proof that a tunnel works.
///
/// # Errors
///
/// The last visit's error, if none succeeds within `limit`.
pub fn until_it_works(visit: SocketAddr, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match visit_once(visit, Ask::Echo) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::place::Place;
    use crate::load::service::Service;

    const PERIOD: Period = Period {
        warm_up: Duration::from_millis(10),
        measure: Duration::from_millis(100),
    };

    #[test]
    fn visitors_get_their_echo() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let visits = sequential(service.address, Ask::Echo, PERIOD);
        assert!(visits.times.count() > 0 && visits.failed == 0, "{visits:?}");
        let visits = concurrent(service.address, Ask::Echo, 8, PERIOD).expect("a runtime");
        assert!(visits.times.count() > 0 && visits.failed == 0, "{visits:?}");
    }

    #[test]
    fn visitors_are_greeted() {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        service.set_greets(true);
        let visits = sequential(service.address, Ask::Greeting, PERIOD);
        assert!(visits.times.count() > 0 && visits.failed == 0, "{visits:?}");
    }

    #[test]
    fn failures_are_no_visits() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let closed = closed.expect("an address");
        let visits = sequential(closed, Ask::Echo, PERIOD);
        assert!(visits.times.count() == 0 && visits.failed > 0, "{visits:?}");
        assert!(until_it_works(closed, Duration::ZERO).is_err());
    }
}
