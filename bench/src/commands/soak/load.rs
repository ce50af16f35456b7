//! What visitors do all the time.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicU64;
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
    counts: Mutex<BTreeMap<&'static str, u64>>,
    latency: Mutex<Times>,
    wrong: background::Wrong,
}

/// Payload that has passed the tunnel, in both directions.
const BYTES: &str = "bytes";

impl Tally {
    fn add(&self, what: &'static str, count: u64) {
        *lock(&self.counts).entry(what).or_default() += count;
    }

    fn count(&self, what: &str) -> u64 {
        lock(&self.counts).get(what).copied().unwrap_or_default()
    }

    pub(super) fn summary(&self) -> String {
        let of = |what| self.count(what);
        format!(
            "{} requests ({} reset), {} long echoes ({} reset), {} UDP questions ({} asked again), \
             {} downloads aborted, {} visitors who stopped reading",
            of("requests"),
            of("requests reset"),
            of("echoes"),
            of("echoes reset"),
            of("questions"),
            of("questions again"),
            of("aborts"),
            of("stalled"),
        )
    }

    /// A visitor was not served. That its client was killed shows as a reset; everything else is a
    /// defect.
    fn failed(&self, wrong: &Error, resets: &'static str) {
        use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
        match exact::io_kind(wrong) {
            Some(BrokenPipe | ConnectionRefused | ConnectionReset) => self.add(resets, 1),
            _ => self.wrong.add(wrong),
        }
    }

    fn request(&self, visit: SocketAddr) -> Duration {
        let began = Instant::now();
        match exact::visit(visit, PATIENCE) {
            Ok(bytes) => {
                lock(&self.latency).note(Some(began.elapsed()));
                self.add(BYTES, bytes);
                self.add("requests", 1);
            }
            Err(wrong) => self.failed(&wrong, "requests reset"),
        }
        REQUEST_PAUSE
    }

    fn echo(&self, visit: SocketAddr) -> Duration {
        let seen = AtomicU64::new(0);
        match exact::echo(visit, ECHO_BYTES, self.count("echoes"), PATIENCE, &seen) {
            Ok(()) => self.add("echoes", 1),
            Err(wrong) => self.failed(&wrong, "echoes reset"),
        }
        self.add(BYTES, 2 * seen.into_inner());
        ECHO_PAUSE
    }

    fn ask(&self, visit: SocketAddr) -> Duration {
        match exact::questions(visit, QUESTIONS, Duration::from_secs(1), PATIENCE) {
            Ok(Answers { answered, at_once }) => {
                self.add("questions", answered as u64);
                self.add("questions again", (answered - at_once) as u64);
            }
            Err(wrong) => self.failed(&wrong, "questions again"),
        }
        ECHO_PAUSE
    }

    /// A download that is given up.
    fn abort(&self, visit: SocketAddr) -> Duration {
        let mut some = vec![0; ABORTED_AFTER_BYTES];
        if download(visit).is_ok_and(|mut stream| stream.read_exact(&mut some).is_ok()) {
            self.add("aborts", 1);
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
            shared.add("stalled", u64::from(stalled.is_some()));
            Instant::now() + STALLS
        });
        Self { visitors, tally }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tally.count(BYTES)
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
