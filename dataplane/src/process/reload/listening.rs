//! The cores' sockets for TCP visitors once more: those that close are closed to new ones together,
//! because the cores share ports, and who is kept away from one must not come to another that is
//! about to close.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::server::ids::EntranceId;
use crate::server::shared::plan::{DoorSockets, Plan};
use crate::sys::syn_filter;

type Sockets = HashMap<EntranceId, Vec<TcpListener>>;

/// The sockets by their entrances.
#[derive(Debug)]
pub(crate) struct Listening(Mutex<State>);

#[derive(Debug)]
enum State {
    Open(Sockets),
    Closed,
}

impl Listening {
    /// None yet.
    pub(crate) fn new() -> Listening {
        Listening(Mutex::new(State::Open(HashMap::new())))
    }

    /// Takes in the sockets that a plan opens, and keeps new visitors from those that it closes.
    /// False if the process is about to end: then nothing may be opened any more.
    ///
    /// # Errors
    /// If a socket cannot be duplicated; nothing has changed then.
    pub(crate) fn open(&self, plan: &Plan, sockets: &[Vec<DoorSockets>]) -> io::Result<bool> {
        let mut opened = Sockets::new();
        for of_core in sockets {
            for (door, sockets) in plan.doors.iter().zip(of_core) {
                for (service, sockets) in door.services.iter().zip(&sockets.services) {
                    for (entrance, sockets) in service.opened.iter().zip(sockets) {
                        if let Some(tcp) = &sockets.tcp {
                            let of_entrance = opened.entry(entrance.id).or_default();
                            of_entrance.push(tcp.try_clone()?);
                        }
                    }
                }
            }
        }
        let mut state = self.lock();
        let State::Open(all) = &mut *state else {
            return Ok(false);
        };
        for id in plan.closes_tcp() {
            all.remove(&id)
                .into_iter()
                .flatten()
                .for_each(|it| keep_away(&it));
        }
        all.extend(opened);
        Ok(true)
    }

    /// No new TCP connection begins at any core's sockets from now on, and none is opened any more.
    /// Those that have begun are for the cores to take.
    pub(crate) fn close(&self) {
        if let State::Open(all) = std::mem::replace(&mut *self.lock(), State::Closed) {
            all.into_values().flatten().for_each(|it| keep_away(&it));
        }
    }

    /// None is opened any more; those that there are stay as they are, for a successor has them.
    pub(crate) fn give_up(&self) {
        *self.lock() = State::Closed;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep_away(listener: &TcpListener) {
    if let Err(error) = syn_filter::attach(listener) {
        tracing::warn!(%error, "new visitors cannot be kept away; those who come in the last moment are reset");
    }
}
