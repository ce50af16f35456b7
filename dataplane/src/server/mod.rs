//! The server role on one core: its share of every door, where clients connect, and of every
//! entrance, where visitors do.
//!
//! A door has some services, and each service has an entrance for every port to which its visitors
//! connect. A listener of dp.toml is a door with one entrance. What cores share of the clients of a
//! door and of each service is in [`pool`]. The flows of visitors are in [`tcp`] and [`udp`].

pub(crate) mod access_log;
pub(crate) mod bounds;
mod door;
mod entrance;
pub(crate) mod ids;
pub(crate) mod mail;
pub(crate) mod pool;
pub(crate) mod shared;
pub(crate) mod succession;
mod tcp;
pub(crate) mod udp;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::tcp::stop_listening;
pub(crate) use access_log::AccessLog;
use door::Door;
use entrance::Entrance;
use entrance::first_client::wait_for_first_clients;
use ids::{DoorId, EntranceId};
use mail::{ServerContext, ServerMail};
use shared::plan::{ClosedEntrance, CoreChanges, OpenedEntrance};
pub(crate) use shared::{ServedService, ServerShared};
use succession::Lent;

/// The server role on one core.
pub(crate) struct ServerCore {
    context: Rc<ServerContext>,
    shared: Arc<ServerShared>,
    doors: RefCell<HashMap<DoorId, Rc<Door>>>,
    /// The entrances on this core, with those that drain until they are closed.
    entrances: RefCell<HashMap<EntranceId, Rc<Entrance>>>,
}

impl ServerCore {
    /// Opens this core's doors and entrances.
    ///
    /// # Errors
    /// With a text for the log if sockets or TLS contexts cannot be set up on this core.
    pub(crate) fn start(
        context: &Rc<ServerContext>,
        shared: &Arc<ServerShared>,
        opened: CoreChanges,
    ) -> Result<Rc<ServerCore>, String> {
        let this = Rc::new(ServerCore {
            context: Rc::clone(context),
            shared: Arc::clone(shared),
            doors: RefCell::default(),
            entrances: RefCell::default(),
        });
        // Another process may be listening at these addresses as well until this one has begun.
        let (entrances, problems) = this.open(opened, |_| ());
        if let Some(why) = problems.into_iter().next() {
            return Err(why);
        }
        for entrance in entrances {
            this.entrances.borrow_mut().insert(entrance.id(), entrance);
        }
        let accepting = this.entrances.borrow().values().cloned().collect();
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

    /// Opens new doors and entrances, and returns the problems of those that cannot be opened on
    /// this core; their sockets for TCP visitors are given to `unserved`. The entrances do not
    /// accept yet.
    fn open(
        &self,
        changes: CoreChanges,
        unserved: fn(&TcpListener),
    ) -> (Vec<Rc<Entrance>>, Vec<String>) {
        let mut problems = Vec::new();
        for opened in changes.doors_opened {
            let id = opened.door.id;
            let sockets = (opened.sockets, opened.tls_sockets);
            match Door::open(&self.context, &self.shared, &opened.door, sockets) {
                Ok(door) => {
                    self.doors.borrow_mut().insert(id, door);
                }
                Err(why) => problems.push(format!("{:?}: {why}", opened.door.quic_addrs)),
            }
        }
        let mut entrances = Vec::new();
        for opened in changes.opened {
            let address = opened.entrance.traffic_addr;
            match self.open_entrance(opened, unserved) {
                Ok(entrance) => entrances.extend(entrance),
                Err(why) => problems.push(format!("{address}: {why}")),
            }
        }
        (entrances, problems)
    }

    /// Opens an entrance. `None` if its door could not be opened, which has been reported.
    fn open_entrance(
        &self,
        opened: OpenedEntrance,
        unserved: fn(&TcpListener),
    ) -> Result<Option<Rc<Entrance>>, String> {
        let OpenedEntrance {
            door,
            service,
            entrance,
            sockets,
        } = opened;
        // `main` holds the sockets for TCP visitors as well, so dropping one does not close it. A
        // socket that nobody accepts from must not go on listening.
        let again = match sockets.tcp.as_ref().map(TcpListener::try_clone).transpose() {
            Ok(again) => again,
            Err(error) => {
                sockets.tcp.iter().for_each(unserved);
                return Err(error.to_string());
            }
        };
        let Some(door) = self.doors.borrow().get(&door).cloned() else {
            again.iter().for_each(unserved);
            return Ok(None);
        };
        let opened = Entrance::open(entrance, &door, &service, sockets);
        if opened.is_err() {
            again.iter().for_each(unserved);
        }
        opened.map(Some)
    }

    /// Takes up another configuration.
    fn change(self: &Rc<Self>, mut changes: CoreChanges) {
        let done = changes.done.take();
        if self.context.draining.get() {
            // The process ends anyway. The sockets that were to be opened are closed with the
            // message.
            drop(done);
            return;
        }
        let timeout = changes.drain_timeout;
        for closed in &changes.closed {
            self.close_entrance(*closed, timeout);
        }
        for door in &changes.doors_closed {
            self.close_door(*door, timeout);
        }
        for door in self.doors.borrow().values() {
            door.settings_have_changed();
        }
        for (door, client) in changes.told.iter() {
            if let Some(door) = self.doors.borrow().get(door) {
                door.tell_services(*client);
            }
        }
        let (opened, problems) = self.open(changes, |socket| stop_listening(socket));
        for entrance in opened {
            entrance.begin_to_accept();
            self.entrances.borrow_mut().insert(entrance.id(), entrance);
        }
        for why in &problems {
            self.context.counters.internal_errors.increment();
            tracing::error!(core = self.context.index, why, "not all was opened here");
        }
        let result = match problems.is_empty() {
            true => Ok(()),
            false => Err(problems.join("; ")),
        };
        if let Some(done) = done {
            // There may be nobody left who waits for the result.
            let _told = done.send(result);
        }
    }

    /// Closes an entrance, or one half of it, to new visitors; flows may finish.
    fn close_entrance(self: &Rc<Self>, closed: ClosedEntrance, timeout: Duration) {
        let id = closed.entrance.id;
        let Some(entrance) = self.entrances.borrow().get(&id).cloned() else {
            return;
        };
        entrance.leave(&closed, timeout);
        let core = Rc::downgrade(self);
        crate::core::task::spawn(async move {
            crate::core::time::sleep(timeout).await;
            entrance.end_what_was_left(&closed.entrance);
            if let Some(core) = core.upgrade()
                && entrance.is_over()
            {
                core.entrances.borrow_mut().remove(&id);
            }
        });
    }

    /// Closes a door to new clients. Flows may finish, and then its lanes end.
    fn close_door(self: &Rc<Self>, id: DoorId, timeout: Duration) {
        let Some(door) = self.doors.borrow().get(&id).cloned() else {
            return;
        };
        door.leave(timeout);
        let core = Rc::downgrade(self);
        crate::core::task::spawn(async move {
            crate::core::time::sleep(timeout).await;
            door.close();
            if let Some(core) = core.upgrade() {
                core.doors.borrow_mut().remove(&id);
            }
        });
    }

    fn entrance(&self, id: EntranceId) -> Option<Rc<Entrance>> {
        self.entrances.borrow().get(&id).cloned()
    }

    fn door(&self, id: DoorId) -> Option<Rc<Door>> {
        self.doors.borrow().get(&id).cloned()
    }

    /// Handles a message from the server role on another core. A message for a door or an entrance
    /// that is not here is dropped.
    pub(crate) fn mail(self: &Rc<Self>, mail: ServerMail) {
        match mail {
            ServerMail::Visitor {
                entrance,
                stream,
                visitor,
                ticket,
            } => {
                if let Some(entrance) = self.entrance(entrance) {
                    entrance.visitor_from_other_core(stream, visitor, ticket);
                }
            }
            ServerMail::Datagram { entrance, packet } => {
                if let Some(entrance) = self.entrance(entrance) {
                    entrance.datagram_from_other_core(packet);
                }
            }
            ServerMail::Packet {
                door,
                address,
                mut data,
                from,
                to_ip,
                lost_before,
            } => {
                let counters = &self.context.counters;
                counters.quic_packets_passed_on_dropped.add(lost_before);
                let door = self.door(door);
                if let Some(endpoint) = door.as_ref().and_then(|door| door.endpoint(address)) {
                    endpoint.inject(&mut data, from, to_ip);
                }
            }
            ServerMail::TlsConnection {
                door,
                address,
                connection,
            } => {
                if let Some(door) = self.door(door) {
                    door.tls_from_other_core(address, *connection);
                }
            }
            ServerMail::Evict { door, client } => {
                if let Some(door) = self.door(door) {
                    door.evict(client);
                }
            }
            ServerMail::ClientMayBeGone { door, client } => {
                if let Some(door) = self.door(door) {
                    door.alarm(client);
                }
            }
            ServerMail::Change(changes) => self.change(*changes),
            ServerMail::Lend(to) => {
                // The successor may have gone.
                let _told = to.send(self.lend());
            }
            ServerMail::HandedOver(done) => {
                self.handed_over();
                let _told = done.send(());
            }
        }
    }

    /// Descriptors of all sockets, for a successor. It binds sockets itself that cannot be lent.
    fn lend(&self) -> Vec<Lent> {
        let doors = self.doors.borrow();
        let entrances = self.entrances.borrow();
        let of_doors = doors.values().flat_map(|door| door.lend());
        let of_entrances = entrances.values().flat_map(|entrance| entrance.lend());
        of_doors.chain(of_entrances).collect()
    }

    /// The successor has taken the sockets: this core stops reading them, and keeps them open.
    fn handed_over(&self) {
        for door in self.doors.borrow().values() {
            door.handed_over();
        }
        for entrance in self.entrances.borrow().values() {
            entrance.handed_over();
        }
    }

    /// Takes no new visitors, and tells the clients so.
    pub(crate) fn drain(&self, timeout: Duration) {
        for entrance in self.entrances.borrow().values() {
            entrance.drain(timeout);
        }
        for door in self.doors.borrow().values() {
            door.drain(timeout);
        }
    }

    /// Whether the clients have received all bytes of the flows that have ended.
    pub(crate) fn has_delivered(&self, now: Instant) -> bool {
        // All doors are asked, because the time that each may take runs from the first question.
        let waits = |door: &&Rc<Door>| !door.has_delivered(now);
        self.doors.borrow().values().filter(waits).count() == 0
    }

    /// Closes all lanes. Their clients are told in the next flush.
    pub(crate) fn close(&self) {
        for entrance in self.entrances.borrow().values() {
            entrance.close();
        }
        for door in self.doors.borrow().values() {
            door.close();
        }
    }
}

#[cfg(test)]
#[path = "opening_tests.rs"]
mod tests;
