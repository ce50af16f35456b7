//! A UDP socket that receives in batches.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// The bytes of one receive buffer: the kernel merges packets up to the largest UDP payload.
const RECEIVE_BUFFER_BYTES: usize = 1 << 16;

/// The buffers of one receive call. With GRO each of them holds up to 64 packets, so a few are a
/// large batch.
const RECEIVE_BUFFERS: usize = 8;

const _: () = assert!(RECEIVE_BUFFERS <= BATCH_SIZE);

thread_local! {
    /// The receive buffers of this thread. They are filled and used up between two awaits, so that
    /// all the sockets of a thread share them and an idle socket holds none.
    static RECEIVE: RefCell<Vec<u8>> = RefCell::new(vec![0; RECEIVE_BUFFERS * RECEIVE_BUFFER_BYTES]);
}

/// A packet that was received.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The address that sent the packet.
    pub source: SocketAddr,
    /// The address of ours that it was sent to: replies should come from there.
    pub local_ip: Option<IpAddr>,
    /// What it carries.
    pub payload: &'a [u8],
}

/// quinn-udp forbids IP fragments, as QUIC demands. What a tunnel carries are other people's
/// packets, which may be larger than a link.
fn allow_fragments(socket: &std::net::UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
    }
    // An IPv6 socket that also takes IPv4 has this option as well; one that does not refuses it.
    match sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DONT) {
        Err(error) if socket.local_addr()?.is_ipv4() => Err(error.into()),
        _ => Ok(()),
    }
}

/// A UDP socket with batched receiving. Sending in batches is what [`SendBatch`](super::SendBatch)
/// does.
#[derive(Debug)]
pub struct BatchSocket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl BatchSocket {
    /// Takes over a socket. Call it on a tokio runtime.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        // This also makes it non-blocking.
        let state = UdpSocketState::new((&socket).into())?;
        allow_fragments(&socket)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            state,
        })
    }

    /// Waits until there may be packets.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Hands one batch of the packets that are there to `take`. Returns how many there were.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there are none; else the error of the socket, which may be the answer to an
    /// earlier send.
    ///
    /// # Panics
    ///
    /// If `take` receives from a socket itself.
    pub fn try_receive(&self, mut take: impl FnMut(Packet<'_>)) -> io::Result<usize> {
        RECEIVE.with_borrow_mut(|buffer| {
            let mut metas = [RecvMeta::default(); RECEIVE_BUFFERS];
            let buffers = self.socket.try_io(Interest::READABLE, || {
                let mut chunks = buffer.chunks_exact_mut(RECEIVE_BUFFER_BYTES);
                let mut slices = [(); RECEIVE_BUFFERS]
                    .map(|()| IoSliceMut::new(chunks.next().unwrap_or_default()));
                self.state
                    .recv((&self.socket).into(), &mut slices, &mut metas)
            })?;
            let mut packets = 0;
            for (meta, buffer) in metas[..buffers]
                .iter()
                .zip(buffer.chunks_exact(RECEIVE_BUFFER_BYTES))
            {
                // An empty packet is a packet as well: `chunks` would give none.
                let mut rest = &buffer[..meta.len];
                loop {
                    let (payload, after) = rest.split_at(rest.len().min(meta.stride));
                    take(Packet {
                        source: meta.addr,
                        local_ip: meta.dst_ip,
                        payload,
                    });
                    packets += 1;
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
            }
            Ok(packets)
        })
    }

    /// The largest number of packets in one send.
    pub(super) fn segments_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends, waiting for room in the socket's buffer.
    pub(super) async fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        loop {
            let sent = self.socket.try_io(Interest::WRITABLE, || {
                self.state.try_send((&self.socket).into(), transmit)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.writable().await?;
                }
                result => return result,
            }
        }
    }
}
