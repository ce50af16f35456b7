//! Packets that leave together.

use std::io;
use std::net::{IpAddr, SocketAddr};

use quinn_udp::Transmit;

use super::socket::BatchSocket;

/// The most bytes of one send with segmentation offload; the kernel refuses more than a UDP
/// payload.
const BATCH_BYTES_MAX: usize = 65_494;

/// The most packets of one send: what every kernel with segmentation offload takes.
const BATCH_PACKETS_MAX: usize = 64;

/// The destination of a packet, and the address of ours that it is sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    destination: SocketAddr,
    local_ip: Option<IpAddr>,
}

/// Collects packets for one destination and of one length, the last one perhaps shorter, and sends
/// them in one system call. A packet that does not fit to those before it sends these first.
#[derive(Debug, Default)]
pub struct SendBatch {
    route: Option<Route>,
    bytes: Vec<u8>,
    packet_bytes: usize,
    packets: usize,
}

impl SendBatch {
    /// An empty batch. It allocates once, when it is first used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the next packet may join those that wait, so that none of those has to be sent
    /// first.
    fn takes(&self, route: Route, payload: &[u8], packets_max: usize) -> bool {
        self.packets == 0
            || (self.route == Some(route)
                && self.packets < packets_max.min(BATCH_PACKETS_MAX)
                && self.packet_bytes * self.packets == self.bytes.len()
                && !payload.is_empty()
                && payload.len() <= self.packet_bytes
                && self.bytes.len() + payload.len() <= BATCH_BYTES_MAX)
    }

    /// Adds a packet; sends those before it if it does not fit to them.
    ///
    /// # Errors
    ///
    /// The error of the socket: those before it are gone, this one waits.
    pub async fn push(
        &mut self,
        socket: &BatchSocket,
        destination: SocketAddr,
        local_ip: Option<IpAddr>,
        payload: &[u8],
    ) -> io::Result<()> {
        let route = Route {
            destination,
            local_ip,
        };
        let flushed = if self.takes(route, payload, socket.segments_max()) {
            Ok(())
        } else {
            self.flush(socket).await
        };
        if self.packets == 0 {
            self.route = Some(route);
            self.packet_bytes = payload.len();
        }
        self.bytes.extend_from_slice(payload);
        self.packets += 1;
        flushed
    }

    /// Sends what waits.
    ///
    /// # Errors
    ///
    /// The error of the socket: what waited is gone.
    pub async fn flush(&mut self, socket: &BatchSocket) -> io::Result<()> {
        let Some(route) = self.route.take() else {
            return Ok(());
        };
        let mut sent = self.send(socket, route, &self.bytes).await;
        if sent.is_err() && self.packets > 1 {
            // The device or the path takes no segmented sends of this size; one by one it may take
            // them.
            sent = Ok(());
            for payload in self.bytes.chunks(self.packet_bytes) {
                sent = sent.and(self.send(socket, route, payload).await);
            }
        }
        self.bytes.clear();
        self.packets = 0;
        sent
    }

    async fn send(&self, socket: &BatchSocket, route: Route, contents: &[u8]) -> io::Result<()> {
        let segmented = contents.len() > self.packet_bytes;
        socket
            .send(&Transmit {
                destination: route.destination,
                ecn: None,
                contents,
                segment_size: segmented.then_some(self.packet_bytes),
                src_ip: route.local_ip,
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(port: u16) -> Route {
        Route {
            destination: SocketAddr::from(([127, 0, 0, 1], port)),
            local_ip: None,
        }
    }

    fn batch(lengths: &[usize]) -> SendBatch {
        SendBatch {
            route: Some(route(1)),
            bytes: vec![0; lengths.iter().sum()],
            packet_bytes: lengths[0],
            packets: lengths.len(),
        }
    }

    #[test]
    fn packets_of_one_length_and_route_travel_together() {
        assert!(batch(&[1_000, 1_000]).takes(route(1), &[0; 1_000], 64));
        assert!(batch(&[1_000, 1_000]).takes(route(1), &[0; 1], 64));
    }

    #[test]
    fn nothing_follows_a_shorter_packet() {
        assert!(!batch(&[1_000, 999]).takes(route(1), &[0; 999], 64));
        assert!(!batch(&[0]).takes(route(1), &[0; 1], 64));
    }

    #[test]
    fn longer_empty_and_other_packets_start_a_batch_of_their_own() {
        assert!(!batch(&[1_000]).takes(route(1), &[0; 1_001], 64));
        assert!(!batch(&[1_000]).takes(route(1), &[], 64));
        assert!(!batch(&[1_000]).takes(route(2), &[0; 1_000], 64));
    }

    #[test]
    fn a_batch_stays_within_what_the_kernel_takes() {
        assert!(!batch(&[10; 64]).takes(route(1), &[0; 10], 128));
        assert!(!batch(&[1_000]).takes(route(1), &[0; 1_000], 1));
        assert!(!batch(&[33_000]).takes(route(1), &[0; 33_000], 64));
    }
}
