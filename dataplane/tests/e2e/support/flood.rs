//! Datagrams as fast as one thread sends them, from as many sockets as wanted.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::wait::{self, PATIENCE};

/// Number of datagrams after which it checks whether to end.
const BURST: usize = 64;

/// A flood that lasts until this is dropped, or all patience has ended.
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
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
        let (stop, begun) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (stopped, begins) = (Arc::clone(&stop), Arc::clone(&begun));
        let sender = thread::spawn(move || {
            let ends = Instant::now() + 5 * PATIENCE;
            while !stopped.load(Ordering::Relaxed) && Instant::now() < ends {
                for socket in &sockets {
                    for _ in 0..BURST {
                        // The packet was refused, or there was no room. Both belong to a flood.
                        let _lost = socket.send(&[7; 64]);
                    }
                }
                begins.store(true, Ordering::Relaxed);
            }
        });
        let flood = Flood {
            stop,
            sender: Some(sender),
        };
        wait::until_true("the flood begins", || begun.load(Ordering::Relaxed));
        flood
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
