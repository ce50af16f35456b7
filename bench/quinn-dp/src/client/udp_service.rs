//! UDP flows of a lane on the client: datagrams to the service, and its answers back.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use qmux_proto::datagram::Header;
use qmux_proto::{FlowError, Reassembler};
use qmux_udp::SendBatch;
use tokio::net::lookup_host;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::Shared;
use super::udp_flow::UdpFlow;
use crate::clock::now_ms;
use crate::datagram::{self, DatagramWriter, NotSent, UnknownFlows};
use crate::lane::Lane;

/// UDP flows of one lane: each is a socket.
const FLOWS_MAX: usize = 65_536;

/// The UDP flows of one lane.
#[derive(Debug)]
pub(super) struct UdpService {
    lane: Arc<Lane>,
    shared: Arc<Shared>,
    flows: Mutex<HashMap<u64, Arc<UdpFlow>>>,
}

impl UdpService {
    pub(super) fn new(lane: Arc<Lane>, shared: Arc<Shared>) -> Self {
        Self {
            lane,
            shared,
            flows: Mutex::default(),
        }
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<u64, Arc<UdpFlow>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a flow; whether it was there.
    pub(super) fn end_flow(&self, flow_id: u64) -> bool {
        let flow = self.flows().remove(&flow_id);
        flow.inspect(|flow| flow.end()).is_some()
    }

    /// Ends every flow.
    pub(super) fn end_flows(&self) {
        for (_, flow) in self.flows().drain() {
            flow.end();
        }
    }

    /// Delivers the lane's datagrams to the service until the lane ends.
    pub(super) async fn deliver(self: Arc<Self>) {
        let mut reassembler = Reassembler::new(datagram::REASSEMBLY_LIMITS);
        let mut unknown = UnknownFlows::default();
        let mut sending = SendBatch::new();
        let mut datagrams = Vec::new();
        // The flow of the packet before: packets of one flow come in runs.
        let mut last: Option<Arc<UdpFlow>> = None;
        while datagram::receive(&self.lane.connection, &mut datagrams)
            .await
            .is_ok()
        {
            let (now, now_ms) = (Instant::now(), now_ms());
            for datagram in datagrams.drain(..) {
                let Ok((header, payload)) = Header::decode(&datagram) else {
                    continue;
                };
                let id = header.flow_id();
                if !last
                    .as_ref()
                    .is_some_and(|flow| flow.id == id && !flow.has_ended())
                {
                    // Each flow has a socket of its own.
                    flush(last.as_deref(), &mut sending).await;
                    last = self.find_or_open(&header).await;
                }
                let Some(flow) = &last else {
                    unknown.report(&self.lane, id);
                    continue;
                };
                flow.seen.set(now_ms);
                let packet = match header.fragment() {
                    None => Some(payload),
                    // What is not used is counted by the reassembler.
                    Some((packet_id, index, count)) => reassembler
                        .push(now, id, packet_id, index, count, payload)
                        .unwrap_or(None),
                };
                if let Some(packet) = packet {
                    let pushed = sending.push(&flow.socket, flow.service, None, packet);
                    // The service refuses packets, or refused earlier ones; UDP has no way to tell
                    // anybody.
                    let _refused = pushed.await;
                }
            }
            flush(last.as_deref(), &mut sending).await;
        }
    }

    /// The flow of a datagram; one that introduces its flow opens it.
    async fn find_or_open(self: &Arc<Self>, header: &Header<'_>) -> Option<Arc<UdpFlow>> {
        let id = header.flow_id();
        if let Some(flow) = self.flows().get(&id) {
            return Some(Arc::clone(flow));
        }
        let (visitor, _service) = header.introduction()?;
        match self.open(id).await {
            Ok(flow) => {
                debug!(flow = id, %visitor, "UDP flow opened");
                Some(flow)
            }
            Err(error) => {
                warn!(flow = id, %visitor, %error, "no socket for a UDP flow");
                None
            }
        }
    }

    async fn open(self: &Arc<Self>, id: u64) -> io::Result<Arc<UdpFlow>> {
        if self.flows().len() >= FLOWS_MAX {
            return Err(io::Error::other("the limit of flows is reached"));
        }
        let service = self.service_addr().await?;
        let flow = Arc::new(UdpFlow::open(id, service, &self.shared.settings)?);
        self.flows().insert(id, Arc::clone(&flow));
        tokio::spawn(Arc::clone(self).answer(Arc::clone(&flow)));
        Ok(flow)
    }

    /// The address of the service. An IP address is not looked up.
    async fn service_addr(&self) -> io::Result<SocketAddr> {
        let (host, port) = &self.shared.local;
        lookup_host((host.as_str(), *port))
            .await?
            .next()
            .ok_or_else(|| io::Error::other("the service's name has no address"))
    }

    /// Sends the service's packets to the server until the flow ends or expires.
    async fn answer(self: Arc<Self>, flow: Arc<UdpFlow>) {
        let mut writer = DatagramWriter::new(self.shared.udp.enable_fragmentation);
        let mut packet_id = 0;
        let session_timeout = self.shared.udp.session_timeout;
        let mut lane_closed = false;
        while !flow.has_ended() && !lane_closed {
            tokio::select! {
                ready = flow.socket.readable() => {
                    if ready.is_err() {
                        break;
                    }
                    flow.seen.set(now_ms());
                    // An error says that the service refused an earlier packet: it may take the
                    // next one.
                    let _refused = flow.socket.try_receive(|packet| {
                        let sent = writer.send(
                            &self.lane.connection,
                            flow.id,
                            None,
                            &mut packet_id,
                            packet.payload,
                        );
                        match sent {
                            Ok(()) => {}
                            Err(NotSent::LaneClosed) => lane_closed = true,
                            Err(NotSent::TooLarge) => {
                                debug!(bytes = packet.payload.len(), "a UDP packet is too large");
                            }
                        }
                    });
                }
                () = flow.ended() => break,
                () = sleep(session_timeout.saturating_sub(flow.seen.age())) => {
                    if flow.seen.age() >= session_timeout && self.end_flow(flow.id) {
                        self.lane.send_flow_closed(flow.id, FlowError::Expired);
                    }
                }
            }
        }
    }
}

/// Sends what waits for a flow.
async fn flush(flow: Option<&UdpFlow>, sending: &mut SendBatch) {
    if let Some(flow) = flow {
        // The service refuses packets, or refused earlier ones; UDP has no way to tell anybody.
        let _refused = sending.flush(&flow.socket).await;
    }
}
