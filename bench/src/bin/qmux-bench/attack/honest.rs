//! Honest visitors: a request and a UDP question every few milliseconds, and how long each took.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qmux_bench::load::exact;
use qmux_bench::load::latency::Times;
use qmux_bench::load::ping_pong;

use crate::background::{Background, lock};

/// Between the begins of two requests or two questions; one that took longer is followed at once.
const EVERY: Duration = Duration::from_millis(20);

/// How long an honest visitor waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions that one visitor asks before the next one comes, from another port: new flows must get
/// through, too.
const QUESTIONS_PER_FLOW: u64 = 25;

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

/// Honest visitors, and what they have noticed since it was last asked.
#[derive(Default)]
pub(super) struct Honest {
    visitors: Background,
    requests: Arc<Mutex<Noted>>,
    questions: Arc<Mutex<Noted>>,
}

impl Honest {
    pub(super) fn start(visit: SocketAddr) -> Self {
        let mut honest = Self::default();
        let (requests, wrong) = (Arc::clone(&honest.requests), honest.visitors.wrong.clone());
        honest.visitors.repeat(move || {
            let began = Instant::now();
            let result = exact::visit(visit, PATIENCE);
            let took = result.is_ok().then(|| began.elapsed());
            lock(&requests).record(took);
            // What honest visitors must never get.
            if let Err(exact::Wrong::Bytes(bytes)) = result {
                wrong.add(&bytes);
            }
            began + EVERY
        });
        let questions = Arc::clone(&honest.questions);
        let (mut number, mut visitor) = (0, None);
        honest.visitors.repeat(move || {
            let began = Instant::now();
            if number % QUESTIONS_PER_FLOW == 0 {
                visitor = ping_pong::Udp::open(visit).ok();
            }
            number += 1;
            let asked = visitor.as_mut().map(ping_pong::Udp::round_trip);
            let took = asked.and_then(|it| it.ok().flatten());
            lock(&questions).record(took);
            began + EVERY
        });
        honest
    }

    /// How requests and questions went since the last call.
    pub(super) fn take(&self) -> [Noted; 2] {
        [&self.requests, &self.questions].map(|noted| std::mem::take(&mut *lock(noted)))
    }

    /// Ends it, and says what was wrong.
    pub(super) fn stop(mut self) -> Vec<String> {
        self.visitors.stop()
    }
}
