//! The part of a UDP flow that belongs to the task that reads the visitors' socket.

use std::sync::Arc;

use super::lane::ServerLane;
use crate::datagram::{DatagramWriter, NotSent};
use crate::udp_flow::UdpFlow;

/// Sends a visitor's packets on a lane.
#[derive(Debug)]
pub(super) struct UdpFlowSender {
    pub(super) flow: Arc<UdpFlow>,
    pub(super) lane: Arc<ServerLane>,
    /// The id of the next packet that is cut into fragments.
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

    /// Sends a packet of the visitor; `now_ms` is the time at which it came.
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
        let introduction = (!flow.is_known()).then_some(flow.to);
        let connection = &lane.lane.connection;
        let sent = writer.send(connection, flow.id, introduction, packet_id, payload);
        if sent == Err(NotSent::LaneClosed) {
            // The visitor's next packet starts a flow on another lane.
            flow.end();
        }
        sent
    }
}
