//! Visitors come and go: each must get the client and the lane that the rule gives it.

use std::collections::BTreeMap;
use std::rc::Rc;

use qmux_config::LoadBalancer;
use qmux_proto::Protocol;

use super::{CORES, Lane, World};
use crate::server::balance::Tried;
use crate::server::registry::{CLIENTS_TRIED_MAX, FlowTicket};
use crate::server::route::{self, Way};

const FLOWS_MAX: usize = 300;

pub(super) struct Flow {
    pub(super) lane: Rc<Lane>,
    pub(super) ticket: FlowTicket,
}

impl Flow {
    fn on(lane: &Rc<Lane>, ticket: FlowTicket) -> Flow {
        lane.flows.set(lane.flows.get() + 1);
        Flow {
            lane: Rc::clone(lane),
            ticket,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.lane.flows.set(self.lane.flows.get() - 1);
    }
}

impl World {
    pub(super) fn visitor(&mut self) {
        if self.flows.len() >= FLOWS_MAX {
            return;
        }
        let protocol = if self.random.chance(80) {
            Protocol::Tcp
        } else {
            Protocol::Udp
        };
        let mut tried = Tried::default();
        let mut core = self.random.below(CORES);
        // Refusals send it on, as often as is allowed.
        let refusals = self.random.below(CLIENTS_TRIED_MAX + 1);
        for _ in 0..=refusals {
            match self.place(protocol, &mut core, &mut tried) {
                Some(flow) => self.flows.push(flow),
                None => break,
            }
            if self.random.chance(70) {
                return;
            }
            self.flows.pop();
        }
    }

    fn place(&self, protocol: Protocol, core: &mut usize, tried: &mut Tried) -> Option<Flow> {
        loop {
            let before = self.flows_by_client();
            let earlier = *tried;
            let at = *core;
            let way = route::find(
                &self.pool,
                protocol,
                at,
                tried,
                |client| self.tables[at].borrow().pick(client),
                |lane| Some(Rc::clone(lane)),
            );
            let Some(way) = way else {
                assert!(
                    tried.is_full() || self.candidates(protocol, tried).is_empty(),
                    "nobody was found although somebody serves"
                );
                return None;
            };
            let (Way::Here(_, ticket) | Way::Elsewhere(_, ticket)) = &way;
            self.check_choice(protocol, ticket, &before, &earlier);
            match way {
                Way::Here(lane, ticket) => {
                    assert_eq!(lane.client, ticket.client().number);
                    self.check_lane(&lane, at);
                    return Some(Flow::on(&lane, ticket));
                }
                Way::Elsewhere(other, ticket) => {
                    *core = other;
                    let lane = self.tables[other].borrow().pick(ticket.client().number);
                    if let Some(lane) = lane {
                        self.check_lane(&lane, other);
                        return Some(Flow::on(&lane, ticket));
                    }
                }
            }
        }
    }

    fn flows_by_client(&self) -> BTreeMap<u64, usize> {
        let clients = self.pool.clients();
        clients
            .iter()
            .map(|entry| (entry.number, entry.flows()))
            .collect()
    }

    /// Clients among which the choice is, with their flows: of those with a lane that takes flows the ones that answer,
    /// if there are any, and for TCP of these the ones whose service is up, if there are any.
    fn candidates(&self, protocol: Protocol, tried: &Tried) -> BTreeMap<u64, usize> {
        let clients = self.pool.clients();
        let of = |client: u64| {
            self.lanes
                .iter()
                .filter(move |lane| lane.lane.client == client)
        };
        let rated: Vec<(bool, bool, u64, usize)> = clients
            .iter()
            .filter(|entry| of(entry.number).any(|lane| !lane.lane.drains.get()))
            .filter(|entry| !tried.contains(entry.number))
            .map(|entry| {
                let silent = of(entry.number).any(|lane| lane.lane.silent.get());
                let down = of(entry.number).any(|lane| !lane.service_up);
                let down = down && protocol == Protocol::Tcp;
                (silent, down, entry.number, entry.flows())
            })
            .collect();
        let best = rated
            .iter()
            .map(|(silent, down, ..)| (*silent, *down))
            .min();
        rated
            .into_iter()
            .filter(|(silent, down, ..)| Some((*silent, *down)) == best)
            .map(|(_, _, number, flows)| (number, flows))
            .collect()
    }

    /// The choice that was made last must be one of the right ones. Earlier ones of the same search found no lane.
    fn check_choice(
        &self,
        protocol: Protocol,
        ticket: &FlowTicket,
        before: &BTreeMap<u64, usize>,
        earlier: &Tried,
    ) {
        let client = ticket.client();
        assert!(!earlier.contains(client.number), "sent to a client again");
        let candidates = self.candidates(protocol, earlier);
        let usable = |number: &u64| {
            let mut lanes = self.lanes.iter().filter(|lane| lane.lane.client == *number);
            lanes.any(|lane| lane.lane.open.get() && !lane.lane.drains.get())
        };
        // A client of which no lane is open any more, unknown to the pool, may have been passed over.
        let all_usable = candidates.keys().all(usable);
        if !all_usable {
            return;
        }
        assert!(
            candidates.contains_key(&client.number),
            "a client was chosen whose service is down, or that takes no flows"
        );
        if self.balancer == LoadBalancer::LeastConnections {
            let least = candidates.keys().map(|number| before[number]).min();
            assert_eq!(before.get(&client.number).copied(), least, "not the least");
        }
    }

    fn check_lane(&self, lane: &Rc<Lane>, core: usize) {
        assert!(lane.open.get(), "a flow on a lane that has ended");
        assert!(!lane.drains.get(), "a flow on a lane that drains");
        let siblings = self.lanes.iter().filter(|other| {
            other.core == core
                && other.lane.client == lane.client
                && other.lane.open.get()
                && !other.lane.drains.get()
        });
        let best = siblings
            .map(|other| (other.lane.silent.get(), other.lane.flows.get()))
            .min();
        if self.balancer == LoadBalancer::LeastConnections {
            let chosen = (lane.silent.get(), lane.flows.get());
            assert_eq!(Some(chosen), best, "not the idlest lane");
        }
    }

    pub(super) fn end_a_flow(&mut self) {
        if !self.flows.is_empty() {
            let index = self.random.below(self.flows.len());
            self.flows.swap_remove(index);
        }
    }

    /// While nothing else happens, every client that serves gets its share.
    pub(super) fn settled_choices(&mut self) {
        let serving = self.candidates(Protocol::Tcp, &Tried::default());
        if serving.is_empty() {
            return;
        }
        let rounds = FLOWS_MAX * serving.len();
        let tickets: Vec<FlowTicket> = (0..rounds)
            .filter_map(|_| self.pool.pick(Protocol::Tcp, &Tried::default()))
            .collect();
        assert_eq!(tickets.len(), rounds, "somebody serves all the time");
        let mut shares: BTreeMap<u64, usize> = serving.keys().map(|number| (*number, 0)).collect();
        for ticket in &tickets {
            *shares.get_mut(&ticket.client().number).expect("it serves") += 1;
        }
        let totals: Vec<usize> = match self.balancer {
            LoadBalancer::RoundRobin => shares.values().copied().collect(),
            LoadBalancer::LeastConnections => shares
                .iter()
                .map(|(number, share)| share + serving[number])
                .collect(),
        };
        let (most, least) = (totals.iter().max(), totals.iter().min());
        assert!(
            most.zip(least)
                .is_some_and(|(most, least)| most - least <= 1),
            "{:?}: shares {shares:?} of clients that had {serving:?}",
            self.balancer
        );
        assert!(shares.values().all(|share| *share > 0), "one is starved");
    }
}
