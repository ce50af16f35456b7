//! Honest visitors: a request and a UDP question every few milliseconds, and how long each took.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use qmux_bench::load::exact;
use qmux_bench::load::latency::Times;
use qmux_bench::load::wire::{PacketHeader, PacketKind};

/// Between the begins of two requests or two questions.
const EVERY: Duration = Duration::from_millis(20);

/// How long an honest visitor waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a UDP question.
const QUESTION_BYTES: usize = 64;

/// Questions that one visitor asks before the next one comes, from another port: new flows must get
/// through, too.
const QUESTIONS_PER_FLOW: u64 = 25;

/// Failures that are kept in words.
const WRONG_MAX: usize = 5;

/// How long things took, and how many failed.
#[derive(Default)]
pub(super) struct Noted {
    took: Times,
    failed: u64,
}

impl Noted {
    fn record(&mut self, took: Option<Duration>) {
        match took {
            Some(took) => self.took.record(took),
            None => self.failed += 1,
        }
    }
}

impl fmt::Display for Noted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percent| self.took.percentile_us(percent) / 1e3;
        let (p50, p99, failed) = (ms(50.0), ms(99.0), self.failed);
        let all = self.took.count() + failed;
        write!(formatter, "{p50:.1}, {p99:.1} ({failed} of {all})")
    }
}

/// What honest visitors noticed in a phase.
pub(super) struct Noticed {
    pub(super) requests: Noted,
    pub(super) questions: Noted,
}

struct Shared {
    visit: SocketAddr,
    stop: AtomicBool,
    requests: Mutex<Noted>,
    questions: Mutex<Noted>,
    wrong: Mutex<Vec<String>>,
}

/// Threads of honest visitors.
pub(super) struct Honest {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Honest {
    pub(super) fn start(visit: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            visit,
            stop: AtomicBool::new(false),
            requests: Mutex::default(),
            questions: Mutex::default(),
            wrong: Mutex::default(),
        });
        let works: [fn(&Shared); 2] = [Shared::requests, Shared::questions];
        let threads = works.map(|work| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared))
        });
        Self {
            shared,
            threads: threads.into(),
        }
    }

    /// What was noticed since the last call.
    pub(super) fn take(&self) -> Noticed {
        let take = |noted| std::mem::take(&mut *lock(noted));
        Noticed {
            requests: take(&self.shared.requests),
            questions: take(&self.shared.questions),
        }
    }

    /// Ends it, and says what honest visitors got that they must never get: wrong bytes.
    pub(super) fn stop(mut self) -> Vec<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                lock(&self.shared.wrong).push("an honest visitor's thread panicked".into());
            }
        }
        lock(&self.shared.wrong).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Repeats `work` at a steady pace; one that took longer than the pause is followed at once.
    fn at_a_steady_pace(&self, mut work: impl FnMut()) {
        while !self.stop.load(Ordering::Relaxed) {
            let next = Instant::now() + EVERY;
            work();
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn requests(&self) {
        self.at_a_steady_pace(|| {
            let began = Instant::now();
            let result = exact::visit(self.visit, PATIENCE);
            let took = result.is_ok().then(|| began.elapsed());
            lock(&self.requests).record(took);
            if let Err(exact::Wrong::Bytes(wrong)) = result {
                let mut all = lock(&self.wrong);
                if all.len() < WRONG_MAX {
                    all.push(wrong);
                }
            }
        });
    }

    fn questions(&self) {
        let mut number = 0;
        let mut socket = None;
        self.at_a_steady_pace(|| {
            if number % QUESTIONS_PER_FLOW == 0 {
                socket = visitor(self.visit).ok();
            }
            number += 1;
            let took = socket.as_ref().and_then(|socket| ask(socket, number));
            lock(&self.questions).record(took);
        });
    }
}

fn visitor(visit: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(visit)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// How long the answer took; `None` if none came.
fn ask(socket: &UdpSocket, number: u64) -> Option<Duration> {
    let mut question = [0x55; QUESTION_BYTES];
    PacketHeader {
        kind: PacketKind::Echo,
        run: 0,
        number,
    }
    .write(&mut question);
    let began = Instant::now();
    socket.send(&question).ok()?;
    let mut answer = [0; QUESTION_BYTES + 1];
    loop {
        // A late answer to an earlier question is passed over.
        let length = socket.recv(&mut answer).ok()?;
        if answer[..length] == question {
            return Some(began.elapsed());
        }
    }
}
