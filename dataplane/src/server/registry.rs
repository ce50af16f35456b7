//! The clients of one listener, and which of them gets the next visitor.
//!
//! All cores share it. Visitors read an immutable snapshot of the list and per-client atomics, without a lock; the list
//! changes only when a client joins or leaves, under a mutex that no visitor takes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use crossbeam::utils::CachePadded;
use qmux_config::LoadBalancer;

/// One client: an instance of a program that registered under a client id.
#[derive(Debug)]
pub(crate) struct ClientEntry {
    /// Tells clients of this process apart, also successive instances of one client id.
    pub(crate) number: u64,
    /// The id it registered with.
    pub(crate) client_id: String,
    /// Drawn at the client's start.
    pub(crate) instance_id: [u8; 16],
    /// Flows that it carries now, over all cores.
    flows: CachePadded<AtomicUsize>,
    /// Lanes that take new flows, per core.
    lanes: Box<[CachePadded<AtomicUsize>]>,
    /// The same, in all.
    lanes_total: AtomicUsize,
    /// Lanes registered, in all; the client leaves the list with its last one.
    registered: AtomicUsize,
    /// A newer instance has taken its id.
    replaced: AtomicBool,
}

impl ClientEntry {
    fn new(number: u64, client_id: String, instance_id: [u8; 16], cores: usize) -> ClientEntry {
        ClientEntry {
            number,
            client_id,
            instance_id,
            flows: CachePadded::default(),
            lanes: (0..cores).map(|_| CachePadded::default()).collect(),
            lanes_total: AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
            replaced: AtomicBool::new(false),
        }
    }

    /// Lanes on `core` that take new flows.
    pub(crate) fn lanes_on(&self, core: usize) -> usize {
        self.lanes
            .get(core)
            .map_or(0, |lanes| lanes.load(Ordering::Relaxed))
    }

    /// The first core from `start` on (counted around) with a lane that takes new flows.
    pub(crate) fn core_with_lane(&self, start: usize) -> Option<usize> {
        let cores = self.lanes.len();
        (0..cores)
            .map(|step| (start + step) % cores)
            .find(|core| self.lanes_on(*core) > 0)
    }

    /// Flows that it carries now.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    fn usable(&self) -> bool {
        self.lanes_total.load(Ordering::Relaxed) > 0 && !self.replaced.load(Ordering::Relaxed)
    }
}

/// A flow's claim on its client: counts it until dropped, on whichever core that happens.
#[derive(Debug)]
pub(crate) struct FlowTicket(Arc<ClientEntry>);

impl FlowTicket {
    fn new(entry: Arc<ClientEntry>) -> FlowTicket {
        entry.flows.fetch_add(1, Ordering::Relaxed);
        FlowTicket(entry)
    }

    /// The client that was chosen.
    pub(crate) fn client(&self) -> &ClientEntry {
        &self.0
    }
}

impl Drop for FlowTicket {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A registered lane's claim on its client.
#[derive(Debug)]
pub(crate) struct LaneMembership {
    pool: Arc<ClientPool>,
    entry: Arc<ClientEntry>,
    core: usize,
    takes_flows: std::cell::Cell<bool>,
}

impl LaneMembership {
    /// The client.
    pub(crate) fn client(&self) -> &ClientEntry {
        &self.entry
    }

    /// The lane takes no new flow from now on (it drains or is unhealthy).
    pub(crate) fn take_no_more(&self) {
        if self.takes_flows.replace(false) {
            self.entry.lanes_total.fetch_sub(1, Ordering::Relaxed);
            self.entry.lanes[self.core].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for LaneMembership {
    fn drop(&mut self) {
        self.take_no_more();
        self.pool.leave(&self.entry);
    }
}

/// The clients of one listener.
#[derive(Debug)]
pub(crate) struct ClientPool {
    balancer: LoadBalancer,
    cores: usize,
    clients: ArcSwap<Vec<Arc<ClientEntry>>>,
    /// Guards changes of the list; holds the next client's number.
    change: Mutex<u64>,
    /// Where the search for the next client begins: rotates ties, and is the whole of round-robin.
    rotation: CachePadded<AtomicUsize>,
}

impl ClientPool {
    /// An empty pool for a process of `cores` cores.
    pub(crate) fn new(balancer: LoadBalancer, cores: usize) -> ClientPool {
        ClientPool {
            balancer,
            cores,
            clients: ArcSwap::default(),
            change: Mutex::new(0),
            rotation: CachePadded::default(),
        }
    }

    /// A lane of `client_id` has registered on `core`. If another instance held the id, it is replaced, and its number
    /// returned: its lanes are to be closed.
    pub(crate) fn join(
        self: &Arc<Self>,
        client_id: &str,
        instance_id: [u8; 16],
        core: usize,
    ) -> (LaneMembership, Option<u64>) {
        let mut next_number = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.clients.load_full();
        let known = current.iter().find(|entry| entry.client_id == client_id);
        let mut replaced = None;
        let entry = match known {
            Some(entry) if entry.instance_id == instance_id => Arc::clone(entry),
            _ => {
                let entry = Arc::new(ClientEntry::new(
                    *next_number,
                    client_id.into(),
                    instance_id,
                    self.cores,
                ));
                *next_number += 1;
                let mut list: Vec<_> = current
                    .iter()
                    .filter(|other| other.client_id != client_id)
                    .cloned()
                    .collect();
                list.push(Arc::clone(&entry));
                self.clients.store(Arc::new(list));
                if let Some(old) = known {
                    old.replaced.store(true, Ordering::Relaxed);
                    replaced = Some(old.number);
                }
                entry
            }
        };
        entry.registered.fetch_add(1, Ordering::Relaxed);
        entry.lanes[core].fetch_add(1, Ordering::Relaxed);
        entry.lanes_total.fetch_add(1, Ordering::Relaxed);
        let membership = LaneMembership {
            pool: Arc::clone(self),
            entry,
            core,
            takes_flows: std::cell::Cell::new(true),
        };
        (membership, replaced)
    }

    fn leave(&self, entry: &Arc<ClientEntry>) {
        let _guard = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if entry.registered.fetch_sub(1, Ordering::Relaxed) == 1 {
            let list: Vec<_> = self
                .clients
                .load()
                .iter()
                .filter(|other| !Arc::ptr_eq(other, entry))
                .cloned()
                .collect();
            self.clients.store(Arc::new(list));
        }
    }

    /// Picks the client for a new flow and counts the flow, or `None` if no client can take one.
    pub(crate) fn pick(&self) -> Option<FlowTicket> {
        let clients = self.clients.load();
        let count = clients.len();
        let start = self
            .rotation
            .fetch_add(1, Ordering::Relaxed)
            .checked_rem(count)?;
        let mut usable = clients[start..]
            .iter()
            .chain(&clients[..start])
            .filter(|entry| entry.usable());
        let chosen = match self.balancer {
            LoadBalancer::RoundRobin => usable.next(),
            LoadBalancer::LeastConnections => usable.min_by_key(|entry| entry.flows()),
        };
        chosen.map(|entry| FlowTicket::new(Arc::clone(entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(balancer: LoadBalancer) -> Arc<ClientPool> {
        Arc::new(ClientPool::new(balancer, 2))
    }

    fn counts(tickets: &[FlowTicket]) -> std::collections::BTreeMap<&str, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for ticket in tickets {
            *counts
                .entry(ticket.client().client_id.as_str())
                .or_default() += 1;
        }
        counts
    }

    #[test]
    fn nobody_to_pick_in_an_empty_pool() {
        assert!(pool(LoadBalancer::LeastConnections).pick().is_none());
    }

    #[test]
    fn both_balancers_spread_equal_clients_evenly() {
        for balancer in [LoadBalancer::LeastConnections, LoadBalancer::RoundRobin] {
            let pool = pool(balancer);
            let _lanes: Vec<_> = ["a", "b", "c"]
                .iter()
                .map(|id| pool.join(id, [0; 16], 0).0)
                .collect();
            let tickets: Vec<_> = (0..30).filter_map(|_| pool.pick()).collect();
            assert_eq!(
                counts(&tickets).into_values().collect::<Vec<_>>(),
                [10, 10, 10]
            );
        }
    }

    #[test]
    fn least_connections_fills_up_the_idle_client() {
        let pool = pool(LoadBalancer::LeastConnections);
        let _a = pool.join("a", [0; 16], 0).0;
        let tickets: Vec<_> = (0..5).filter_map(|_| pool.pick()).collect();
        let _b = pool.join("b", [0; 16], 1).0;
        let more: Vec<_> = (0..5).filter_map(|_| pool.pick()).collect();
        assert_eq!(counts(&more)["b"], 5);
        drop((tickets, more));
        assert!(pool.clients.load().iter().all(|entry| entry.flows() == 0));
    }

    #[test]
    fn a_client_leaves_with_its_last_lane() {
        let pool = pool(LoadBalancer::RoundRobin);
        let first = pool.join("a", [0; 16], 0).0;
        let second = pool.join("a", [0; 16], 1).0;
        assert_eq!(first.client().number, second.client().number);
        assert_eq!(
            (first.client().lanes_on(0), first.client().lanes_on(1)),
            (1, 1)
        );
        drop(first);
        assert_eq!(
            pool.pick().map(|ticket| ticket.client().core_with_lane(0)),
            Some(Some(1))
        );
        drop(second);
        assert_eq!(pool.clients.load().len(), 0);
        assert!(pool.pick().is_none());
    }

    #[test]
    fn a_lane_that_drains_takes_no_new_flow_but_keeps_its_client() {
        let pool = pool(LoadBalancer::RoundRobin);
        let lane = pool.join("a", [0; 16], 0).0;
        lane.take_no_more();
        lane.take_no_more();
        assert!(pool.pick().is_none());
        assert_eq!(pool.clients.load().len(), 1);
    }

    #[test]
    fn a_new_instance_replaces_the_old_one_at_once() {
        let pool = pool(LoadBalancer::LeastConnections);
        let (old, none) = pool.join("a", [1; 16], 0);
        assert_eq!(none, None);
        let (new, replaced) = pool.join("a", [2; 16], 0);
        assert_eq!(replaced, Some(old.client().number));
        let ticket = pool.pick().expect("the new one serves");
        assert_eq!(ticket.client().number, new.client().number);
        drop(old);
        assert_eq!(pool.clients.load().len(), 1);
    }
}
