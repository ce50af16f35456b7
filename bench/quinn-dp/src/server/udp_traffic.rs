//! UDP visitors: packets from the traffic socket to lanes, and back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_proto::control::Capabilities;
use qmux_proto::datagram::Header;
use qmux_proto::{FlowError, Reassembler};
use qmux_udp::{BatchSocket, Packet, SendBatch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::Listener;
use super::lane::ServerLane;
use super::registry::Registry;
use super::udp_flow::{UdpFlow, UdpFlowSender};
use super::visitor::next_flow_id;
use crate::clock::now_ms;
use crate::datagram::{self, DatagramWriter, NotSent, UnknownFlows};

/// UDP flows of one listener. Past it, new visitors are not served until others have expired.
const FLOWS_MAX: usize = 65_536;

/// How often flows are looked through for those that have expired, at most.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The visitors of one listener.
struct Visitors {
    flows: Flows,
    writer: DatagramWriter,
    drops: Drops,
}

/// The flows of those visitors.
struct Flows {
    listener: Arc<Listener>,
    by_visitor: HashMap<SocketAddr, UdpFlowSender>,
}

/// Why a visitor's packet was dropped.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    NoClient,
    TooManyFlows,
    NotSent(NotSent),
}

/// Packets that were dropped, by reason.
#[derive(Debug, Default)]
struct Drops {
    no_client: u64,
    too_many_flows: u64,
    too_large: u64,
    lane_closed: u64,
}

/// Carries visitors' packets to lanes for as long as it runs.
pub(super) async fn carry(socket: Arc<BatchSocket>, listener: Arc<Listener>) -> io::Result<()> {
    let udp = &listener.shared.udp;
    let mut visitors = Visitors {
        flows: Flows {
            listener: Arc::clone(&listener),
            by_visitor: HashMap::new(),
        },
        writer: DatagramWriter::new(udp.enable_fragmentation),
        drops: Drops::default(),
    };
    let session_timeout = udp.session_timeout;
    let mut sweep = interval(session_timeout.div_f32(4.0).min(SWEEP_INTERVAL_MAX));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ready = socket.readable() => {
                ready?;
                let now_ms = now_ms();
                let received = socket.try_receive(|packet| visitors.take(packet, now_ms));
                // Errors of an unconnected socket are answers to earlier sends, and not for this
                // task to act on.
                if let Err(error) = received && error.kind() != io::ErrorKind::WouldBlock {
                    debug!(%error, "the UDP traffic socket reports");
                }
            }
            _ = sweep.tick() => visitors.sweep(session_timeout),
        }
    }
}

impl Visitors {
    fn take(&mut self, packet: Packet<'_>, now_ms: u64) {
        let sent = self.flows.find_or_open(packet).and_then(|sender| {
            sender
                .send(&mut self.writer, packet.payload, now_ms)
                .map_err(Dropped::NotSent)
        });
        if let Err(dropped) = sent {
            self.drops.count(dropped);
        }
    }

    /// Ends the flows that carried nothing for the session timeout, and reports drops.
    fn sweep(&mut self, session_timeout: Duration) {
        self.flows.expire(session_timeout);
        self.drops.report();
    }
}

impl Flows {
    fn find_or_open(&mut self, packet: Packet<'_>) -> Result<&mut UdpFlowSender, Dropped> {
        let is_full = self.by_visitor.len() >= FLOWS_MAX;
        match self.by_visitor.entry(packet.source) {
            Entry::Occupied(entry) if !entry.get().flow.has_ended() => Ok(entry.into_mut()),
            Entry::Occupied(mut entry) => {
                entry.insert(open(packet, &self.listener.registry)?);
                Ok(entry.into_mut())
            }
            Entry::Vacant(_) if is_full => Err(Dropped::TooManyFlows),
            Entry::Vacant(entry) => Ok(entry.insert(open(packet, &self.listener.registry)?)),
        }
    }

    fn expire(&mut self, session_timeout: Duration) {
        self.by_visitor.retain(|_, sender| {
            let UdpFlowSender { flow, lane, .. } = sender;
            if !flow.has_ended() && flow.seen.age() >= session_timeout {
                flow.end();
                if lane.remove_udp_flow(flow.id()).is_some() {
                    lane.lane.send_flow_closed(flow.id(), FlowError::Expired);
                }
            }
            !flow.has_ended()
        });
    }
}

fn open(packet: Packet<'_>, registry: &Registry) -> Result<UdpFlowSender, Dropped> {
    let choice = registry
        .choose(Capabilities::UDP)
        .ok_or(Dropped::NoClient)?;
    let (id, visitor) = (next_flow_id(), packet.source);
    let flow = Arc::new(UdpFlow::new(id, visitor, packet.local_ip, &choice));
    choice.lane.add_udp_flow(&flow);
    debug!(flow = id, %visitor, "UDP flow opened");
    Ok(UdpFlowSender::new(flow, choice.lane))
}

impl Drops {
    fn count(&mut self, dropped: Dropped) {
        let counter = match dropped {
            Dropped::NoClient => &mut self.no_client,
            Dropped::TooManyFlows => &mut self.too_many_flows,
            Dropped::NotSent(NotSent::TooLarge) => &mut self.too_large,
            Dropped::NotSent(NotSent::LaneClosed) => &mut self.lane_closed,
        };
        *counter += 1;
    }

    fn report(&mut self) {
        let drops = std::mem::take(self);
        if drops.no_client + drops.too_many_flows + drops.too_large + drops.lane_closed > 0 {
            warn!(?drops, "UDP packets of visitors dropped");
        }
    }
}

/// Delivers a lane's datagrams to visitors until the lane ends.
pub(super) async fn deliver(lane: Arc<ServerLane>, socket: Arc<BatchSocket>) {
    let mut reassembler = Reassembler::new(datagram::REASSEMBLY_LIMITS);
    let mut unknown = UnknownFlows::default();
    let mut sending = SendBatch::new();
    let mut datagrams = Vec::new();
    // The flow of the packet before: packets of one flow come in runs.
    let mut last: Option<Arc<UdpFlow>> = None;
    while datagram::receive(&lane.lane.connection, &mut datagrams)
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
                .is_some_and(|flow| flow.id() == id && !flow.has_ended())
            {
                last = lane.udp_flow(id);
            }
            let Some(flow) = &last else {
                unknown.report(&lane.lane, id);
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
                let pushed = sending.push(&socket, flow.visitor, flow.local_ip, packet);
                // The visitor's network refuses packets; UDP has no way to tell anybody.
                let _refused = pushed.await;
            }
        }
        // As above.
        let _refused = sending.flush(&socket).await;
    }
}
