//! The clients of one door, who they are, and what each of them serves.
//!
//! It changes under a mutex that no visitor takes, when a lane is registered or has ended.
//!
//! Clients that have an entry among those who may serve are known by it: nobody else can have their
//! name, and several instances of one serve side by side. Others name themselves, and two programs
//! may come under one name. Either the first is dead and the second its successor, who must not
//! wait until the server has noticed; or both live, by a mistake, and must not drive each other out
//! for ever. So the newer instance takes over at once, and an instance that was driven out stays
//! out while its successor is there. What it carries may go on as long as it answers.
//!
//! An instance that comes to offer other services than before is another client for a while: its
//! new lanes carry the flows of those, and its old ones end.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use qmux_proto::control::{INSTANCE_ID_BYTES, Protocols};

use super::client::Client;
use super::membership::{LaneMembership, Served};
use super::service::ClientPool;

/// Instances that are remembered to have been replaced, 16 KiB in all. More live programs than this
/// under ids of others would drive each other out by turns.
const REPLACED_MAX: usize = 1_024;

/// Instances of one client with an entry at the same time: enough for whoever scales a service out,
/// and one certificate that is misused fills no memory.
pub(crate) const INSTANCES_MAX: usize = 64;

/// Drawn by a client at its start.
pub(crate) type InstanceId = [u8; INSTANCE_ID_BYTES];

/// A service that a client offers and may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offered {
    /// The door's number of it.
    pub(crate) service: usize,
    /// What the client's end of it speaks.
    pub(crate) protocols: Protocols,
}

/// Who wants to register a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applicant<'a> {
    /// The name that it has by its entry, or wants to be known by.
    pub(crate) name: &'a str,
    /// Whether it has that name by its entry.
    pub(crate) has_entry: bool,
    /// Which run of the client it is.
    pub(crate) instance_id: InstanceId,
    /// Where the lane comes from.
    pub(crate) address: Option<SocketAddr>,
    /// What it is to serve, each service once.
    pub(crate) services: &'a [Offered],
}

/// A lane was registered.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The lane's claim on its client.
    pub(crate) membership: LaneMembership,
    /// Another instance had the name until now.
    pub(crate) replaced: Vec<Replaced>,
    /// Other instances of the same client, if this one is new: one of them may be its predecessor,
    /// and dead.
    pub(crate) beside: Vec<Arc<Client>>,
}

/// An instance that lost its name to a newer one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// Its number.
    pub(crate) client: u64,
    /// Where it came from.
    pub(crate) address: Option<SocketAddr>,
    /// It was about to stop, and knows that it gets no new flow.
    pub(crate) drains: bool,
    /// It has left everything unanswered for a while.
    pub(crate) silent: bool,
}

/// Why a lane was not registered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotJoined {
    /// The name belongs to a newer instance, which lives.
    Duplicate {
        /// Where that one came from.
        address: Option<SocketAddr>,
        /// It is the first time that this is found: to be logged.
        first: bool,
    },
    /// The client has [`INSTANCES_MAX`] instances already.
    TooManyInstances,
}

/// A client with what it serves.
#[derive(Debug)]
struct Registered {
    client: Arc<Client>,
    offered: Box<[Offered]>,
    served: Arc<[Served]>,
}

/// What only those need who change the list.
#[derive(Debug, Default)]
struct State {
    clients: Vec<Registered>,
    /// The next client's number.
    next_number: u64,
    /// The last lane's serial number.
    last_serial: u64,
    /// Instances that lost their name to a newer one, the latest last.
    replaced: VecDeque<InstanceId>,
}

impl State {
    fn replaced(&mut self, instance: InstanceId) {
        if self.replaced.len() == REPLACED_MAX {
            self.replaced.pop_front();
        }
        self.replaced.push_back(instance);
    }

    /// Those that the applicant shares its name with.
    fn namesakes(&self, applicant: &Applicant<'_>) -> impl Iterator<Item = &Registered> {
        let (name, has_entry) = (applicant.name, applicant.has_entry);
        let clients = self.clients.iter();
        clients.filter(move |it| it.client.is_called(name, has_entry))
    }

    /// Why the applicant cannot be one more client.
    fn refusal(&self, applicant: &Applicant<'_>) -> Option<NotJoined> {
        let others = || {
            let all = self.namesakes(applicant).map(|it| &it.client);
            all.filter(|it| it.instance_id != applicant.instance_id)
        };
        if applicant.has_entry {
            // One instance may be here several times while what it offers changes, and those that
            // do not answer are about to go.
            let living = others().filter(|it| !it.is_silent());
            let instances: HashSet<_> = living.map(|it| it.instance_id).collect();
            return (instances.len() >= INSTANCES_MAX).then_some(NotJoined::TooManyInstances);
        }
        let successor = others().find(|it| it.takes_flows())?;
        let was_replaced = self.replaced.contains(&applicant.instance_id);
        was_replaced.then(|| NotJoined::Duplicate {
            address: successor.address(),
            first: !successor.contested.swap(true, Ordering::Relaxed),
        })
    }
}

/// The clients of one door.
#[derive(Debug)]
pub(crate) struct Registry {
    epoch: Instant,
    cores: usize,
    /// One for each of the door's services.
    pools: Vec<Arc<ClientPool>>,
    state: Mutex<State>,
}

impl Registry {
    /// Of a door of a process of `cores` cores, with a pool for each of its services.
    pub(crate) fn new(pools: Vec<Arc<ClientPool>>, cores: usize) -> Registry {
        Registry {
            epoch: Instant::now(),
            cores,
            pools,
            state: Mutex::default(),
        }
    }

    /// Registers a lane on `core`.
    ///
    /// # Errors
    /// If the applicant was replaced by a newer instance that takes flows, or there are too many.
    pub(crate) fn join(
        self: &Arc<Self>,
        applicant: &Applicant<'_>,
        core: usize,
        now: Instant,
    ) -> Result<Joined, NotJoined> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.namesakes(applicant).find(|it| {
            it.client.instance_id == applicant.instance_id && *it.offered == *applicant.services
        });
        let known = known.map(|it| (Arc::clone(&it.client), Arc::clone(&it.served)));
        let (mut replaced, mut beside) = (Vec::new(), Vec::new());
        let (client, served) = match known {
            Some(known) => known,
            None => {
                if let Some(refusal) = state.refusal(applicant) {
                    return Err(refusal);
                }
                if applicant.has_entry {
                    let others = state.namesakes(applicant);
                    beside = others.map(|it| Arc::clone(&it.client)).collect();
                } else {
                    replaced = self.replace(&mut state, applicant);
                }
                self.enter(&mut state, applicant, now)
            }
        };
        state.last_serial += 1;
        let serial = state.last_serial;
        Ok(Joined {
            membership: LaneMembership::begin(self, client, served, core, serial),
            replaced,
            beside,
        })
    }

    /// Takes the name from other instances that have it.
    fn replace(&self, state: &mut State, applicant: &Applicant<'_>) -> Vec<Replaced> {
        let instance_id = applicant.instance_id;
        state.replaced.retain(|instance| *instance != instance_id);
        let (old, stay) = std::mem::take(&mut state.clients)
            .into_iter()
            .partition::<Vec<_>, _>(|it| {
                it.client.is_called(applicant.name, false) && it.client.instance_id != instance_id
            });
        state.clients = stay;
        old.iter()
            .map(|it| {
                let old = &it.client;
                old.replaced.store(true, Ordering::Relaxed);
                state.replaced(old.instance_id);
                for served in it.served.iter() {
                    self.pools[served.service].leave(old);
                }
                Replaced {
                    client: old.number,
                    address: old.address(),
                    drains: !old.takes_flows(),
                    silent: old.is_silent(),
                }
            })
            .collect()
    }

    /// One more client.
    fn enter(
        &self,
        state: &mut State,
        applicant: &Applicant<'_>,
        now: Instant,
    ) -> (Arc<Client>, Arc<[Served]>) {
        let number = state.next_number;
        state.next_number += 1;
        let client = Arc::new(Client::new(number, applicant, self.cores, self.epoch));
        let served = applicant.services.iter().map(|offered| Served {
            service: offered.service,
            member: self.pools[offered.service].join(&client, offered.protocols, now),
        });
        let served: Arc<[Served]> = served.collect();
        state.clients.push(Registered {
            client: Arc::clone(&client),
            offered: applicant.services.into(),
            served: Arc::clone(&served),
        });
        (client, served)
    }

    /// A lane of the client is gone.
    pub(super) fn leave(&self, client: &Arc<Client>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if client.registered.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let at = |it: &Registered| Arc::ptr_eq(&it.client, client);
        // One that was replaced has left already.
        if let Some(at) = state.clients.iter().position(at) {
            let gone = state.clients.remove(at);
            for served in gone.served.iter() {
                self.pools[served.service].leave(client);
            }
        }
    }

    /// Registered lanes of an instance of a client, on all cores.
    pub(crate) fn lanes_of(&self, applicant: &Applicant<'_>) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = state.namesakes(applicant).map(|it| &it.client);
        lanes
            .filter(|it| it.instance_id == applicant.instance_id)
            .map(|it| it.registered())
            .sum()
    }

    /// The clients now.
    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = state.clients.iter();
        clients.map(|it| Arc::clone(&it.client)).collect()
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "registry_services_tests.rs"]
mod tests_of_services;
