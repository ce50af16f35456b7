//! What visitors do all the time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use qmux_bench::load::exact::{self, Wrong};
use qmux_bench::load::latency::Times;
use qmux_bench::load::wire::Command;

/// How long a visitor waits for anything at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of one long echo.
const ECHO_BYTES: u64 = 8_000_000;

/// Threads that make requests, and the pause of each after a request: some 100 a second in all, so
/// that the load is the same however fast the machine is.
const REQUESTERS: usize = 4;
const REQUEST_PAUSE: Duration = Duration::from_millis(40);

/// UDP questions at a time.
const QUESTIONS: usize = 32;

/// What is read of a download before it is aborted.
const ABORTED_AFTER_BYTES: usize = 100_000;

/// How long a visitor who has stopped reading is there.
const STALLS: Duration = Duration::from_secs(10);

/// Failures that are kept in words.
const WRONG_MAX: usize = 10;

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: AtomicU64,
    pub(super) requests_reset: AtomicU64,
    pub(super) echoes: AtomicU64,
    pub(super) echoes_reset: AtomicU64,
    pub(super) questions: AtomicU64,
    pub(super) questions_again: AtomicU64,
    pub(super) aborts: AtomicU64,
    pub(super) stalled: AtomicU64,
    bytes: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn wrong(&self) -> Vec<String> {
        self.wrong
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A visitor was not served. That its client was killed shows as a reset; everything else is a
    /// defect.
    fn failed(&self, wrong: &Wrong, resets: &AtomicU64) {
        use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
        if let Wrong::Io { error, .. } = wrong
            && matches!(
                error.kind(),
                BrokenPipe | ConnectionRefused | ConnectionReset
            )
        {
            resets.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut all = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < WRONG_MAX {
            all.push(wrong.to_string());
        }
    }
}

/// Threads that visit until they are told to stop.
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    visit: SocketAddr,
    stop: AtomicBool,
    tally: Tally,
    latency: Mutex<Times>,
}

impl Load {
    pub(super) fn start(visit: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            visit,
            stop: AtomicBool::new(false),
            tally: Tally::default(),
            latency: Mutex::default(),
        });
        let mut load = Self {
            shared,
            threads: Vec::new(),
        };
        for _ in 0..REQUESTERS {
            load.repeat(Shared::request);
        }
        load.repeat(Shared::echo);
        load.repeat(Shared::ask);
        load.repeat(Shared::abort);
        load.repeat(Shared::stall);
        load
    }

    fn repeat(&mut self, work: fn(&Shared)) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                work(&shared);
            }
        }));
    }

    /// Payload that has passed the tunnel, in both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.tally.bytes.load(Ordering::Relaxed)
    }

    /// Median and 99th percentile of the requests since the last call, in milliseconds.
    pub(super) fn take_latency_ms(&self) -> (f64, f64) {
        let latency = std::mem::take(&mut *self.shared.latency());
        let ms = |percent| latency.percentile_us(percent) / 1e3;
        (ms(50.0), ms(99.0))
    }

    /// Ends it; visitors under way are waited for.
    pub(super) fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let panicked = Wrong::Bytes("a visitor's thread panicked".into());
                let tally = &self.shared.tally;
                tally.failed(&panicked, &tally.requests_reset);
            }
        }
        Arc::try_unwrap(self.shared).map_or_else(|_| Tally::default(), |shared| shared.tally)
    }
}

impl Shared {
    fn latency(&self) -> std::sync::MutexGuard<'_, Times> {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self, time: Duration) {
        const STEP: Duration = Duration::from_millis(100);
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(STEP.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn request(&self) {
        let began = Instant::now();
        match exact::visit(self.visit, PATIENCE) {
            Ok(bytes) => {
                self.latency().record(began.elapsed());
                self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.tally.requests.fetch_add(1, Ordering::Relaxed);
            }
            Err(wrong) => self.tally.failed(&wrong, &self.tally.requests_reset),
        }
        self.pause(REQUEST_PAUSE);
    }

    fn echo(&self) {
        let seed = self.tally.echoes.load(Ordering::Relaxed);
        let seen = AtomicU64::new(0);
        match exact::echo(self.visit, ECHO_BYTES, seed, PATIENCE, &seen) {
            Ok(()) => _ = self.tally.echoes.fetch_add(1, Ordering::Relaxed),
            Err(wrong) => self.tally.failed(&wrong, &self.tally.echoes_reset),
        }
        let bytes = 2 * seen.load(Ordering::Relaxed);
        self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.pause(Duration::from_millis(500));
    }

    fn ask(&self) {
        match exact::questions(self.visit, QUESTIONS, Duration::from_secs(1), PATIENCE) {
            Ok(answers) => {
                let again = (answers.answered - answers.at_once) as u64;
                let questions = &self.tally.questions;
                questions.fetch_add(answers.answered as u64, Ordering::Relaxed);
                self.tally
                    .questions_again
                    .fetch_add(again, Ordering::Relaxed);
            }
            Err(wrong) => self.tally.failed(&wrong, &self.tally.questions_again),
        }
        self.pause(Duration::from_millis(500));
    }

    /// A download that is given up.
    fn abort(&self) {
        let aborted = self.download().and_then(|mut stream| {
            let mut some = vec![0; ABORTED_AFTER_BYTES];
            stream.read_exact(&mut some)
        });
        if aborted.is_ok() {
            self.tally.aborts.fetch_add(1, Ordering::Relaxed);
        }
        self.pause(Duration::from_millis(200));
    }

    /// A visitor who stops reading.
    fn stall(&self) {
        if let Ok(stream) = self.download() {
            self.tally.stalled.fetch_add(1, Ordering::Relaxed);
            self.pause(STALLS);
            drop(stream);
        }
        self.pause(Duration::from_secs(1));
    }

    fn download(&self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.visit, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[Command::Source.byte()])?;
        Ok(stream)
    }
}
