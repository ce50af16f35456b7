//! Honest visitors: a request and a UDP question every few milliseconds, and how long each took.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::commands::background::Background;
use crate::harness::lock;
use crate::load::exact;
use crate::load::latency::Times;
use crate::load::ping_pong::{RoundTrip as _, Udp};

/// Between the begins of two requests or two questions; one that took longer is followed at once.
const EVERY: Duration = Duration::from_millis(20);

/// How long an honest visitor waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions that one visitor asks before the next one comes, from another port: new flows must get
/// through, too.
const QUESTIONS_PER_FLOW: u64 = 25;

/// Honest visitors, and what they have noticed since it was last asked.
#[derive(Default)]
pub(super) struct Honest {
    visitors: Background,
    requests: Arc<Mutex<Times>>,
    questions: Arc<Mutex<Times>>,
}

impl Honest {
    pub(super) fn start(visit: SocketAddr) -> Self {
        let mut honest = Self::default();
        let (requests, wrong) = (Arc::clone(&honest.requests), honest.visitors.wrong.clone());
        honest.visitors.repeat(move || {
            let began = Instant::now();
            let result = exact::visit(visit, PATIENCE);
            let took = result.is_ok().then(|| began.elapsed());
            lock(&requests).note(took);
            // What honest visitors must never get.
            if let Err(error) = result
                && exact::io_kind(&error).is_none()
            {
                wrong.add(&error);
            }
            began + EVERY
        });
        let questions = Arc::clone(&honest.questions);
        let (mut number, mut visitor) = (0, None);
        honest.visitors.repeat(move || {
            let began = Instant::now();
            if number % QUESTIONS_PER_FLOW == 0 {
                visitor = Udp::open(visit).ok();
            }
            number += 1;
            let asked = visitor.as_mut().map(Udp::round_trip);
            lock(&questions).note(asked.and_then(|it| it.ok().flatten()));
            began + EVERY
        });
        honest
    }

    /// How long requests and questions took since the last call, and how many failed.
    pub(super) fn take(&self) -> [String; 2] {
        [&self.requests, &self.questions].map(|times| {
            let times = std::mem::take(&mut *lock(times));
            let (p50, p99) = (times.percentile_ms(50.0), times.percentile_ms(99.0));
            let (failed, all) = (times.failed, times.count() + times.failed);
            format!("{p50:.1}, {p99:.1} ({failed} of {all})")
        })
    }

    pub(super) fn stop(mut self) -> Vec<String> {
        self.visitors.stop()
    }
}
