//! The server role on one core: its share of every door, where clients come in, and every entrance, where visitors do.
//!
//! A listener of dp.toml is a door with one entrance. A [`pool`] has the clients of a service; cores share it. The flows
//! of visitors are in [`tcp`] and [`udp`].

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

use door::Door;
use entrance::Entrance;
use ids::{DoorId, EntranceId};
use mail::ServerMail;
pub(crate) use shared::{ListenerSockets, ServerContext, ServerShared};

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
        sockets: Vec<ListenerSockets>,
    ) -> Result<ServerCore, String> {
        let mut this = ServerCore {
            doors: HashMap::new(),
            entrances: HashMap::new(),
        };
        let server = shared.server().ok_or("no [server] section")?;
        let listeners = server.listeners();
        let with_pools = listeners.iter().zip(&shared.pools);
        for ((number, (listener, pool)), sockets) in (0..).zip(with_pools).zip(sockets) {
            let (door, entrance) = (DoorId(number), EntranceId(number));
            let takes_udp = sockets.udp.is_some();
            let opened = Door::open(door, context, shared, pool, sockets.quic, takes_udp)?;
            let (tcp, udp) = (sockets.tcp, sockets.udp);
            let entered = Entrance::open(entrance, &opened, listener, pool, tcp, udp)?;
            this.doors.insert(door, opened);
            this.entrances.insert(entrance, entered);
        }
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
                mut data,
                from,
                to_ip,
            } => {
                if let Some(door) = self.doors.get(&door) {
                    door.endpoint().inject(&mut data, from, to_ip);
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
