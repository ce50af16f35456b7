//! Bulk: as many bytes as go through, over some TCP connections, one way or the other.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::service::Service;
use super::wire::{self, Command};

/// How long it may take until all connections have begun.
const BEGIN_PATIENCE: Duration = Duration::from_secs(60);

/// The distance of two looks at how many have.
const BEGIN_LOOK: Duration = Duration::from_millis(10);

/// The direction of a bulk transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From visitors to the service.
    Up,
    /// From the service to visitors.
    Down,
}

/// Bulk that flows until it is dropped.
#[derive(Debug)]
pub(crate) struct Bulk {
    way: Way,
    received: Arc<AtomicU64>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Bulk {
    /// Starts the transfer, and waits until the service has heard of each connection: what it costs
    /// to begin thousands of them is not a cost of bulk.
    pub(crate) fn start_all(
        visit: SocketAddr,
        way: Way,
        connections: usize,
        service: &Service,
    ) -> Result<Self> {
        let before = service.bulk_begun();
        let bulk = Self::start(visit, way, connections)?;
        let deadline = Instant::now() + BEGIN_PATIENCE;
        loop {
            let begun = service.bulk_begun() - before;
            if begun >= connections {
                return Ok(bulk);
            }
            bulk.check()?;
            ensure!(
                Instant::now() < deadline,
                "after {BEGIN_PATIENCE:?}, {begun} of {connections} connections had begun"
            );
            thread::sleep(BEGIN_LOOK);
        }
    }

    /// Starts the transfer. Bytes flow at once.
    pub(crate) fn start(visit: SocketAddr, way: Way, connections: usize) -> Result<Self> {
        let mut bulk = Self {
            way,
            received: Arc::default(),
            streams: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..connections {
            let connected = bulk.connect(visit);
            connected.with_context(|| format!("a bulk connection to {visit}"))?;
        }
        Ok(bulk)
    }

    fn connect(&mut self, visit: SocketAddr) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(visit)?;
        let command = match self.way {
            Way::Up => Command::Discard,
            Way::Down => Command::Source,
        };
        stream.write_all(&[command.byte()])?;
        self.streams.push(stream.try_clone()?);
        let received = Arc::clone(&self.received);
        self.threads.push(thread::spawn(move || match command {
            Command::Discard => drop(wire::write_bulk(stream)),
            _ => drop(wire::read_bulk(stream, &received)),
        }));
        Ok(())
    }

    /// Bytes that have arrived so far, wherever they arrive.
    pub(crate) fn arrived_bytes(&self, service: &Service) -> u64 {
        match self.way {
            Way::Up => service.discarded_bytes(),
            Way::Down => self.received.load(Ordering::Relaxed),
        }
    }

    /// That no connection has broken; else what is measured is not what was asked for.
    pub(crate) fn check(&self) -> Result<()> {
        let is_broken = self.threads.iter().any(JoinHandle::is_finished);
        ensure!(!is_broken, "a bulk connection broke");
        Ok(())
    }

    /// Does something meanwhile. Returns also how many bytes have arrived, and in how many seconds.
    pub(crate) fn beside<T>(&self, service: &Service, work: impl FnOnce() -> T) -> (T, f64, f64) {
        let (start, before) = (Instant::now(), self.arrived_bytes(service));
        let done = work();
        let bytes = self.arrived_bytes(service) - before;
        (done, bytes as f64, start.elapsed().as_secs_f64())
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        for stream in &self.streams {
            // One that has ended already is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
