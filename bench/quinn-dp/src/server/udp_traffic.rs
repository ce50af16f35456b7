//! UDP visitors: packets from the traffic socket to lanes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use qmux_proto::FlowError;
use qmux_proto::control::Capabilities;
use qmux_udp::{BatchSocket, Packet};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::Listener;
use super::udp_flow::UdpFlowSender;
use super::visitor::next_flow_id;
use crate::clock::now_ms;
use crate::datagram::{DatagramWriter, NotSent};
use crate::udp_flow::UdpFlow;

/// UDP flows of one listener. Past it, new visitors are not served until others have expired.
const FLOWS_MAX: usize = 65_536;

/// The longest time between two sweeps for flows that have expired.
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
                entry.insert(open(packet, &self.listener)?);
                Ok(entry.into_mut())
            }
            Entry::Vacant(_) if is_full => Err(Dropped::TooManyFlows),
            Entry::Vacant(entry) => Ok(entry.insert(open(packet, &self.listener)?)),
        }
    }

    fn expire(&mut self, session_timeout: Duration) {
        self.by_visitor.retain(|_, sender| {
            let UdpFlowSender { flow, lane, .. } = sender;
            if !flow.has_ended() && flow.seen.age() >= session_timeout {
                flow.end();
                if lane.remove_udp_flow(flow.id).is_some() {
                    lane.lane.send_flow_closed(flow.id, FlowError::Expired);
                }
            }
            !flow.has_ended()
        });
    }
}

fn open(packet: Packet<'_>, listener: &Listener) -> Result<UdpFlowSender, Dropped> {
    let choice = listener.registry.choose(Capabilities::UDP);
    let (choice, socket) = choice.zip(listener.udp.clone()).ok_or(Dropped::NoClient)?;
    let (id, visitor) = (next_flow_id(), packet.source);
    let counted = vec![choice.client_flows.open(), choice.lane.lane.flows.open()];
    let way = (visitor, packet.local_ip);
    let flow = Arc::new(UdpFlow::new(id, socket, way, counted));
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
