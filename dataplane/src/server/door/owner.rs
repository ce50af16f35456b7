//! A door as the owner of an endpoint: it gives each lane that begins there its state, and sends
//! packets that belong to another core or process on their way.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use super::Door;
use super::lane::{ServerLane, ServerLaneEvents};
use crate::quic::endpoint::EndpointOwner;
use crate::quic::lane::Lane;
use crate::quic::over_tls::TlsConnection;
use crate::server::mail::ServerMail;
use crate::server::succession::{PassedOn, Predecessor};
use crate::server::udp::lane::LaneFlows;

/// The owner of one of a door's endpoints.
pub(super) struct Owner {
    pub(super) door: Rc<Door>,
    /// The index of the endpoint in the door.
    pub(super) address: usize,
}

impl EndpointOwner for Owner {
    fn lane_accepted(&self, lane: &Rc<Lane>) {
        let Owner { door, address } = self;
        let fragmentation = door.settings().config.udp.enable_fragmentation;
        let counters = &door.context.counters;
        // Every lane gets one, because a service that takes UDP may be added later.
        let udp = Some(LaneFlows::new(Rc::clone(lane), fragmentation, counters));
        // The endpoint has just made the lane by these.
        let (_, trusted) = door.shows.get();
        let of_door = Rc::downgrade(door);
        let state = ServerLane::new(Rc::clone(lane), of_door, *address, trusted, udp);
        lane.handle_events(Rc::new(ServerLaneEvents(state)));
    }

    fn hand_over(
        &self,
        core: usize,
        packet: &[u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) -> bool {
        let mail = ServerMail::Packet {
            door: self.door.id(),
            address: self.address,
            data: packet.to_vec(),
            from,
            to_ip,
            lost_before: 0,
        };
        self.door.context.post.send(core, mail).is_ok()
    }

    fn has_predecessor(&self) -> bool {
        let predecessor = self.door.shared.predecessor.get();
        predecessor.is_some_and(Predecessor::is_there)
    }

    fn pass_on(&self, packet: &[u8], from: SocketAddr, to_ip: Option<IpAddr>) -> Option<bool> {
        let door = &self.door;
        door.shared.predecessor.get()?.pass_on(&PassedOn {
            core: door.context.index,
            door: *door.of_all_cores.quic_addrs.get(self.address)?,
            from,
            to_ip,
            packet,
        })
    }

    fn hand_over_tls(&self, core: usize, connection: TlsConnection) -> bool {
        let mail = ServerMail::TlsConnection {
            door: self.door.id(),
            address: self.address,
            connection: Box::new(connection),
        };
        self.door.context.post.send(core, mail).is_ok()
    }
}
