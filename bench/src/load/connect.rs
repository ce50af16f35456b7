//! Visitors that come, say something small and go.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::latency::{Period, Recording, Times};
use super::service::GREETING;
use super::wire::{self, Command, MESSAGE_BYTES};

/// How long a visit may take before it counts as failed.
const VISIT_LIMIT: Duration = Duration::from_secs(10);

/// How long a visitor waits after a failure, so that failures are not the fastest visits.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Echo,
    /// The first byte, which the service sends unasked.
    Greeting,
}

impl Ask {
    /// What is said, the command in front, and what is to be answered.
    fn words(self) -> (&'static [u8], &'static [u8]) {
        const REQUEST: [u8; MESSAGE_BYTES + 1] = {
            let mut request = [0x5a; MESSAGE_BYTES + 1];
            request[0] = Command::Echo.byte();
            request
        };
        match self {
            Self::Echo => (&REQUEST, REQUEST.split_at(1).1),
            Self::Greeting => (&[], &[GREETING]),
        }
    }
}

fn check(answer: &[u8], wanted: &[u8]) -> io::Result<()> {
    if answer == wanted {
        return Ok(());
    }
    Err(io::Error::other("an answer is not what was asked for"))
}

/// Visitors over and over, this many at a time: how long each took from the start of its connection
/// to the last byte of the answer, and how many did not get it.
pub(crate) fn visits(
    visit: SocketAddr,
    ask: Ask,
    at_a_time: usize,
    period: Period,
) -> io::Result<Times> {
    if at_a_time > 1 {
        return concurrent(visit, ask, at_a_time, period);
    }
    let mut recording = period.begin();
    while let Some(began) = recording.next() {
        let result = visit_once(visit, ask);
        recording.note(began, result.is_ok().then(|| began.elapsed()));
        if result.is_err() {
            std::thread::sleep(PAUSE_AFTER_FAILURE);
        }
    }
    Ok(recording.times)
}

fn visit_once(visit: SocketAddr, ask: Ask) -> io::Result<()> {
    let (request, wanted) = ask.words();
    let mut answer = [0; MESSAGE_BYTES];
    let answer = &mut answer[..wanted.len()];
    let mut stream = wire::connect(visit, VISIT_LIMIT)?;
    stream.write_all(request)?;
    stream.read_exact(answer)?;
    check(answer, wanted)
}

fn concurrent(visit: SocketAddr, ask: Ask, visitors: usize, period: Period) -> io::Result<Times> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut recording = period.begin();
        let tasks: Vec<_> = (0..visitors)
            .map(|_| tokio::spawn(come_again(visit, ask, recording.clone())))
            .collect();
        for task in tasks {
            let times = task.await.map_err(io::Error::other)?;
            recording.times.merge(&times);
        }
        // The period is over, which ends the time that was recorded.
        recording.next();
        Ok(recording.times)
    })
}

async fn come_again(visit: SocketAddr, ask: Ask, mut recording: Recording) -> Times {
    while let Some(began) = recording.next() {
        let visiting = tokio::time::timeout(VISIT_LIMIT, visit_asynchronously(visit, ask));
        let is_served = matches!(visiting.await, Ok(Ok(())));
        recording.note(began, is_served.then(|| began.elapsed()));
        if !is_served {
            tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
    recording.times
}

async fn visit_asynchronously(visit: SocketAddr, ask: Ask) -> io::Result<()> {
    let (request, wanted) = ask.words();
    let mut answer = [0; MESSAGE_BYTES];
    let answer = &mut answer[..wanted.len()];
    let mut stream = tokio::net::TcpStream::connect(visit).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request).await?;
    stream.read_exact(answer).await?;
    check(answer, wanted)
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
    use crate::load::testing::{closed, service};

    const PERIOD: Period = Period {
        warm_up: Duration::from_millis(10),
        measure: Duration::from_millis(100),
    };

    #[test]
    fn visitors_get_what_they_ask_for() {
        let service = service();
        for (ask, at_a_time) in [(Ask::Echo, 1), (Ask::Echo, 8), (Ask::Greeting, 1)] {
            service.set_greets(ask == Ask::Greeting);
            let times = visits(service.address, ask, at_a_time, PERIOD).expect("a runtime");
            assert!(times.count() > 0 && times.failed == 0, "{ask:?} {times:?}");
            assert!(times.per_second() > 0.0);
        }
    }

    #[test]
    fn failures_are_no_visits() {
        let closed = closed();
        let times = visits(closed, Ask::Echo, 1, PERIOD).expect("visits");
        assert!(times.count() == 0 && times.failed > 0, "{times:?}");
        assert!(until_it_works(closed, Duration::ZERO).is_err());
    }
}
