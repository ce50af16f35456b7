//! What visitors do all the time.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Error;

use crate::commands::background::{self, Background};
use crate::harness::lock;
use crate::load::exact::{self, Answers};
use crate::load::latency::Times;
use crate::load::wire::{self, Command};

/// How long a visitor waits for anything at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of one long echo.
const ECHO_BYTES: u64 = 8_000_000;

/// Threads that make requests, and the pause of each after a request: some 100 a second in all, so
/// that the load is the same however fast the machine is.
const REQUESTERS: usize = 4;
const REQUEST_PAUSE: Duration = Duration::from_millis(40);

/// The pauses of the others.
const ECHO_PAUSE: Duration = Duration::from_millis(500);
const ABORT_PAUSE: Duration = Duration::from_millis(200);

/// UDP questions at a time.
const QUESTIONS: usize = 32;

/// What is read of a download before it is aborted.
const ABORTED_AFTER_BYTES: usize = 100_000;

/// How long a visitor who has stopped reading is there.
const STALLS: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: AtomicU64,
    requests_reset: AtomicU64,
    echoes: AtomicU64,
    echoes_reset: AtomicU64,
    questions: AtomicU64,
    questions_again: AtomicU64,
    aborts: AtomicU64,
    stalled: AtomicU64,
    bytes: AtomicU64,
    latency: Mutex<Times>,
    wrong: background::Wrong,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn summary(&self) -> String {
        let [
            requests,
            reset,
            echoes,
            echoes_reset,
            questions,
            again,
            aborts,
            stalled,
        ] = [
            &self.requests,
            &self.requests_reset,
            &self.echoes,
            &self.echoes_reset,
            &self.questions,
            &self.questions_again,
            &self.aborts,
            &self.stalled,
        ]
        .map(|counter| counter.load(Ordering::Relaxed));
        format!(
            "{requests} requests ({reset} reset), {echoes} long echoes ({echoes_reset} reset), \
             {questions} UDP questions ({again} asked again), {aborts} downloads aborted, \
             {stalled} visitors who stopped reading"
        )
    }

    /// A visitor was not served. That its client was killed shows as a reset; everything else is a
    /// defect.
    fn failed(&self, wrong: &Error, resets: &AtomicU64) {
        use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
        match exact::io_kind(wrong) {
            Some(BrokenPipe | ConnectionRefused | ConnectionReset) => add(resets, 1),
            _ => self.wrong.add(wrong),
        }
    }

    fn request(&self, visit: SocketAddr) -> Duration {
        let began = Instant::now();
        match exact::visit(visit, PATIENCE) {
            Ok(bytes) => {
                lock(&self.latency).note(Some(began.elapsed()));
                add(&self.bytes, bytes);
                add(&self.requests, 1);
            }
            Err(wrong) => self.failed(&wrong, &self.requests_reset),
        }
        REQUEST_PAUSE
    }

    fn echo(&self, visit: SocketAddr) -> Duration {
        let seed = self.echoes.load(Ordering::Relaxed);
        let seen = AtomicU64::new(0);
        match exact::echo(visit, ECHO_BYTES, seed, PATIENCE, &seen) {
            Ok(()) => add(&self.echoes, 1),
            Err(wrong) => self.failed(&wrong, &self.echoes_reset),
        }
        add(&self.bytes, 2 * seen.into_inner());
        ECHO_PAUSE
    }

    fn ask(&self, visit: SocketAddr) -> Duration {
        match exact::questions(visit, QUESTIONS, Duration::from_secs(1), PATIENCE) {
            Ok(Answers { answered, at_once }) => {
                add(&self.questions, answered as u64);
                add(&self.questions_again, (answered - at_once) as u64);
            }
            Err(wrong) => self.failed(&wrong, &self.questions_again),
        }
        ECHO_PAUSE
    }

    fn abort(&self, visit: SocketAddr) -> Duration {
        let mut some = vec![0; ABORTED_AFTER_BYTES];
        if download(visit).is_ok_and(|mut stream| stream.read_exact(&mut some).is_ok()) {
            add(&self.aborts, 1);
        }
        ABORT_PAUSE
    }
}

fn download(visit: SocketAddr) -> std::io::Result<TcpStream> {
    wire::connect_for(Command::Source, visit, PATIENCE)
}

pub(super) struct Load {
    visitors: Background,
    pub(super) tally: Arc<Tally>,
}

impl Load {
    pub(super) fn start(visit: SocketAddr) -> Self {
        let mut visitors = Background::default();
        let tally = Arc::new(Tally {
            wrong: visitors.wrong.clone(),
            ..Tally::default()
        });
        let others: [fn(&Tally, SocketAddr) -> Duration; 3] =
            [Tally::echo, Tally::ask, Tally::abort];
        let requesters = std::iter::repeat_n(Tally::request as _, REQUESTERS);
        for work in requesters.chain(others) {
            let tally = Arc::clone(&tally);
            visitors.repeat(move || {
                let pause = work(&tally, visit);
                Instant::now() + pause
            });
        }
        // Visitors who stop reading, one after the other.
        let (shared, mut stalled) = (Arc::clone(&tally), None);
        visitors.repeat(move || {
            drop(stalled.take());
            stalled = download(visit).ok();
            add(&shared.stalled, u64::from(stalled.is_some()));
            Instant::now() + STALLS
        });
        Self { visitors, tally }
    }

    /// Payload that has passed the tunnel, in both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.tally.bytes.load(Ordering::Relaxed)
    }

    /// Median and 99th percentile of the requests since the last call, in milliseconds.
    pub(super) fn take_latency_ms(&self) -> (f64, f64) {
        let latency = std::mem::take(&mut *lock(&self.tally.latency));
        (latency.percentile_ms(50.0), latency.percentile_ms(99.0))
    }

    pub(super) fn stop(&mut self) -> Vec<String> {
        self.visitors.stop()
    }
}
