//! The lanes of one door on one core that take new flows, by their client. One core owns it; it does no I/O.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use qmux_config::LoadBalancer;
use rustc_hash::FxBuildHasher;

use super::balance::choose;

/// What the choice of a lane depends on.
pub(crate) trait CarriesFlows {
    /// False once it has begun to end.
    fn is_open(&self) -> bool;
    /// True while its client leaves unanswered what was sent on it.
    fn is_silent(&self) -> bool;
    /// Flows that it carries now.
    fn flows(&self) -> usize;
}

/// Lanes by the number of their client.
#[derive(Debug)]
pub(crate) struct LaneTable<L> {
    // Numbers are counted up by ourselves: a fast hash is safe.
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

    /// The lane takes new flows from now on.
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

    /// The lane takes no more.
    pub(crate) fn remove(&mut self, client: u64, lane: &Rc<L>) {
        if let Some(of_client) = self.clients.get_mut(&client) {
            of_client.lanes.retain(|other| !Rc::ptr_eq(other, lane));
            if of_client.lanes.is_empty() {
                self.clients.remove(&client);
            }
        }
    }

    /// The client's lane for its next flow here, chosen by the same rule as the client was: the lanes serve
    /// all of the client's services.
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

    /// True if no client has a lane here that takes flows.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}
