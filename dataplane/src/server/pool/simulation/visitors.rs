//! Visitors come and go: each must get the client and the lane that the rule gives it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_config::LoadBalancer;
use qmux_proto::Protocol;

use super::{CORES, Lane, Registered, World};
use crate::server::pool::balance::CLIENTS_TRIED_MAX;
use crate::server::pool::balance::Tried;
use crate::server::pool::route::{self, Route};
use crate::server::pool::service::FlowTicket;

const FLOWS_MAX: usize = 100;

/// Visitors of a time in which nothing else happens: as many as make up for the flows that the
/// others have.
const SETTLED_ROUNDS: usize = FLOWS_MAX * super::CLIENT_IDS;

pub(crate) struct Flow {
    pub(crate) lane: Rc<Lane>,
    pub(crate) ticket: FlowTicket,
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
    pub(crate) fn visitor(&mut self) {
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
        self.visitors += 1;
        let mut places = 0;
        while let Some(flow) = self.place(protocol, &mut core, &mut tried) {
            places += 1;
            assert!(places <= CLIENTS_TRIED_MAX, "a visitor goes round");
            let now = self.some_now();
            let client = flow.ticket.client().number;
            if flow.lane.silent.get() && self.random.chance(60) {
                // Nobody answers: the flow goes elsewhere, or nowhere.
                tried.unanswered(client);
                continue;
            }
            match self.random.below(10) {
                // A refusal sends the visitor on, as often as is allowed.
                0..3 => {}
                3 => {
                    flow.ticket.ended_early(now);
                    self.served += 1;
                    return;
                }
                _ => {
                    flow.ticket.answered(now);
                    self.flows.push(flow);
                    self.served += 1;
                    return;
                }
            }
        }
        self.refused += 1;
    }

    fn place(&mut self, protocol: Protocol, core: &mut usize, tried: &mut Tried) -> Option<Flow> {
        loop {
            let now = self.some_now();
            let before = self.loads(now);
            let earlier = *tried;
            let at = *core;
            let way = route::find(
                &self.pool.pool,
                protocol,
                at,
                tried,
                now,
                |client| self.tables[at].borrow().pick(client, self.balancer),
                |lane| Some(Rc::clone(lane)),
            );
            let Some(way) = way else {
                assert!(
                    tried.is_full() || self.candidates(protocol, tried, now).is_empty(),
                    "nobody was found although somebody serves"
                );
                return None;
            };
            let (Route::Here(_, ticket) | Route::Elsewhere(_, ticket)) = &way;
            self.check_choice(protocol, ticket, &before, &earlier, now);
            match way {
                Route::Here(lane, ticket) => {
                    assert_eq!(lane.client, ticket.client().number);
                    self.check_lane(&lane, at);
                    self.check_silent_lane(&lane, at);
                    return Some(Flow::on(&lane, ticket));
                }
                Route::Elsewhere(other, ticket) => {
                    *core = other;
                    let lane = self.tables[other]
                        .borrow()
                        .pick(ticket.client().number, self.balancer);
                    if let Some(lane) = lane {
                        self.check_lane(&lane, other);
                        return Some(Flow::on(&lane, ticket));
                    }
                }
            }
        }
    }

    /// The load that each client is counted with.
    fn loads(&self, now: Instant) -> BTreeMap<u64, usize> {
        let clients = self.pool.clients();
        clients
            .iter()
            .map(|entry| (entry.number, entry.load(now)))
            .collect()
    }

    /// The clients that may be chosen, with their loads. Of those with a lane that takes flows
    /// these are the ones that answer on such a lane, if there are any; for TCP, of these, the ones
    /// whose service is up by the word of all such lanes, if there are any; and of these the ones
    /// whose service does not end flows at once. A visitor who waited in vain gets only a client
    /// that answers.
    fn candidates(&self, protocol: Protocol, tried: &Tried, now: Instant) -> BTreeMap<u64, usize> {
        let clients = self.pool.clients();
        let of = |client: u64| {
            self.lanes
                .iter()
                .filter(move |lane| lane.lane.client == client)
        };
        let rated: Vec<((bool, bool, bool), u64, usize)> = clients
            .iter()
            .filter(|entry| of(entry.number).any(|lane| !lane.lane.drains.get()))
            .filter(|entry| !tried.contains(entry.number))
            .map(|entry| {
                let takes_flows = |lane: &&Registered| !lane.lane.drains.get();
                let mut lanes = of(entry.number).filter(takes_flows);
                let silent = lanes.all(|lane| lane.lane.silent.get());
                let tcp = protocol == Protocol::Tcp;
                let mut lanes = of(entry.number).filter(takes_flows);
                let down = tcp && lanes.any(|lane| !lane.service_up);
                let failing = tcp && entry.is_failing(now);
                ((silent, down, failing), entry.number, entry.load(now))
            })
            .filter(|((silent, ..), ..)| !(*silent && tried.must_answer()))
            .collect();
        let best = rated.iter().map(|(rank, ..)| *rank).min();
        rated
            .into_iter()
            .filter(|(rank, ..)| Some(*rank) == best)
            .map(|(_, number, load)| (number, load))
            .collect()
    }

    /// The choice that was made last must be one of the right ones. Earlier ones of the same search
    /// found no lane.
    fn check_choice(
        &self,
        protocol: Protocol,
        ticket: &FlowTicket,
        before: &BTreeMap<u64, usize>,
        earlier: &Tried,
        now: Instant,
    ) {
        let client = ticket.client();
        assert!(!earlier.contains(client.number), "sent to a client again");
        let candidates = self.candidates(protocol, earlier, now);
        let usable = |number: &u64| {
            let mut lanes = self.lanes.iter().filter(|lane| lane.lane.client == *number);
            lanes.any(|lane| lane.lane.open.get() && !lane.lane.drains.get())
        };
        // A client of which no lane is open any more, unknown to the pool, may have been passed
        // over.
        let all_usable = candidates.keys().all(usable);
        if !all_usable {
            return;
        }
        assert!(
            candidates.contains_key(&client.number),
            "a client was chosen that is silent, whose service is down or failing, or that takes no flows"
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

    /// A lane whose peer does not answer is used only if the client has none on another core that
    /// does.
    fn check_silent_lane(&self, lane: &Rc<Lane>, core: usize) {
        if !lane.silent.get() {
            return;
        }
        let better = self.lanes.iter().any(|other| {
            other.core != core
                && other.lane.client == lane.client
                && !other.lane.drains.get()
                && !other.lane.silent.get()
        });
        assert!(!better, "a silent lane was used although another answers");
    }

    pub(crate) fn end_a_flow(&mut self) {
        if !self.flows.is_empty() {
            let index = self.random.below(self.flows.len());
            self.flows.swap_remove(index);
        }
    }

    /// While nothing else happens, every client that serves gets its share.
    pub(crate) fn settled_choices(&mut self) {
        // Slow start is over by then.
        let now = self.now + Duration::from_secs(60);
        let serving = self.candidates(Protocol::Tcp, &Tried::default(), now);
        if serving.is_empty() {
            return;
        }
        let rounds = SETTLED_ROUNDS + serving.len();
        let tickets: Vec<FlowTicket> = (0..rounds)
            .filter_map(|_| self.pool.pick(Protocol::Tcp, &Tried::default(), now))
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
