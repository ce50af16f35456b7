//! The clients of a listener and their lanes, and the choice among them.
//!
//! A visitor reads an immutable snapshot; registration and its end, which are rare, replace it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use qmux_config::LoadBalancer;
use qmux_proto::LaneError;
use qmux_proto::control::{Capabilities, INSTANCE_ID_BYTES, Register};
use tracing::info;

use super::lane::ServerLane;
use crate::flows::FlowCount;

/// A client and those of its lanes that take new flows.
#[derive(Clone, Debug)]
struct Client {
    client_id: String,
    instance_id: [u8; INSTANCE_ID_BYTES],
    capabilities: Capabilities,
    /// Flows of all its lanes, which outlives the snapshots.
    flows: Arc<FlowCount>,
    lanes: Vec<Arc<ServerLane>>,
}

/// The clients of one listener.
#[derive(Debug)]
pub(super) struct Registry {
    balancer: LoadBalancer,
    /// The index at which the next search starts, so that ties rotate.
    turn: AtomicUsize,
    clients: ArcSwap<Vec<Client>>,
    /// Every lane that has not ended, also those that take no new flows. Its lock orders the
    /// changes.
    lanes: Mutex<Vec<Arc<ServerLane>>>,
}

/// The client and lane that a flow goes to.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) lane: Arc<ServerLane>,
    pub(super) client_flows: Arc<FlowCount>,
}

impl Registry {
    pub(super) fn new(balancer: LoadBalancer) -> Self {
        Self {
            balancer,
            turn: AtomicUsize::new(0),
            clients: ArcSwap::default(),
            lanes: Mutex::default(),
        }
    }

    /// Takes a lane into its client's name. A new instance of a client takes the place of the old
    /// one, which may be dead without having said so; a new lane takes the place of the one with
    /// its index.
    pub(super) fn add(&self, lane: &Arc<ServerLane>, register: &Register) {
        let mut lanes = self.lanes();
        let mut clients = Vec::clone(&self.clients.load());
        let mut replaced = Vec::new();
        let known = clients
            .iter()
            .position(|client| client.client_id == register.client_id);
        let index = known.unwrap_or_else(|| {
            clients.push(Client {
                client_id: register.client_id.clone(),
                instance_id: register.instance_id,
                capabilities: register.capabilities,
                flows: Arc::default(),
                lanes: Vec::new(),
            });
            clients.len() - 1
        });
        let client = &mut clients[index];
        let same_instance = client.instance_id == register.instance_id;
        client.lanes.retain(|old| {
            let stays = same_instance && old.index() != lane.index();
            if !stays {
                replaced.push(Arc::clone(old));
            }
            stays
        });
        client.instance_id = register.instance_id;
        client.capabilities = register.capabilities;
        client.lanes.push(Arc::clone(lane));
        lanes.push(Arc::clone(lane));
        self.clients.store(Arc::new(clients));
        drop(lanes);
        for old in replaced {
            info!(
                client = register.client_id,
                lane = old.index(),
                "lane replaced by a newer one"
            );
            old.lane.close(LaneError::Replaced, "");
        }
    }

    /// Gives a lane no new flows.
    pub(super) fn retire(&self, lane: &Arc<ServerLane>) {
        let _order = self.lanes();
        self.retire_all(|other| Arc::ptr_eq(other, lane));
    }

    /// Forgets a lane that has ended.
    pub(super) fn remove(&self, lane: &Arc<ServerLane>) {
        let mut lanes = self.lanes();
        lanes.retain(|other| !Arc::ptr_eq(other, lane));
        self.retire_all(|other| Arc::ptr_eq(other, lane));
    }

    /// Tells every client that no new flows will come.
    pub(super) fn drain(&self, drain_timeout: Duration) {
        let lanes = self.lanes();
        self.retire_all(|_| true);
        for lane in lanes.iter() {
            lane.lane.send_go_away(drain_timeout);
        }
    }

    /// Closes every lane.
    pub(super) fn close(&self, error: LaneError) {
        for lane in self.lanes().iter() {
            lane.lane.close(error, "the server stops");
        }
    }

    /// The lane for a flow that needs `capability`; `None` if no client is there for it.
    pub(super) fn choose(&self, capability: Capabilities) -> Option<Choice> {
        let clients = self.clients.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let able = || {
            let (before, after) = clients.split_at(turn % clients.len().max(1));
            after
                .iter()
                .chain(before)
                .filter(|client| client.capabilities.contains(capability))
        };
        let client = match self.balancer {
            LoadBalancer::LeastConnections => able().min_by_key(|client| client.flows.get()),
            LoadBalancer::RoundRobin => able().next(),
        }?;
        let (before, after) = client.lanes.split_at(turn % client.lanes.len());
        let lane = after
            .iter()
            .chain(before)
            .min_by_key(|lane| lane.lane.flows.get())?;
        Some(Choice {
            lane: Arc::clone(lane),
            client_flows: Arc::clone(&client.flows),
        })
    }

    fn retire_all(&self, retired: impl Fn(&Arc<ServerLane>) -> bool) {
        let mut clients = Vec::clone(&self.clients.load());
        for client in &mut clients {
            client.lanes.retain(|lane| !retired(lane));
        }
        clients.retain(|client| !client.lanes.is_empty());
        self.clients.store(Arc::new(clients));
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ServerLane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
