//! The server role on one core: its share of every door, where clients come in, and every entrance, where visitors do.
//!
//! A door has some services, each of them an entrance for every port where its visitors come; a listener of dp.toml is a
//! door with one entrance. What cores share of the clients of a door and of each service is in [`pool`]. The flows of
//! visitors are in [`tcp`] and [`udp`].

pub(crate) mod access_log;
pub(crate) mod bounds;
mod door;
mod entrance;
pub(crate) mod ids;
pub(crate) mod mail;
pub(crate) mod pool;
mod shared;
mod tcp;
pub(crate) mod udp;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use access_log::AccessLog;
use door::Door;
use entrance::Entrance;
use entrance::first_client::wait_for_first_clients;
use ids::{DoorId, EntranceId};
use mail::ServerMail;
pub(crate) use shared::{DoorSockets, EntranceSockets, ServedService, ServerContext, ServerShared};

/// The server role on one core.
pub(crate) struct ServerCore {
    doors: HashMap<DoorId, Rc<Door>>,
    entrances: HashMap<EntranceId, Rc<Entrance>>,
}

impl ServerCore {
    /// Opens this core's doors and entrances.
    ///
    /// # Errors
    /// With a text for the log if sockets or TLS contexts cannot be set up on this core.
    pub(crate) fn start(
        context: &Rc<ServerContext>,
        shared: &Arc<ServerShared>,
        sockets: Vec<DoorSockets>,
    ) -> Result<ServerCore, String> {
        let mut this = ServerCore {
            doors: HashMap::new(),
            entrances: HashMap::new(),
        };
        // All cores count alike: what they name to each other has one number.
        let mut entrances = (0..).map(EntranceId);
        for ((number, of_door), sockets) in (0..).zip(&shared.doors).zip(sockets) {
            let id = DoorId(number);
            let door = Door::open(id, context, shared, of_door, sockets.quic)?;
            for (service, sockets) in of_door.services.iter().zip(sockets.services) {
                for (sockets, id) in sockets.into_iter().zip(entrances.by_ref()) {
                    let entrance = Entrance::open(id, &door, service, sockets)?;
                    this.entrances.insert(id, entrance);
                }
            }
            this.doors.insert(id, door);
        }
        let accepting = this.entrances.values().cloned().collect();
        crate::core::task::spawn_vital(wait_for_first_clients(accepting));
        let keeper = shared
            .ticket_keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            crate::core::task::spawn_vital(keeper.run(Arc::clone(&context.counters)));
        }
        Ok(this)
    }

    /// Takes what the same role of another core has sent. What is for a door or an entrance that is not here is dropped.
    pub(crate) fn mail(&self, mail: ServerMail) {
        match mail {
            ServerMail::Visitor {
                entrance,
                stream,
                visitor,
                ticket,
            } => {
                if let Some(entrance) = self.entrances.get(&entrance) {
                    entrance.visitor_from_other_core(stream, visitor, ticket);
                }
            }
            ServerMail::Datagram { entrance, packet } => {
                if let Some(entrance) = self.entrances.get(&entrance) {
                    entrance.datagram_from_other_core(packet);
                }
            }
            ServerMail::Packet {
                door,
                address,
                mut data,
                from,
                to_ip,
            } => {
                let door = self.doors.get(&door);
                if let Some(endpoint) = door.and_then(|door| door.endpoint(address)) {
                    endpoint.inject(&mut data, from, to_ip);
                }
            }
            ServerMail::Evict { door, client } => {
                if let Some(door) = self.doors.get(&door) {
                    door.evict(client);
                }
            }
            ServerMail::ClientMayBeGone { door, client } => {
                if let Some(door) = self.doors.get(&door) {
                    door.alarm(client);
                }
            }
        }
    }

    /// Takes no new visitor and tells the clients so.
    pub(crate) fn drain(&self, timeout: Duration) {
        for entrance in self.entrances.values() {
            entrance.drain(timeout);
        }
        for door in self.doors.values() {
            door.drain(timeout);
        }
    }

    /// Whether the clients have all bytes of the flows that have ended.
    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        // All are asked: the time that each may take runs from the first question.
        let waits = |door: &&Rc<Door>| !door.has_delivered(now);
        self.doors.values().filter(waits).count() == 0
    }

    /// Closes all lanes. They are told in the next flush.
    pub(crate) fn close(&self) {
        for entrance in self.entrances.values() {
            entrance.close();
        }
        for door in self.doors.values() {
            door.close();
        }
    }
}
