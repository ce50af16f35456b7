//! The clients of one service, and which of them gets the next visitor.
//!
//! All cores share it. Visitors read an immutable snapshot of the list and per-client atomics,
//! without a lock; the list changes only when a client joins or leaves, which is the registry's
//! matter.

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
use super::blame::Blame;
use super::client::Client;
use super::head_start::HeadStart;
use super::udp_refusals::UdpRefusals;

/// A client as one of those of a service: what is known of it there. The rest is the client's, and
/// reachable by [`Deref`].
#[derive(Debug)]
pub(crate) struct Member {
    client: Arc<Client>,
    /// What its service speaks.
    protocols: Protocols,
    /// Flows that it carries now for this service, over all cores.
    flows: CachePadded<AtomicUsize>,
    /// Lanes that have said last that the service cannot be reached.
    service_down: AtomicUsize,
    /// UDP visitors that it could not serve.
    udp_refusals: UdpRefusals,
    /// What its service has done to visitors.
    blame: Blame,
    /// What it counts for in addition to its flows, because it has just come.
    head_start: HeadStart,
    /// When the pool began.
    epoch: Instant,
}

impl Deref for Member {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Member {
    /// Flows that it carries now.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// It could not serve a UDP visitor.
    pub(crate) fn udp_refused(&self, now: Instant) {
        self.udp_refusals.refused(now);
    }

    /// Whether it has said that its service cannot be reached by TCP.
    pub(crate) fn service_is_down(&self) -> bool {
        self.service_down.load(Ordering::Relaxed) > 0
    }

    /// Whether it takes new flows, answers, and has not said that its service cannot be reached.
    pub(crate) fn is_reachable(&self) -> bool {
        self.usable() && !self.is_silent() && !self.service_is_down()
    }

    /// Whether its service has ended flows at once.
    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        self.blame.is_failing(self.age(now))
    }

    /// Flows that it is taken to have when the fewest are looked for.
    pub(crate) fn load(&self, now: Instant) -> usize {
        self.flows() + self.head_start.flows(self.age(now))
    }

    /// One more lane says that the service cannot be reached. True if it is the only one.
    pub(super) fn one_lane_says_down(&self) -> bool {
        self.service_down.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// One of them says so no more. True if none is left.
    pub(super) fn one_lane_says_up(&self) -> bool {
        let news = self.service_down.fetch_sub(1, Ordering::Relaxed) == 1;
        if news {
            self.blame.forgive();
        }
        news
    }

    /// Since the pool began.
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    fn speaks(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => self.protocols.tcp,
            Protocol::Udp => self.protocols.udp,
        }
    }
}

/// A flow's claim on its client: counts it until dropped, on whichever core that happens.
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

    /// The client's service has answered.
    pub(crate) fn answered(&self, now: Instant) {
        self.0.blame.answered(self.0.age(now));
    }

    /// It has ended the flow before it had said a byte.
    pub(crate) fn ended_early(&self, now: Instant) {
        self.0.blame.ended_early(self.0.age(now));
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
    /// Choices made so far: rotates ties, and is the whole of round-robin. One for each protocol,
    /// because visitors of both who come by turns would otherwise each get every other client only.
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

    /// Takes a client in. One change at a time: the registry's lock is held.
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
            blame: Blame::default(),
            head_start: HeadStart::beside(others.map(|other| other.flows()), age),
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

    /// Leaves a client out. The registry's lock is held.
    pub(super) fn leave(&self, client: &Client) {
        let current = self.members.load();
        let stay = current
            .iter()
            .filter(|member| member.number != client.number);
        self.members.store(Arc::new(stay.cloned().collect()));
    }

    /// How a client, and then a lane of it, is chosen.
    pub(crate) fn balancer(&self) -> LoadBalancer {
        self.balancer.load()
    }

    /// Another rule holds for those who come from now on.
    pub(crate) fn balance_by(&self, balancer: LoadBalancer) {
        self.balancer.store(balancer);
    }

    /// Picks a client that is not among `tried` for a new flow and counts the flow, or `None` if no
    /// client can take it.
    ///
    /// A flow goes to a client that is silent only if all are, and a TCP flow to one whose service
    /// is down, or ends flows at once, only if there is no better one: then the client itself says
    /// no, or finds that its service has come back. For a UDP flow that does not count, because
    /// what is known is about TCP; clients that could not serve a UDP visitor a short while ago
    /// come after others instead.
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
            if !member.usable() || !member.speaks(protocol) || tried.contains(member.number) {
                return None;
            }
            let silent = member.is_silent();
            if silent && tried.must_answer() {
                return None;
            }
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

    /// Whether there is a client that answers for a TCP visitor who has been to those.
    pub(crate) fn has_better(&self, tried: &Tried) -> bool {
        let better = |member: &Arc<Member>| {
            member.usable()
                && member.speaks(Protocol::Tcp)
                && !member.is_silent()
                && !tried.contains(member.number)
        };
        !tried.is_full() && self.members.load().iter().any(better)
    }

    /// Whether there is a client that takes new flows.
    pub(crate) fn is_served(&self) -> bool {
        self.members.load().iter().any(|member| member.usable())
    }

    /// The clients now.
    pub(crate) fn clients(&self) -> Arc<Vec<Arc<Member>>> {
        self.members.load_full()
    }

    /// For the admin endpoint; the numbers are read one after the other.
    pub(crate) fn totals(&self) -> PoolTotals {
        let mut totals = PoolTotals::default();
        for member in self.members.load().iter() {
            totals.clients += 1;
            totals.usable += usize::from(member.usable());
            totals.reachable += usize::from(member.is_reachable());
            totals.lanes += member.registered();
            totals.flows += member.flows();
        }
        totals
    }
}

/// What the clients of one service amount to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolTotals {
    /// Registered clients.
    pub(crate) clients: usize,
    /// Those of them that take new flows.
    pub(crate) usable: usize,
    /// Those of these that answer and have not said that their service cannot be reached.
    pub(crate) reachable: usize,
    /// Registered lanes.
    pub(crate) lanes: usize,
    /// Flows, TCP and UDP.
    pub(crate) flows: usize,
}
