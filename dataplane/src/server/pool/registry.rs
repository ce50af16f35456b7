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
    /// By what it came to that, in case the configuration changes.
    pub(crate) claim: Option<&'a Arc<Claim>>,
    /// The configuration by which that was judged.
    pub(crate) generation: u64,
}

/// By what a client has come to what it serves: to be judged again when the configuration changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Who it has proved to be.
    pub(crate) admission: Admission,
    /// By this token, if it has no entry.
    pub(crate) token: Option<Secret>,
    /// What it offers.
    pub(crate) offers: Vec<ServiceOffer>,
}

/// What a door's services are after a change of the configuration.
#[derive(Debug)]
pub(crate) struct Changed {
    /// Counts configurations.
    pub(crate) generation: u64,
    /// The pools of all services, by their numbers.
    pub(crate) pools: HashMap<usize, Arc<ClientPool>>,
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
    /// The configuration by which it was judged is not that of now any more.
    Outdated,
}

/// A client with what it serves.
#[derive(Debug)]
struct Registered {
    client: Arc<Client>,
    claim: Option<Arc<Claim>>,
    offered: Box<[Offered]>,
    serves: Arc<Serves>,
}

impl Registered {
    /// It serves these from now on. What stays as it was keeps its flows, health and blame.
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
        // One that was replaced is in no pool, and comes to none.
        if !self.client.is_replaced() {
            let added = added.into_iter();
            kept.extend(added.filter_map(|offer| serve(pools, &self.client, offer, now)));
        }
        self.serves.store(Arc::new(kept));
        self.offered = offered.into();
    }
}

/// Has a client serve one more service, if that is there.
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
    /// One for each of the door's services, by its number.
    pools: HashMap<usize, Arc<ClientPool>>,
    /// Counts configurations.
    generation: u64,
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
    state: Mutex<State>,
}

impl Registry {
    /// Of a door of a process of `cores` cores, without services.
    pub(crate) fn new(cores: usize) -> Registry {
        Registry {
            epoch: Instant::now(),
            cores,
            state: Mutex::default(),
        }
    }

    /// A door whose services have these pools, by their numbers.
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
    /// If the applicant was replaced by a newer instance that takes flows, or there are too many, or
    /// it must be judged anew.
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

    /// One more client.
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

    /// The configuration has changed: `judge` says what a client serves from now on; `None` leaves
    /// it with what it has of the services that there still are. Returns the numbers of those that
    /// serve something else than before, or on other terms.
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
            // One that registered while the services were being changed may lack some.
            let serves = registered.serves.load().len();
            if *registered.offered != *offered || serves != offered.len() {
                registered.serve(offered, pools, now);
                numbers.push(registered.client.number);
            }
        }
        numbers
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
            for served in gone.serves.load().iter() {
                served.pool.leave(client);
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
