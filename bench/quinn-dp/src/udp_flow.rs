//! A UDP flow, on either side: on the server one source address of one listener, on the client a
//! connected socket to the service.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use qmux_proto::Reassembler;
use qmux_proto::datagram::Header;
use qmux_udp::{BatchSocket, SendBatch};
use tokio::sync::Notify;

use crate::clock::{LastSeen, now_ms};
use crate::datagram::{self, UnknownFlows};
use crate::flows::OpenFlow;
use crate::lane::Lane;

/// What both directions of a flow know.
#[derive(Debug)]
pub(crate) struct UdpFlow {
    pub(crate) id: u64,
    /// The listener's, or the flow's own.
    pub(crate) socket: Arc<BatchSocket>,
    /// Whom packets go to: the visitor or the service.
    pub(crate) to: SocketAddr,
    /// The address that the visitor sent to: replies come from there.
    pub(crate) from: Option<IpAddr>,
    pub(crate) seen: LastSeen,
    /// Whether the peer has shown that it knows the flow.
    known: AtomicBool,
    ended: AtomicBool,
    /// Wakes the task that reads the flow's own socket when the flow ends.
    ending: Notify,
    _counted: Vec<OpenFlow>,
}

impl UdpFlow {
    pub(crate) fn new(
        id: u64,
        socket: Arc<BatchSocket>,
        (to, from): (SocketAddr, Option<IpAddr>),
        counted: Vec<OpenFlow>,
    ) -> Self {
        Self {
            id,
            socket,
            to,
            from,
            seen: LastSeen::now(),
            known: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            ending: Notify::new(),
            _counted: counted,
        }
    }

    /// The peer has answered: it knows the flow.
    fn set_known(&self) {
        // Reading is cheap where writing each time would fetch the cache line back and forth.
        if !self.is_known() {
            self.known.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// The flow is over: the visitor's next packet starts another one.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.ending.notify_one();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Waits until the flow has ended.
    pub(crate) async fn ended(&self) {
        self.ending.notified().await;
    }
}

/// Finds the flows of a lane.
pub(crate) trait FindFlow {
    /// The flow of a datagram.
    fn find_flow(&self, header: &Header<'_>) -> impl Future<Output = Option<Arc<UdpFlow>>> + Send;
}

/// Delivers a lane's datagrams to where their flows go, until the lane ends.
pub(crate) async fn deliver(lane: &Lane, flows: &impl FindFlow) {
    let mut reassembler = Reassembler::new(datagram::REASSEMBLY_LIMITS);
    let mut unknown = UnknownFlows::default();
    let mut sending = SendBatch::new();
    let mut datagrams = Vec::new();
    // The flow of the packet before: packets of one flow come in runs.
    let mut last: Option<Arc<UdpFlow>> = None;
    while datagram::receive(&lane.connection, &mut datagrams)
        .await
        .is_ok()
    {
        let (now, now_ms) = (Instant::now(), now_ms());
        for datagram in datagrams.drain(..) {
            let Ok((header, payload)) = Header::decode(&datagram) else {
                continue;
            };
            let id = header.flow_id();
            let goes_on = |flow: &Arc<UdpFlow>| flow.id == id && !flow.has_ended();
            if !last.as_ref().is_some_and(goes_on) {
                let next = flows.find_flow(&header).await;
                let socket = |flow: &Arc<UdpFlow>| Arc::as_ptr(&flow.socket);
                if next.as_ref().map(socket) != last.as_ref().map(socket) {
                    flush(last.as_deref(), &mut sending).await;
                }
                last = next;
            }
            let Some(flow) = &last else {
                unknown.report(lane, id);
                continue;
            };
            flow.set_known();
            flow.seen.set(now_ms);
            let packet = match header.fragment() {
                None => Some(payload),
                // What is not used is counted by the reassembler.
                Some((packet_id, index, count)) => reassembler
                    .push(now, id, packet_id, index, count, payload)
                    .unwrap_or(None),
            };
            if let Some(packet) = packet {
                let pushed = sending.push(&flow.socket, flow.to, flow.from, packet);
                refused(pushed.await);
            }
        }
        flush(last.as_deref(), &mut sending).await;
    }
}

/// Sends what waits for a flow's socket.
async fn flush(flow: Option<&UdpFlow>, sending: &mut SendBatch) {
    if let Some(flow) = flow {
        refused(sending.flush(&flow.socket).await);
    }
}

/// The receiver's network refuses packets, or refused earlier ones; UDP has no way to tell anybody.
fn refused(_sent: io::Result<()>) {}
