//! The lanes of one door on one core that take new flows, by their client. One core owns this
//! table, which does no I/O.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use qmux_config::LoadBalancer;
use rustc_hash::FxBuildHasher;

use super::balance::choose;

/// A lane, as far as the choice among lanes depends on it.
pub(crate) trait CarriesFlows {
    /// Whether the lane has not begun to end.
    fn is_open(&self) -> bool;
    /// Whether the client leaves unanswered what was sent on the lane.
    fn is_silent(&self) -> bool;
    /// Number of flows that the lane carries now.
    fn flows(&self) -> usize;
}

/// Lanes by the number of their client.
#[derive(Debug)]
pub(crate) struct LaneTable<L> {
    // Clients' numbers are our own and count up, so a fast hash is safe.
    clients: HashMap<u64, Lanes<L>, FxBuildHasher>,
}

#[derive(Debug)]
struct Lanes<L> {
    lanes: Vec<Rc<L>>,
    turn: Cell<usize>,
}

impl<L: CarriesFlows> LaneTable<L> {
    pub(crate) fn new() -> LaneTable<L> {
        LaneTable {
            clients: HashMap::default(),
        }
    }

    /// Adds a lane, which takes new flows from now on.
    pub(crate) fn add(&mut self, client: u64, lane: Rc<L>) {
        self.clients
            .entry(client)
            .or_insert_with(|| Lanes {
                lanes: Vec::new(),
                turn: Cell::new(0),
            })
            .lanes
            .push(lane);
    }

    /// Removes a lane, which takes no more flows.
    pub(crate) fn remove(&mut self, client: u64, lane: &Rc<L>) {
        if let Some(of_client) = self.clients.get_mut(&client) {
            of_client.lanes.retain(|other| !Rc::ptr_eq(other, lane));
            if of_client.lanes.is_empty() {
                self.clients.remove(&client);
            }
        }
    }

    /// The lane of a client for its next flow on this core, chosen by the same rule as the client
    /// was. Every lane serves all of the client's services.
    pub(crate) fn pick(&self, client: u64, balancer: LoadBalancer) -> Option<Rc<L>> {
        let of_client = self.clients.get(&client)?;
        let turn = of_client.turn.get();
        of_client.turn.set(turn.wrapping_add(1));
        choose(of_client.lanes.iter(), turn, |lane| {
            let load = match balancer {
                LoadBalancer::RoundRobin => 0,
                LoadBalancer::LeastConnections => lane.flows(),
            };
            lane.is_open().then_some((lane.is_silent(), load))
        })
        .cloned()
    }

    /// Whether no client has a lane on this core that takes flows.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}
