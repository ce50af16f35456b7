//! UDP flows of a lane on the client: the service's answers, and sockets for its flows.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qmux_proto::FlowError;
use qmux_proto::datagram::Header;
use qmux_udp::BatchSocket;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::lookup_host;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::Shared;
use crate::clock::now_ms;
use crate::datagram::{DatagramWriter, NotSent};
use crate::endpoint;
use crate::lane::Lane;
use crate::transport::Settings;
use crate::udp_flow::{FindFlow, UdpFlow};

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

    async fn open(self: &Arc<Self>, id: u64) -> io::Result<Arc<UdpFlow>> {
        if self.flows().len() >= FLOWS_MAX {
            return Err(io::Error::other("the limit of flows is reached"));
        }
        let service = self.service_addr().await?;
        let socket = connected(service, &self.shared.settings)?;
        let flow = Arc::new(UdpFlow::new(id, socket, (service, None), Vec::new()));
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

impl FindFlow for Arc<UdpService> {
    /// One that introduces its flow opens it.
    async fn find_flow(&self, header: &Header<'_>) -> Option<Arc<UdpFlow>> {
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
}

/// A socket to the service. Call it on the runtime.
fn connected(service: SocketAddr, settings: &Settings) -> io::Result<Arc<BatchSocket>> {
    let domain = Domain::for_address(service);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    endpoint::set_buffers(&socket, settings);
    socket.connect(&service.into())?;
    BatchSocket::new(socket.into()).map(Arc::new)
}
