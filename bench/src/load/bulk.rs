//! Bulk: as many bytes as go through, over some TCP connections, one way or the other.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::service::Service;
use super::wire::{BULK_BUFFER_BYTES, Command};
use crate::harness::BenchError;

/// Which way bulk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From visitors to the service.
    Up,
    /// From the service to visitors.
    Down,
}

/// Bulk that flows until it is dropped.
#[derive(Debug)]
pub struct Bulk {
    way: Way,
    /// Bytes that visitors have received.
    received: Arc<AtomicU64>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Bulk {
    /// Starts it. Bytes flow in the same moment.
    pub fn start(visit: SocketAddr, way: Way, connections: usize) -> Result<Self, BenchError> {
        let mut bulk = Self {
            way,
            received: Arc::default(),
            streams: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..connections {
            bulk.connect(visit)
                .map_err(BenchError::io(format!("a bulk connection to {visit}")))?;
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
        let (way, received) = (self.way, Arc::clone(&self.received));
        self.threads.push(thread::spawn(move || match way {
            Way::Up => send(stream),
            Way::Down => receive(stream, &received),
        }));
        Ok(())
    }

    /// Bytes that have arrived so far, wherever they arrive.
    pub fn arrived_bytes(&self, service: &Service) -> u64 {
        match self.way {
            Way::Up => service.discarded_bytes(),
            Way::Down => self.received.load(Ordering::Relaxed),
        }
    }

    /// Whether a connection has broken; then what is measured is not what was asked for.
    pub fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
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

/// Writes until it cannot.
fn send(mut stream: TcpStream) {
    let buffer = vec![0x5a; BULK_BUFFER_BYTES];
    while stream.write_all(&buffer).is_ok() {}
}

/// Reads until there is no more.
fn receive(mut stream: TcpStream, received: &AtomicU64) {
    let mut buffer = vec![0; BULK_BUFFER_BYTES];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        received.fetch_add(read as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::place::Place;
    use std::time::{Duration, Instant};

    fn flows(way: Way) {
        let service = Service::start(&Place::loopback(), &[]).expect("a service");
        let bulk = Bulk::start(service.address, way, 2).expect("bulk");
        let deadline = Instant::now() + Duration::from_secs(60);
        while bulk.arrived_bytes(&service) < 8 << 20 {
            assert!(Instant::now() < deadline, "nothing arrives");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!bulk.is_broken());
    }

    #[test]
    fn bytes_reach_the_service() {
        flows(Way::Up);
    }

    #[test]
    fn bytes_reach_the_visitor() {
        flows(Way::Down);
    }
}
