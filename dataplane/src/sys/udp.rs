//! A UDP socket driven by readiness, with GSO, GRO and packet info through `quinn-udp`.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};

use super::option;

/// Bytes of a buffer for one GRO batch: the largest IP packet.
const GRO_BUFFER_BYTES: usize = 1 << 16;

/// GRO batches that one receive call may fill on a QUIC socket. Measured on TCP over loopback, with
/// 2 MB of second-level cache: what one call brings is copied three times more before it leaves the
/// core, so more than 256 KB costs 4 to 5 % by cache misses; 64 KB costs 40 to 50 %, because each
/// call is followed by acknowledgements and a turn of every flow.
const QUIC_BATCHES: usize = 4;

/// Packets that one receive call may bring to a QUIC socket while they come unmerged: from a
/// network device that does no GRO, or from many peers. Where they are merged from one call to the
/// next, it brings as many buffers of 64 KB once, and no more than four again after it.
const QUIC_SINGLES: usize = 20;

/// The most bytes per packet, on average, of a call after which the next one may bring that many.
const SINGLE_BYTES_MAX: usize = 4 << 10;

/// GRO batches that one receive call may fill on the sockets of visitors and services, whose
/// datagrams mostly come one by one: what one call brings should fill QUIC packets of 16 KB, and a
/// GSO batch of these. With 4, `iperf3 -u -b 500M` costs a quarter more.
const TRAFFIC_BATCHES: usize = 16;

/// The largest of all.
const BATCHES_MAX: usize = QUIC_SINGLES;

const _: () = assert!(QUIC_BATCHES <= BATCHES_MAX && TRAFFIC_BATCHES <= BATCHES_MAX);

/// Segments of one GSO send that the kernel accepts (`UDP_MAX_SEGMENTS`).
pub(crate) const GSO_SEGMENTS_MAX: usize = 64;

/// Bytes of one GSO send. 65,507 is the limit of IPv4; up to this value the batch still arrives as
/// one GRO buffer on loopback, above it falls apart into single datagrams (measured).
pub(crate) const GSO_BYTES_MAX: usize = 65_494;

/// What the socket is for, which decides how packets larger than the path's MTU are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Carries QUIC: never fragmented by IP, too large a packet is an error (RFC 9000, section 14).
    Quic,
    /// Carries visitors' or services' datagrams of any size: IP fragments them where it must.
    Traffic,
}

/// One UDP socket, owned by one core.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    io: monoio::net::udp::UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    /// Segments of GSO that the kernel supported at the start. Owners remember refusals themselves:
    /// one destination's trouble is no reason to stop GSO towards all others for good, as
    /// `quinn-udp` does.
    gso_segments: usize,
}

/// Buffers of one receive call, reused for each.
#[derive(Debug)]
pub(crate) struct ReceiveBatch {
    storage: Vec<u8>,
    meta: Vec<RecvMeta>,
    /// Buffers that a call may fill where packets come merged.
    batches: usize,
    /// Buffers that the last call could fill, and that it has filled.
    offered: usize,
    filled: usize,
    /// Buffers that the next call may fill.
    next_offer: usize,
}

/// One datagram (or QUIC packet) of a batch, to be processed in place.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    /// The payload.
    pub(crate) data: &'a mut [u8],
    /// The sender's address.
    pub(crate) from: SocketAddr,
    /// The local address that it was sent to, where the kernel tells.
    pub(crate) to_ip: Option<IpAddr>,
}

impl ReceiveBatch {
    /// Allocates the buffers for sockets of this purpose: some 1 MB, most of which is rarely
    /// touched.
    pub(crate) fn new(purpose: Purpose) -> ReceiveBatch {
        let (batches, most) = match purpose {
            Purpose::Quic => (QUIC_BATCHES, QUIC_SINGLES),
            Purpose::Traffic => (TRAFFIC_BATCHES, TRAFFIC_BATCHES),
        };
        ReceiveBatch {
            storage: vec![0; GRO_BUFFER_BYTES * most],
            meta: vec![RecvMeta::default(); most],
            batches,
            offered: batches,
            filled: 0,
            next_offer: batches,
        }
    }

    /// Notes how many buffers a call has filled, and decides how many the next one may.
    fn filled(&mut self, filled: usize) {
        self.filled = filled;
        let bytes: usize = self.meta[..filled].iter().map(|meta| meta.len).sum();
        let are_many = filled == self.offered || filled > self.batches;
        let are_single = bytes <= filled * SINGLE_BYTES_MAX;
        self.next_offer = if are_many && are_single {
            self.meta.len()
        } else {
            self.batches
        };
    }

    /// Whether there may be more to receive at once. If the last call did not fill the batch, the
    /// socket was empty at its end, and waiting for [`UdpSocket::readable`] is cheaper than a call
    /// that finds nothing.
    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.offered
    }

    /// Calls `each` with every datagram of the last receive call, in order.
    pub(crate) fn for_each(&mut self, mut each: impl FnMut(Received<'_>)) {
        let buffers = self.storage.chunks_exact_mut(GRO_BUFFER_BYTES);
        for (buffer, meta) in buffers.zip(&self.meta).take(self.filled) {
            if meta.len == 0 {
                each(Received {
                    data: &mut [],
                    from: meta.addr,
                    to_ip: meta.dst_ip,
                });
                continue;
            }
            for data in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                each(Received {
                    data,
                    from: meta.addr,
                    to_ip: meta.dst_ip,
                });
            }
        }
    }
}

impl UdpSocket {
    /// Adopts a bound socket on the current core.
    pub(crate) fn adopt(socket: StdUdpSocket, purpose: Purpose) -> io::Result<UdpSocket> {
        let local = socket.local_addr()?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        if purpose == Purpose::Traffic {
            allow_ip_fragmentation(&socket)?;
        }
        let gso_segments = state.max_gso_segments().min(GSO_SEGMENTS_MAX);
        Ok(UdpSocket {
            io: monoio::net::udp::UdpSocket::from_std(socket)?,
            state,
            local,
            gso_segments,
        })
    }

    /// A descriptor of the same socket for another process.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        super::borrow(&self.io).try_clone_to_owned()
    }

    /// The address that the socket is bound to.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Segments that one send may carry: 1 where the kernel does not support GSO.
    pub(crate) fn gso_segments(&self) -> usize {
        self.gso_segments
    }

    /// Waits until something can be received. Cancel-safe.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.io.readable(false).await
    }

    /// Waits until something can be sent. Cancel-safe.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.io.writable(false).await
    }

    /// Sets whether the network's report that nobody listens at a peer (ICMP) becomes an error of
    /// this socket.
    pub(crate) fn hear_unreachable(&self, hear: bool) -> io::Result<()> {
        super::unreachable::hear(super::borrow(&self.io), self.local.is_ipv4(), hear)
    }

    /// Receives into `batch`; `WouldBlock` means wait for [`UdpSocket::readable`].
    pub(crate) fn try_receive(&self, batch: &mut ReceiveBatch) -> io::Result<()> {
        batch.filled = 0;
        batch.offered = batch.next_offer;
        let mut buffers = batch.storage.chunks_exact_mut(GRO_BUFFER_BYTES);
        let mut slices: [IoSliceMut<'_>; BATCHES_MAX] =
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()));
        let slices = &mut slices[..batch.offered];
        let fd = super::borrow(&self.io);
        let filled = self
            .state
            .recv(UdpSockRef::from(&fd), slices, &mut batch.meta)?;
        batch.filled(filled);
        Ok(())
    }

    /// Sends `contents`, as segments of `segment` bytes if that is shorter; `WouldBlock` means wait
    /// for [`UdpSocket::writable`].
    pub(crate) fn try_send(
        &self,
        contents: &[u8],
        segment: usize,
        to: SocketAddr,
        from_ip: Option<IpAddr>,
    ) -> io::Result<()> {
        let fd = super::borrow(&self.io);
        self.state.try_send(
            UdpSockRef::from(&fd),
            &Transmit {
                destination: to,
                ecn: None,
                contents,
                segment_size: (segment < contents.len()).then_some(segment),
                src_ip: from_ip,
            },
        )
    }
}

/// Undoes what `quinn-udp` sets for QUIC: traffic datagrams may be larger than a packet.
fn allow_ip_fragmentation(socket: &StdUdpSocket) -> io::Result<()> {
    let options: &[(libc::c_int, libc::c_int, libc::c_int)] = if socket.local_addr()?.is_ipv4() {
        &[(
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        )]
    } else {
        &[
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            ),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0),
            (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            ),
        ]
    };
    for (level, name, value) in options {
        option::set_int(socket, *level, *name, *value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `test` with a socket for QUIC, and one that sends to it.
    fn with_sockets(test: impl FnOnce(&UdpSocket, &StdUdpSocket)) {
        let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
            .enable_timer()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let socket = StdUdpSocket::bind("127.0.0.1:0").expect("a port");
            let sender = StdUdpSocket::bind("127.0.0.1:0").expect("a port");
            let to = socket.local_addr().expect("bound");
            sender.connect(to).expect("connected");
            let socket = UdpSocket::adopt(socket, Purpose::Quic).expect("a socket");
            test(&socket, &sender);
        });
    }

    fn receive(socket: &UdpSocket, batch: &mut ReceiveBatch) -> (usize, bool) {
        socket.try_receive(batch).expect("something");
        let mut packets = 0;
        batch.for_each(|_| packets += 1);
        (packets, batch.is_full())
    }

    #[test]
    fn a_call_takes_many_packets_where_they_come_one_by_one() {
        with_sockets(|socket, sender| {
            let mut batch = ReceiveBatch::new(Purpose::Quic);
            for packets in [QUIC_BATCHES + QUIC_SINGLES + 1, 2 * QUIC_SINGLES] {
                for _ in 0..packets {
                    sender.send(&[7; 100]).expect("sent");
                }
                let first = batch.next_offer;
                assert_eq!(receive(socket, &mut batch), (first, true));
                assert_eq!(receive(socket, &mut batch), (QUIC_SINGLES, true));
                let rest = packets - first - QUIC_SINGLES;
                if rest > 0 {
                    assert_eq!(receive(socket, &mut batch), (rest, false));
                }
            }
        });
    }

    #[test]
    fn a_call_takes_few_buffers_where_packets_are_large_or_few() {
        with_sockets(|socket, sender| {
            let mut batch = ReceiveBatch::new(Purpose::Quic);
            for _ in 0..=QUIC_BATCHES {
                sender.send(&vec![7; SINGLE_BYTES_MAX + 1]).expect("sent");
            }
            assert_eq!(receive(socket, &mut batch), (QUIC_BATCHES, true));
            assert_eq!(receive(socket, &mut batch), (1, false));
            for _ in 0..2 * QUIC_BATCHES {
                sender.send(&[7; 100]).expect("sent");
            }
            assert_eq!(receive(socket, &mut batch), (QUIC_BATCHES, true));
            assert_eq!(receive(socket, &mut batch), (QUIC_BATCHES, false));
            assert_eq!(batch.next_offer, QUIC_BATCHES, "there were few again");
        });
    }
}
