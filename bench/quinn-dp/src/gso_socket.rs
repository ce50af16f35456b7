//! A QUIC socket whose segmented sends never exceed what the kernel takes.
//!
//! quinn fills up to ten packets into one send whatever their size. With packets of 16 KB that is
//! more than a UDP payload, the kernel refuses it, and quinn takes the refusal for that of an MTU
//! probe: every such batch would be lost without a trace. This socket cuts such a send into
//! several.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// The most bytes of one segmented send: 65,507, the largest UDP payload, less what makes four
/// packets of one size arrive as one GRO buffer (measured: 16,373 × 4 does, 16,374 × 4 falls
/// apart).
pub(crate) const SEND_BYTES_MAX: usize = 65_494;

/// quinn's own socket, with the limit.
pub(crate) struct GsoSocket(pub(crate) Arc<dyn AsyncUdpSocket>);

impl fmt::Debug for GsoSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsyncUdpSocket for GsoSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(packet_bytes) = transmit.segment_size else {
            return self.0.try_send(transmit);
        };
        if transmit.contents.len() <= SEND_BYTES_MAX {
            return self.0.try_send(transmit);
        }
        let piece_bytes = (SEND_BYTES_MAX / packet_bytes).max(1) * packet_bytes;
        for contents in transmit.contents.chunks(piece_bytes) {
            // Should the socket be full after some pieces, quinn offers all of them again: QUIC
            // drops duplicates.
            self.0.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: (contents.len() > packet_bytes).then_some(packet_bytes),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}
