//! A UDP path that takes its time: a relay that holds every packet back, in both directions.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The largest UDP payload.
const PACKET_BYTES_MAX: usize = 65_535;

/// Packets that a relay keeps besides those that are under way.
const QUEUE_PACKETS_MAX: u32 = 128;

/// How often a relay that has nothing to do checks whether it is still needed.
const LOOK: Duration = Duration::from_millis(50);

/// A relay between one client at a time and a server. Ends when dropped.
pub(crate) struct SlowPath {
    /// The address that the client dials.
    pub(crate) address: SocketAddr,
    alive: Arc<()>,
}

impl SlowPath {
    /// A path to `server`, with this delay each way.
    pub(crate) fn to(server: SocketAddr, delay: Duration) -> Self {
        Self::with_spacing(server, delay, Duration::ZERO)
    }

    /// A path to `server`, with this delay each way, that lets packets out at this distance or
    /// more. Of those that wait for that it keeps [`QUEUE_PACKETS_MAX`].
    pub(crate) fn with_spacing(server: SocketAddr, delay: Duration, spacing: Duration) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a port"));
        far.connect(server).expect("connected");
        let address = near.local_addr().expect("bound");
        let alive = Arc::new(());
        let client = Arc::new(Mutex::new(None::<SocketAddr>));
        let (from, to, knows) = (Arc::clone(&near), Arc::clone(&far), Arc::clone(&client));
        relay(
            &alive,
            (delay, spacing),
            move |buffer| {
                let (length, sender) = from.recv_from(buffer).ok()?;
                *knows.lock().expect("client") = Some(sender);
                Some(length)
            },
            move |packet| {
                // A server that is gone is the test's doing.
                let _lost = to.send(packet);
            },
            &near,
        );
        let (from, to) = (Arc::clone(&far), Arc::clone(&near));
        relay(
            &alive,
            (delay, spacing),
            move |buffer| from.recv(buffer).ok(),
            move |packet| {
                if let Some(client) = *client.lock().expect("client") {
                    let _lost = to.send_to(packet, client);
                }
            },
            &far,
        );
        Self { address, alive }
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        // The threads hold weak references and end by themselves.
        self.alive = Arc::new(());
    }
}

fn relay(
    alive: &Arc<()>,
    (delay, spacing): (Duration, Duration),
    receive: impl Fn(&mut [u8]) -> Option<usize> + Send + 'static,
    send: impl Fn(&[u8]) + Send + 'static,
    socket: &UdpSocket,
) {
    socket.set_read_timeout(Some(LOOK)).expect("a timeout");
    let alive = Arc::downgrade(alive);
    let (packets, held) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let mut next = Instant::now();
        while alive.strong_count() > 0 {
            let Some(length) = receive(&mut buffer) else {
                continue;
            };
            let due = (Instant::now() + delay).max(next);
            if due > Instant::now() + delay + QUEUE_PACKETS_MAX * spacing {
                continue;
            }
            next = due + spacing;
            if packets.send((due, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in held {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            send(&packet);
        }
    });
}
