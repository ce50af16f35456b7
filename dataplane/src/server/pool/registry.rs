//! The registry of one door: its clients, who they are, and which services each of them serves.
//!
//! It changes when a lane registers or ends, under a mutex that no visitor takes.
//!
//! **Clients with an entry** in dp.toml are known by it. Nobody else can have their name, and
//! several instances of one serve side by side. **Other clients** name themselves, so two programs
//! may come under one name. Either the first is dead and the second is its successor, which must
//! not wait until the server has noticed; or both live, by a mistake, and must not drive each other
//! out for ever. So the newer instance takes over at once, and an instance that was driven out
//! stays out while its successor is there. The flows of a replaced instance may go on as long as it
//! answers.
//!
//! An instance that changes the services that it offers is another client for a while: its new
//! lanes carry the flows of the new services, and its old lanes end.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use qmux_config::{Admission, Secret};
use qmux_proto::control::{INSTANCE_ID_BYTES, Protocols, ServiceOffer};

use super::client::Client;
use super::membership::{LaneMembership, Served, Serves};
use super::service::ClientPool;

/// Replaced instances that are remembered: 16 KiB in all. If more live programs than this come
/// under ids of others, they drive each other out by turns.
const REPLACED_MAX: usize = 1_024;

/// Instances that one client with an entry may have at a time: enough for whoever scales a service
/// out, and few enough that a misused certificate fills no memory.
pub(crate) const INSTANCES_MAX: usize = 64;

/// The id of a client's instance, which it draws at its start.
pub(crate) type InstanceId = [u8; INSTANCE_ID_BYTES];

/// A service that a client offers and may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offered {
    /// The service's number at the door.
    pub(crate) service: usize,
    /// The protocols that the client's service speaks.
    pub(crate) protocols: Protocols,
}

/// A client that wants to register a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applicant<'a> {
    /// The name of the client's entry, or the one that it wants to be known by.
    pub(crate) name: &'a str,
    /// Whether the name comes from an entry.
    pub(crate) has_entry: bool,
    /// The id of the client's instance.
    pub(crate) instance_id: InstanceId,
    /// The address that the lane comes from.
    pub(crate) address: Option<SocketAddr>,
    /// The services that the client is to serve, each once.
    pub(crate) services: &'a [Offered],
    /// The grounds for that, in case the configuration changes.
    pub(crate) claim: Option<&'a Arc<Claim>>,
    /// The number of the configuration by which the client was judged.
    pub(crate) generation: u64,
}

/// The grounds on which a client serves its services. They are judged again when the configuration
/// changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The identity that the client has proved.
    pub(crate) admission: Admission,
    /// The token by which it has proved it, if it has no entry.
    pub(crate) token: Option<Secret>,
    /// The services that the client offers.
    pub(crate) offers: Vec<ServiceOffer>,
}

/// The services of a door after a change of the configuration.
#[derive(Debug)]
pub(crate) struct Changed {
    /// The number of the configuration.
    pub(crate) generation: u64,
    /// The pools of all services, by the services' numbers.
    pub(crate) pools: HashMap<usize, Arc<ClientPool>>,
}

/// The result of a lane's registration.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The lane's membership in its client.
    pub(crate) membership: LaneMembership,
    /// Instances that had the name until now.
    pub(crate) replaced: Vec<Replaced>,
    /// Other instances of the same client, if this one is new. One of them may be its predecessor,
    /// and dead.
    pub(crate) beside: Vec<Arc<Client>>,
}

/// An instance that has lost its name to a newer one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// The number of its client.
    pub(crate) client: u64,
    /// The address that it came from.
    pub(crate) address: Option<SocketAddr>,
    /// Whether it was about to stop, and so expects no new flow.
    pub(crate) drains: bool,
    /// Whether it has left everything unanswered for a while.
    pub(crate) silent: bool,
}

/// Why a lane was not registered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotJoined {
    /// The name belongs to a newer instance, which is alive.
    Duplicate {
        /// The address that the newer instance came from.
        address: Option<SocketAddr>,
        /// Whether this is found for the first time, and should be logged.
        first: bool,
    },
    /// The client has [`INSTANCES_MAX`] instances already.
    TooManyInstances,
    /// The configuration by which the client was judged is not in force any more.
    Outdated,
}

/// A client and the services that it serves.
#[derive(Debug)]
struct Registered {
    client: Arc<Client>,
    claim: Option<Arc<Claim>>,
    offered: Box<[Offered]>,
    serves: Arc<Serves>,
}

impl Registered {
    /// Changes the services of the client. Those that stay as they were keep their flows and their
    /// health.
    fn serve(
        &mut self,
        offered: Vec<Offered>,
        pools: &HashMap<usize, Arc<ClientPool>>,
        now: Instant,
    ) {
        let before = self.serves.load_full();
        let (mut kept, mut added) = (Vec::new(), Vec::new());
        for offer in &offered {
            let stays = self.offered.contains(offer);
            let served = before
                .iter()
                .find(|it| stays && it.service == offer.service);
            match served {
                Some(served) => kept.push(served.clone()),
                None => added.push(*offer),
            }
        }
        for gone in before.iter() {
            if !kept.iter().any(|it| it.service == gone.service) {
                gone.pool.leave(&self.client);
            }
        }
        // A client that was replaced is in no pool, and joins none.
        if !self.client.is_replaced() {
            let added = added.into_iter();
            kept.extend(added.filter_map(|offer| serve(pools, &self.client, offer, now)));
        }
        self.serves.store(Arc::new(kept));
        self.offered = offered.into();
    }
}

/// Adds a service to a client, if the service exists.
fn serve(
    pools: &HashMap<usize, Arc<ClientPool>>,
    client: &Arc<Client>,
    offered: Offered,
    now: Instant,
) -> Option<Served> {
    let pool = pools.get(&offered.service)?;
    Some(Served {
        service: offered.service,
        pool: Arc::clone(pool),
        member: pool.join(client, offered.protocols, now),
    })
}

/// The part of the registry that is needed only to change the list of clients.
#[derive(Debug, Default)]
struct State {
    clients: Vec<Registered>,
    /// The number for the next client.
    next_number: u64,
    /// The serial number of the last lane.
    last_serial: u64,
    /// Instances that have lost their name to a newer one, the latest last.
    replaced: VecDeque<InstanceId>,
    /// The pool of each service of the door, by the service's number.
    pools: HashMap<usize, Arc<ClientPool>>,
    /// The number of the configuration.
    generation: u64,
}

impl State {
    fn replaced(&mut self, instance: InstanceId) {
        if self.replaced.len() == REPLACED_MAX {
            self.replaced.pop_front();
        }
        self.replaced.push_back(instance);
    }

    /// The clients that share their name with the applicant.
    fn namesakes(&self, applicant: &Applicant<'_>) -> impl Iterator<Item = &Registered> {
        let (name, has_entry) = (applicant.name, applicant.has_entry);
        let clients = self.clients.iter();
        clients.filter(move |it| it.client.is_called(name, has_entry))
    }

    /// The reason for which the applicant cannot become one more client, if there is one.
    fn refusal(&self, applicant: &Applicant<'_>) -> Option<NotJoined> {
        let others = || {
            let all = self.namesakes(applicant).map(|it| &it.client);
            all.filter(|it| it.instance_id != applicant.instance_id)
        };
        if applicant.has_entry {
            // One instance may be here several times while its offer changes. Instances that do not
            // answer are about to go, and are not counted.
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
    state: Mutex<State>,
}

impl Registry {
    /// The registry of a door without services, in a process with `cores` cores.
    pub(crate) fn new(cores: usize) -> Registry {
        Registry {
            epoch: Instant::now(),
            cores,
            state: Mutex::default(),
        }
    }

    /// The registry of a door whose services have these pools, by their numbers.
    #[cfg(test)]
    pub(crate) fn of_pools(pools: &[Arc<ClientPool>], cores: usize) -> Registry {
        let registry = Registry::new(cores);
        let pools = pools.iter().cloned().enumerate().collect();
        let _nobody = registry.change(
            Changed {
                generation: 0,
                pools,
            },
            |_| None,
        );
        registry
    }

    /// Registers a lane on `core`.
    ///
    /// # Errors
    /// If a newer instance that takes flows has replaced the applicant, if there are too
    /// many instances, or if the applicant must be judged again.
    pub(crate) fn join(
        self: &Arc<Self>,
        applicant: &Applicant<'_>,
        core: usize,
        now: Instant,
    ) -> Result<Joined, NotJoined> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if applicant.generation != state.generation {
            return Err(NotJoined::Outdated);
        }
        let known = state.namesakes(applicant).find(|it| {
            it.client.instance_id == applicant.instance_id && *it.offered == *applicant.services
        });
        let known = known.map(|it| (Arc::clone(&it.client), Arc::clone(&it.serves)));
        let (mut replaced, mut beside) = (Vec::new(), Vec::new());
        let (client, serves) = match known {
            Some(known) => known,
            None => {
                if let Some(refusal) = state.refusal(applicant) {
                    return Err(refusal);
                }
                if applicant.has_entry {
                    let others = state.namesakes(applicant);
                    beside = others.map(|it| Arc::clone(&it.client)).collect();
                } else {
                    replaced = replace(&mut state, applicant);
                }
                self.enter(&mut state, applicant, now)
            }
        };
        state.last_serial += 1;
        let serial = state.last_serial;
        Ok(Joined {
            membership: LaneMembership::begin(self, client, serves, core, serial),
            replaced,
            beside,
        })
    }

    /// Adds a client.
    fn enter(
        &self,
        state: &mut State,
        applicant: &Applicant<'_>,
        now: Instant,
    ) -> (Arc<Client>, Arc<Serves>) {
        let number = state.next_number;
        state.next_number += 1;
        let client = Arc::new(Client::new(number, applicant, self.cores, self.epoch));
        let served = applicant.services.iter();
        let served = served.filter_map(|offered| serve(&state.pools, &client, *offered, now));
        let serves = Arc::new(Serves::from_pointee(served.collect()));
        state.clients.push(Registered {
            client: Arc::clone(&client),
            claim: applicant.claim.cloned(),
            offered: applicant.services.into(),
            serves: Arc::clone(&serves),
        });
        (client, serves)
    }

    /// Takes up another configuration: `judge` returns the services of a client from now on, or
    /// `None` to leave it those of its services that still exist. Returns the numbers of clients
    /// whose services, or their terms, have changed.
    pub(crate) fn change(
        &self,
        changed: Changed,
        judge: impl Fn(&Claim) -> Option<Vec<Offered>>,
    ) -> Vec<u64> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.generation = changed.generation;
        state.pools = changed.pools;
        let State { clients, pools, .. } = &mut *state;
        let mut numbers = Vec::new();
        for registered in clients {
            let judged = registered.claim.as_deref().and_then(&judge);
            let is_there = |it: &&Offered| pools.contains_key(&it.service);
            let left = || {
                registered
                    .offered
                    .iter()
                    .filter(is_there)
                    .copied()
                    .collect()
            };
            let offered: Vec<Offered> = judged.unwrap_or_else(left);
            // A client that registered while the services were being changed may lack some.
            let serves = registered.serves.load().len();
            if *registered.offered != *offered || serves != offered.len() {
                registered.serve(offered, pools, now);
                numbers.push(registered.client.number);
            }
        }
        numbers
    }

    /// Removes a lane of the client.
    pub(super) fn leave(&self, client: &Arc<Client>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if client.registered.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let at = |it: &Registered| Arc::ptr_eq(&it.client, client);
        // A client that was replaced has left already.
        if let Some(at) = state.clients.iter().position(at) {
            let gone = state.clients.remove(at);
            for served in gone.serves.load().iter() {
                served.pool.leave(client);
            }
        }
    }

    /// Number of registered lanes of an instance of a client, on all cores.
    pub(crate) fn lanes_of(&self, applicant: &Applicant<'_>) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = state.namesakes(applicant).map(|it| &it.client);
        lanes
            .filter(|it| it.instance_id == applicant.instance_id)
            .map(|it| it.registered())
            .sum()
    }

    /// The clients at this moment.
    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let clients = state.clients.iter();
        clients.map(|it| Arc::clone(&it.client)).collect()
    }
}

/// Takes the name from other instances that have it.
fn replace(state: &mut State, applicant: &Applicant<'_>) -> Vec<Replaced> {
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
            for served in it.serves.load().iter() {
                served.pool.leave(old);
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

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "registry_services_tests.rs"]
mod tests_of_services;
