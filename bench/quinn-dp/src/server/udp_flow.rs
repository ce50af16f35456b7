//! A UDP flow on the server: one source address of one listener.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lane::ServerLane;
use super::registry::Choice;
use crate::clock::LastSeen;
use crate::datagram::{DatagramWriter, NotSent};
use crate::flows::OpenFlow;

/// What both directions of a flow know. The task that reads the traffic socket and that of the lane
/// share it.
#[derive(Debug)]
pub(super) struct UdpFlow {
    id: u64,
    pub(super) visitor: SocketAddr,
    /// The address that the visitor sent to: replies come from there.
    pub(super) local_ip: Option<IpAddr>,
    pub(super) seen: LastSeen,
    /// Whether the client has shown that it knows the flow.
    known: AtomicBool,
    ended: AtomicBool,
    _counted: [OpenFlow; 2],
}

/// The reading task's part of a flow.
#[derive(Debug)]
pub(super) struct UdpFlowSender {
    pub(super) flow: Arc<UdpFlow>,
    pub(super) lane: Arc<ServerLane>,
    /// The id of the next packet that is cut.
    packet_id: u64,
}

impl UdpFlowSender {
    pub(super) fn new(flow: Arc<UdpFlow>, lane: Arc<ServerLane>) -> Self {
        Self {
            flow,
            lane,
            packet_id: 0,
        }
    }

    /// Sends a packet of the visitor; `now_ms` is when it came.
    pub(super) fn send(
        &mut self,
        writer: &mut DatagramWriter,
        payload: &[u8],
        now_ms: u64,
    ) -> Result<(), NotSent> {
        let Self {
            flow,
            lane,
            packet_id,
        } = self;
        flow.seen.set(now_ms);
        let introduction = (!flow.is_known()).then_some(flow.visitor);
        let connection = &lane.lane.connection;
        let sent = writer.send(connection, flow.id, introduction, packet_id, payload);
        if sent == Err(NotSent::LaneClosed) {
            // The visitor's next packet starts a flow on another lane.
            flow.end();
        }
        sent
    }
}

impl UdpFlow {
    pub(super) fn new(
        id: u64,
        visitor: SocketAddr,
        local_ip: Option<IpAddr>,
        choice: &Choice,
    ) -> Self {
        Self {
            id,
            visitor,
            local_ip,
            seen: LastSeen::now(),
            known: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            _counted: [choice.client_flows.open(), choice.lane.lane.flows.open()],
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The client has answered: it knows the flow.
    pub(super) fn set_known(&self) {
        // Reading is cheap where writing each time would fetch the cache line back and forth.
        if !self.is_known() {
            self.known.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// The flow is over: the visitor's next packet starts another one.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}
