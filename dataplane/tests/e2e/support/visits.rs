//! Visitors who come one after the other at a steady rate, whatever happens to those before them.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::service::TcpService;
use super::visitor;

/// Stack of a visitor's thread: hundreds may wait for a client that is dead.
const STACK_BYTES: usize = 128 << 10;

/// Bytes of a request: its number.
const REQUEST_BYTES: usize = 8;

/// The number of times that services have received each request.
#[derive(Clone, Default)]
pub(crate) struct Delivered(Arc<Mutex<HashMap<u64, usize>>>);

impl Delivered {
    /// A service that notes each request, and sends it back.
    pub(crate) fn service(&self) -> TcpService {
        self.service_that(|| {})
    }

    /// A service that notes each request, calls `then`, and sends the request back.
    pub(crate) fn service_that(&self, then: impl Fn() + Send + Sync + 'static) -> TcpService {
        let Delivered(delivered) = self.clone();
        TcpService::start(move |mut stream| {
            let mut request = [0; REQUEST_BYTES];
            // A check of the service, or a visitor that has gone.
            if stream.read_exact(&mut request).is_err() {
                return;
            }
            let number = u64::from_be_bytes(request);
            *delivered
                .lock()
                .expect("requests")
                .entry(number)
                .or_default() += 1;
            then();
            let _gone = stream.write_all(&request);
            let _gone = stream.shutdown(Shutdown::Write);
        })
    }

    /// Requests that were delivered more than once.
    pub(crate) fn repeated(&self) -> usize {
        let delivered = self.0.lock().expect("requests");
        delivered.values().filter(|times| **times > 1).count()
    }
}

/// One visitor.
#[derive(Debug)]
pub(crate) struct Visit {
    /// The time from the first one to this one.
    pub(crate) came: Duration,
    /// How long it took.
    pub(crate) took: Duration,
    pub(crate) result: Result<(), String>,
}

/// Visitors that keep coming until told otherwise.
pub(crate) struct Visits {
    start: Instant,
    stop: Arc<AtomicBool>,
    source: JoinHandle<Vec<JoinHandle<Visit>>>,
}

impl Visits {
    pub(crate) fn start(address: SocketAddr, per_second: u32) -> Visits {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let source = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut visitors = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let due = start + Duration::from_secs(1) * number / per_second;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let visitor = thread::Builder::new()
                        .stack_size(STACK_BYTES)
                        .spawn(move || visit(address, number.into(), start));
                    visitors.push(visitor.expect("a thread"));
                }
                visitors
            }
        });
        Visits {
            start,
            stop,
            source,
        }
    }

    /// Time since the first one came.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Ends the visits; waits for the visitors who are there.
    pub(crate) fn finish(self) -> Vec<Visit> {
        self.stop.store(true, Ordering::SeqCst);
        let visitors = self.source.join().expect("the source");
        visitors
            .into_iter()
            .map(|visitor| visitor.join().expect("a visitor"))
            .collect()
    }
}

fn visit(address: SocketAddr, number: u64, start: Instant) -> Visit {
    let came = start.elapsed();
    let result = exchange(address, number).map_err(|error| error.to_string());
    Visit {
        came,
        took: start.elapsed() - came,
        result,
    }
}

fn exchange(address: SocketAddr, number: u64) -> io::Result<()> {
    let mut stream: TcpStream = visitor::try_connect(address)?;
    let request = number.to_be_bytes();
    stream.write_all(&request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer == request {
        Ok(())
    } else {
        Err(io::Error::other(format!("the answer is {answer:?}")))
    }
}

/// A summary of a set of visitors, for the test's output.
pub(crate) fn summary(visits: &[Visit]) -> String {
    let failed: Vec<&Visit> = visits
        .iter()
        .filter(|visit| visit.result.is_err())
        .collect();
    let slowest = visits
        .iter()
        .map(|visit| visit.took)
        .max()
        .unwrap_or_default();
    let mut text = format!(
        "{} visitors, {} failed, slowest {:.3} s",
        visits.len(),
        failed.len(),
        slowest.as_secs_f64()
    );
    for visit in failed.iter().take(5) {
        text += &format!(
            "\n  came at {:.3} s, failed after {:.3} s: {:?}",
            visit.came.as_secs_f64(),
            visit.took.as_secs_f64(),
            visit.result
        );
    }
    text
}
