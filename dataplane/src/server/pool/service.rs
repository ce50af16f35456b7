//! The clients of one service, and the choice of one for the next visitor.
//!
//! All cores share it. Visitors read an immutable snapshot of the list and counters of each client,
//! without a lock. The list changes only when a client joins or leaves, which the registry does.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::atomic::AtomicCell;
use crossbeam::utils::CachePadded;
use qmux_config::LoadBalancer;
use qmux_proto::Protocol;
use qmux_proto::control::Protocols;

use super::balance::{Tried, choose};
use super::client::Client;
use super::passive_health::PassiveHealth;
use super::slow_start::SlowStart;
use crate::flow::udp::refusals::UdpRefusals;

/// A client as a member of one service: what is known of it there. The client itself is reached by
/// [`Deref`].
#[derive(Debug)]
pub(crate) struct Member {
    client: Arc<Client>,
    /// The protocols that the client's service speaks.
    protocols: Protocols,
    /// Flows that the client carries now for this service, over all cores.
    flows: CachePadded<AtomicUsize>,
    /// Number of lanes that have reported last that the client cannot reach the service.
    service_down: AtomicUsize,
    /// UDP visitors that the client could not serve.
    udp_refusals: UdpRefusals,
    /// UDP visitors whom the service itself did not take.
    udp_down: UdpRefusals,
    /// Passive health: how the service has treated visitors.
    passive_health: PassiveHealth,
    /// Slow start: the load that the client is counted with in addition, because it has just come.
    slow_start: SlowStart,
    /// The time at which the pool began.
    epoch: Instant,
}

impl Deref for Member {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Member {
    /// Flows that the client carries now for this service.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// Notes that the client could not serve a UDP visitor; `is_down` says whether that shows that
    /// its service is down.
    pub(crate) fn udp_refused(&self, is_down: bool, now: Instant) {
        self.udp_refusals.refused(now);
        if is_down {
            self.udp_down.refused(now);
        }
    }

    /// Whether the client has reported that it cannot reach the service by TCP.
    pub(crate) fn service_is_down(&self) -> bool {
        self.service_down.load(Ordering::Relaxed) > 0
    }

    /// Whether the client takes new flows, answers, and reaches the service, as far as is known: by
    /// its word if visitors may speak TCP, and otherwise by what its UDP visitors have met.
    pub(crate) fn is_reachable(&self, now: Instant) -> bool {
        let is_down = if self.protocols.tcp {
            self.service_is_down()
        } else {
            self.udp_down.count(now)
        };
        self.usable() && !self.is_silent() && !is_down
    }

    /// Whether the service at this client has ended flows at once.
    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        self.passive_health.is_failing(self.age(now))
    }

    /// The number of flows that the client is counted with in the choice by fewest flows.
    pub(crate) fn load(&self, now: Instant) -> usize {
        self.flows() + self.slow_start.flows(self.age(now))
    }

    /// One more lane reports that the service cannot be reached. Returns true if it is the only
    /// one.
    pub(super) fn one_lane_says_down(&self) -> bool {
        self.service_down.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// One lane less reports that the service cannot be reached. Returns true if none is left.
    pub(super) fn one_lane_says_up(&self) -> bool {
        let news = self.service_down.fetch_sub(1, Ordering::Relaxed) == 1;
        if news {
            self.passive_health.forgive();
        }
        news
    }

    /// Time since the pool began.
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// Whether the client may get a new flow of a visitor who has been to those in `tried`.
    fn may_take(&self, protocol: Protocol, tried: &Tried) -> bool {
        self.usable()
            && self.speaks(protocol)
            && !tried.contains(self.number)
            && !(tried.must_answer() && self.is_silent())
    }

    fn speaks(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.protocols.tcp,
            Protocol::Udp => self.protocols.udp,
        }
    }
}

/// A flow's place at its client: it is counted until this is dropped, on whichever core that
/// happens.
#[derive(Debug)]
pub(crate) struct FlowTicket(Arc<Member>);

impl FlowTicket {
    fn new(member: Arc<Member>) -> FlowTicket {
        member.flows.fetch_add(1, Ordering::Relaxed);
        FlowTicket(member)
    }

    /// The client that was chosen.
    pub(crate) fn client(&self) -> &Client {
        &self.0
    }

    /// Notes that the client's service has answered a UDP visitor.
    pub(crate) fn answered_udp(&self) {
        self.0.udp_down.answered();
    }

    /// Notes that the client's service has answered.
    pub(crate) fn answered(&self, now: Instant) {
        self.0.passive_health.answered(self.0.age(now));
    }

    /// Notes that the service has ended the flow before it had sent a byte.
    pub(crate) fn ended_early(&self, now: Instant) {
        self.0.passive_health.ended_early(self.0.age(now));
    }
}

impl Drop for FlowTicket {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The clients of one service.
#[derive(Debug)]
pub(crate) struct ClientPool {
    balancer: AtomicCell<LoadBalancer>,
    epoch: Instant,
    members: ArcSwap<Vec<Arc<Member>>>,
    /// Number of choices so far. It rotates ties, and is all that round-robin needs. There is one
    /// for each protocol: otherwise, if visitors of both protocols came by turns, each protocol
    /// would get only every other client.
    tcp_turn: CachePadded<AtomicUsize>,
    udp_turn: CachePadded<AtomicUsize>,
}

const _: () = assert!(
    AtomicCell::<LoadBalancer>::is_lock_free(),
    "it is read for each visitor"
);

impl ClientPool {
    /// An empty pool.
    pub(crate) fn new(balancer: LoadBalancer) -> ClientPool {
        ClientPool {
            balancer: AtomicCell::new(balancer),
            epoch: Instant::now(),
            members: ArcSwap::default(),
            tcp_turn: CachePadded::default(),
            udp_turn: CachePadded::default(),
        }
    }

    /// Adds a client. The caller holds the registry's lock, so there is one change at a time.
    pub(super) fn join(
        &self,
        client: &Arc<Client>,
        protocols: Protocols,
        now: Instant,
    ) -> Arc<Member> {
        let current = self.members.load();
        let others = current
            .iter()
            .filter(|other| other.usable() && !other.is_silent());
        let age = now.saturating_duration_since(self.epoch);
        let member = Arc::new(Member {
            client: Arc::clone(client),
            protocols,
            flows: CachePadded::default(),
            service_down: AtomicUsize::new(0),
            udp_refusals: UdpRefusals::new(Instant::now()),
            udp_down: UdpRefusals::new(Instant::now()),
            passive_health: PassiveHealth::default(),
            slow_start: SlowStart::beside(others.map(|other| other.flows()), age),
            epoch: self.epoch,
        });
        let list = current
            .iter()
            .cloned()
            .chain([Arc::clone(&member)])
            .collect();
        self.members.store(Arc::new(list));
        member
    }

    /// Removes a client. The caller holds the registry's lock.
    pub(super) fn leave(&self, client: &Client) {
        let current = self.members.load();
        let stay = current
            .iter()
            .filter(|member| member.number != client.number);
        self.members.store(Arc::new(stay.cloned().collect()));
    }

    /// The rule by which a client, and then a lane of it, is chosen.
    pub(crate) fn balancer(&self) -> LoadBalancer {
        self.balancer.load()
    }

    /// Changes the rule, for visitors who come from now on.
    pub(crate) fn balance_by(&self, balancer: LoadBalancer) {
        self.balancer.store(balancer);
    }

    /// Picks a client that is not among `tried` for a new flow, and counts the flow. `None` if no
    /// client can take it.
    ///
    /// A flow goes to a silent client only if all are silent. A TCP flow goes to a client whose
    /// service is down, or ends flows at once, only if there is no better one; then the client
    /// itself refuses the flow, or finds that its service has come back. For UDP flows that does
    /// not matter, because it is about TCP; for them, clients that could not serve a UDP visitor a
    /// short while ago come last.
    pub(crate) fn pick(
        &self,
        protocol: Protocol,
        tried: &Tried,
        now: Instant,
    ) -> Option<FlowTicket> {
        let turn = match protocol {
            Protocol::Tcp => &self.tcp_turn,
            Protocol::Udp => &self.udp_turn,
        };
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let (members, balancer) = (self.members.load(), self.balancer());
        let chosen = choose(members.iter(), turn, |member| {
            if !member.may_take(protocol, tried) {
                return None;
            }
            let silent = member.is_silent();
            let tcp = protocol == Protocol::Tcp;
            let down = match protocol {
                Protocol::Tcp => member.service_is_down(),
                Protocol::Udp => member.udp_refusals.count(now),
            };
            let failing = tcp && member.is_failing(now);
            let load = match balancer {
                LoadBalancer::RoundRobin => 0,
                LoadBalancer::LeastConnections => member.load(now),
            };
            Some((silent, down, failing, load))
        });
        chosen.map(|member| FlowTicket::new(Arc::clone(member)))
    }

    /// Whether there is a client that [`Self::pick`] could choose. Asking changes nothing.
    pub(crate) fn has_another(&self, protocol: Protocol, tried: &Tried) -> bool {
        let members = self.members.load();
        !tried.is_full() && members.iter().any(|it| it.may_take(protocol, tried))
    }

    /// Whether there is a client that answers for a TCP visitor who has been to those in `tried`.
    pub(crate) fn has_better(&self, tried: &Tried) -> bool {
        let mut tried = *tried;
        tried.require_answer();
        self.has_another(Protocol::Tcp, &tried)
    }

    /// Whether there is a client that takes new flows.
    pub(crate) fn is_served(&self) -> bool {
        self.members.load().iter().any(|member| member.usable())
    }

    /// The clients at this moment.
    pub(crate) fn clients(&self) -> Arc<Vec<Arc<Member>>> {
        self.members.load_full()
    }

    /// The totals for the admin endpoint; the numbers are read one after the other.
    pub(crate) fn totals(&self) -> PoolTotals {
        let (mut totals, now) = (PoolTotals::default(), Instant::now());
        for member in self.members.load().iter() {
            totals.clients += 1;
            totals.usable += usize::from(member.usable());
            totals.reachable += usize::from(member.is_reachable(now));
            totals.lanes += member.registered();
            totals.flows += member.flows();
        }
        totals
    }
}

/// Totals over the clients of one service.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolTotals {
    /// Registered clients.
    pub(crate) clients: usize,
    /// Clients that take new flows.
    pub(crate) usable: usize,
    /// Clients among these that answer and reach their service, as far as is known.
    pub(crate) reachable: usize,
    /// Registered lanes.
    pub(crate) lanes: usize,
    /// Flows, TCP and UDP.
    pub(crate) flows: usize,
}
