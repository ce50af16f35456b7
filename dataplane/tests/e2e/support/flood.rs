//! Datagrams as fast as one thread sends them, from as many sockets as wanted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::wait::{self, PATIENCE};

/// Looked at for the end after so many.
const BURST: usize = 64;

/// A flood that lasts until this is dropped, or patience ends.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Flood {
    /// Towards `address`, which is on the loopback interface. Returns when it has begun.
    pub(crate) fn start(address: SocketAddr, sockets: usize) -> Flood {
        assert!(address.ip().is_loopback());
        let sockets: Vec<UdpSocket> = (0..sockets)
            .map(|_| {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
                socket.connect(address).expect("an address");
                socket
            })
            .collect();
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, counts) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = thread::spawn(move || {
            let ends = Instant::now() + 2 * PATIENCE;
            while !stopped.load(Ordering::Relaxed) && Instant::now() < ends {
                for socket in &sockets {
                    for _ in 0..BURST {
                        // Refused, or no room: it is a flood all the same.
                        let _lost = socket.send(&[7; 64]);
                    }
                }
                counts.fetch_add((BURST * sockets.len()) as u64, Ordering::Relaxed);
            }
        });
        let flood = Flood {
            stop,
            sent,
            sender: Some(sender),
        };
        flood.wait_for_more(1);
        flood
    }

    /// Waits until `datagrams` more have been sent.
    pub(crate) fn wait_for_more(&self, datagrams: u64) {
        let before = self.sent.load(Ordering::Relaxed);
        wait::until_true("the flood goes on", || {
            self.sent.load(Ordering::Relaxed) >= before + datagrams
        });
    }

    /// Whether it has not ended by itself.
    pub(crate) fn goes_on(&self) -> bool {
        self.sender
            .as_ref()
            .is_some_and(|sender| !sender.is_finished())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ended = sender.join();
        }
    }
}
