//! The clients of one listener, and which of them gets the next visitor.
//!
//! All cores share it. Visitors read an immutable snapshot of the list and per-client atomics, without a lock; the list
//! changes only when a client joins or leaves, under a mutex that no visitor takes.
//!
//! Two programs may come under one client id. Either the first is dead and the second its
//! successor, who must not wait until the server has noticed; or both live, by a mistake, and must
//! not drive each other out for ever. So the newer instance takes over at once, and an instance
//! that was driven out stays out while its successor is there. What it carries may go on as long as
//! it answers.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::utils::CachePadded;
use qmux_config::LoadBalancer;
use qmux_proto::Protocol;
use qmux_proto::control::INSTANCE_ID_BYTES;

use super::balance::{Tried, choose};
use super::blame::Blame;
use super::head_start::HeadStart;
use super::udp_refusals::UdpRefusals;
use super::views::ClientRow;
use crate::quic::path_numbers::PathNumbers;

/// Instances that are remembered to have been replaced, 16 KiB in all. More live programs than this under ids of others
/// would drive each other out by turns.
const REPLACED_MAX: usize = 1_024;

/// Drawn by a client at its start.
pub(crate) type InstanceId = [u8; INSTANCE_ID_BYTES];

/// No lane has the probing role.
const NOBODY: u64 = 0;

/// An alarm is not given again within this time: the lanes that heard it ask until they are
/// answered.
const ALARM_PAUSE: Duration = Duration::from_millis(100);

/// Lanes of one client on one core.
#[derive(Debug, Default)]
struct LaneCounts {
    /// Those that take new flows.
    open: AtomicUsize,
    /// Those of them whose peer answers.
    answering: AtomicUsize,
}

/// One client: an instance of a program that registered under a client id.
#[derive(Debug)]
pub(crate) struct ClientEntry {
    /// Tells clients of this process apart, also successive instances of one client id.
    pub(crate) number: u64,
    /// The id it registered with.
    pub(crate) client_id: String,
    /// Drawn at the client's start.
    instance_id: InstanceId,
    /// Where its first lane came from.
    address: Option<SocketAddr>,
    /// An instance that had the id before has been told to stay out, and the operator that it was.
    contested: AtomicBool,
    /// When its first lane came.
    since: Instant,
    /// Lanes registered that have not ended, whether they take flows or not.
    lanes_up: AtomicUsize,
    /// The log has it that it stops.
    told_to_drain: AtomicBool,
    /// Flows that it carries now, over all cores.
    flows: CachePadded<AtomicUsize>,
    /// Lanes per core.
    lanes: Box<[CachePadded<LaneCounts>]>,
    /// The same, in all.
    lanes_total: LaneCounts,
    /// Lanes registered, in all; the client leaves the list with its last one.
    registered: AtomicUsize,
    /// Lanes that have said last that the service cannot be reached.
    service_down: AtomicUsize,
    /// A newer instance has taken its id.
    replaced: AtomicBool,
    /// What its lanes have told of the way to it.
    pub(crate) path: PathNumbers,
    /// UDP visitors that it could not serve.
    udp_refusals: UdpRefusals,
    /// The lane that probes it, by its serial number.
    prober: AtomicU64,
    /// When the last alarm was given, in milliseconds since the pool began, plus 1.
    last_alarm_ms: AtomicU64,
    /// What its service has done to visitors.
    blame: Blame,
    /// What it counts for in addition to its flows, because it has just come.
    head_start: HeadStart,
    /// When the pool began.
    epoch: Instant,
}

impl ClientEntry {
    /// Where its first lane came from.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// When its first lane came.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Lanes that it has now.
    pub(crate) fn lanes_up(&self) -> usize {
        self.lanes_up.load(Ordering::Relaxed)
    }

    /// It says on one of its lanes that it stops. True for the first one.
    pub(crate) fn begins_to_drain(&self) -> bool {
        !self.told_to_drain.swap(true, Ordering::Relaxed)
    }

    /// It could not serve a UDP visitor.
    pub(crate) fn udp_refused(&self, now: Instant) {
        self.udp_refusals.refused(now);
    }

    /// Lanes on `core` that take new flows.
    pub(crate) fn lanes_on(&self, core: usize) -> usize {
        self.lanes
            .get(core)
            .map_or(0, |lanes| lanes.open.load(Ordering::Relaxed))
    }

    /// Those of them whose peer answers.
    pub(crate) fn answering_on(&self, core: usize) -> usize {
        self.lanes
            .get(core)
            .map_or(0, |lanes| lanes.answering.load(Ordering::Relaxed))
    }

    /// The first core after `core` (counted around) with a lane that takes new flows and whose peer
    /// answers; `core` itself is not looked at.
    pub(crate) fn other_core_that_answers(&self, core: usize) -> Option<usize> {
        self.core_between(core, core, |core| self.answering_on(core) > 0)
    }

    /// The same, whether the peer answers or not.
    pub(crate) fn other_core_with_lane(&self, core: usize) -> Option<usize> {
        self.core_with_lane_between(core, core)
    }

    /// The first core after `core` and before `end` (counted around) with a lane that takes new flows.
    pub(crate) fn core_with_lane_between(&self, core: usize, end: usize) -> Option<usize> {
        self.core_between(core, end, |core| self.lanes_on(core) > 0)
    }

    fn core_between(
        &self,
        core: usize,
        end: usize,
        has_lane: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let cores = self.lanes.len();
        let distance = match (end + cores - core) % cores {
            0 => cores,
            distance => distance,
        };
        (1..distance)
            .map(|step| (core + step) % cores)
            .find(|core| has_lane(*core))
    }

    /// Flows that it carries now.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// Whether it has said that its service cannot be reached by TCP.
    pub(crate) fn service_is_down(&self) -> bool {
        self.service_down.load(Ordering::Relaxed) > 0
    }

    /// Whether it seems to be dead or out of reach: what is sent is not answered on any lane that
    /// takes flows.
    pub(crate) fn is_silent(&self) -> bool {
        self.takes_flows() && self.lanes_total.answering.load(Ordering::Relaxed) == 0
    }

    /// Whether a newer instance has taken its id.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Whether its service has ended flows at once.
    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        self.blame.is_failing(self.age(now))
    }

    /// Flows that it is taken to have when the fewest are looked for.
    pub(crate) fn load(&self, now: Instant) -> usize {
        self.flows() + self.head_start.flows(self.age(now))
    }

    /// Since the pool began.
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    /// True if an alarm is due: each of many lanes that fall silent at once asks, and one alarm is
    /// enough.
    pub(crate) fn may_alarm(&self, now: Instant) -> bool {
        let now_ms = u64::try_from(self.age(now).as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let pause_ms = ALARM_PAUSE.as_millis() as u64;
        let due = |last: u64| last == 0 || now_ms >= last + pause_ms;
        self.last_alarm_ms
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |last| {
                due(last).then_some(now_ms)
            })
            .is_ok()
    }

    /// Whether it takes new flows.
    pub(crate) fn usable(&self) -> bool {
        self.takes_flows() && !self.is_replaced()
    }

    /// Whether it takes new flows, answers, and has not said that its service cannot be reached.
    fn is_reachable(&self) -> bool {
        self.usable() && !self.is_silent() && !self.service_is_down()
    }

    fn takes_flows(&self) -> bool {
        self.lanes_total.open.load(Ordering::Relaxed) > 0
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

/// Who wants to register a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applicant<'a> {
    /// The id that it wants to be known by.
    pub(crate) client_id: &'a str,
    /// Which run of the client it is.
    pub(crate) instance_id: InstanceId,
    /// Where the lane comes from.
    pub(crate) address: Option<SocketAddr>,
}

/// A lane was registered.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The lane's claim on its client.
    pub(crate) membership: LaneMembership,
    /// Another instance had the id until now.
    pub(crate) replaced: Option<Replaced>,
}

/// An instance that lost its id to a newer one.
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

/// The id belongs to a newer instance, which lives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Duplicate {
    /// Where that one came from.
    pub(crate) address: Option<SocketAddr>,
    /// It is the first time that this is found: to be logged.
    pub(crate) first: bool,
}

/// A registered lane's claim on its client.
#[derive(Debug)]
pub(crate) struct LaneMembership {
    pool: Arc<ClientPool>,
    entry: Arc<ClientEntry>,
    core: usize,
    /// Tells lanes of this pool apart; never 0.
    serial: u64,
    takes_flows: Cell<bool>,
    service_down: Cell<bool>,
    silent: Cell<bool>,
    /// It counts among the answering ones.
    answering: Cell<bool>,
    over: Cell<bool>,
    first: bool,
}

impl LaneMembership {
    /// The client.
    pub(crate) fn client(&self) -> &Arc<ClientEntry> {
        &self.entry
    }

    /// The client had no other lane when this one came.
    pub(crate) fn is_first(&self) -> bool {
        self.first
    }

    /// The lane takes no new flow from now on (it drains or is unhealthy).
    pub(crate) fn take_no_more(&self) {
        if self.takes_flows.replace(false) {
            self.entry.lanes_total.open.fetch_sub(1, Ordering::Relaxed);
            self.entry.lanes[self.core]
                .open
                .fetch_sub(1, Ordering::Relaxed);
        }
        self.count_answering();
    }

    fn count_answering(&self) {
        let answers = self.takes_flows.get() && !self.silent.get();
        if self.answering.replace(answers) == answers {
            return;
        }
        for counts in [&self.entry.lanes_total, &*self.entry.lanes[self.core]] {
            if answers {
                counts.answering.fetch_add(1, Ordering::Relaxed);
            } else {
                counts.answering.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes the probing role for this lane if no other one of the client has it. True if it has it
    /// now.
    pub(crate) fn claim_probing(&self) -> bool {
        let prober = &self.entry.prober;
        !self.over.get()
            && (prober.load(Ordering::Relaxed) == self.serial
                || prober
                    .compare_exchange(NOBODY, self.serial, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok())
    }

    /// Gives the probing role back. True if this lane had it.
    pub(crate) fn leave_probing(&self) -> bool {
        self.entry
            .prober
            .compare_exchange(self.serial, NOBODY, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The lane has ended. Its last flow may go on for some time, and must not keep alive what the lane said or did not
    /// say: its successor knows better. True if the client has no other lane.
    pub(crate) fn lane_ended(&self) -> bool {
        self.take_no_more();
        self.silence(false);
        self.service_health(true);
        self.leave_probing();
        !self.over.replace(true) && self.entry.lanes_up.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// The lane says whether the client's service can be reached. True if that changes what is thought of the client:
    /// its service is down while any of its lanes says so.
    pub(crate) fn service_health(&self, healthy: bool) -> bool {
        let down = !healthy;
        if self.over.get() || self.service_down.replace(down) == down {
            return false;
        }
        if down {
            self.entry.service_down.fetch_add(1, Ordering::Relaxed) == 0
        } else {
            let news = self.entry.service_down.fetch_sub(1, Ordering::Relaxed) == 1;
            if news {
                self.entry.blame.forgive();
            }
            news
        }
    }

    /// Whether what is sent on this lane is left unanswered.
    pub(crate) fn silence(&self, silent: bool) {
        if !self.over.get() {
            self.silent.set(silent);
            self.count_answering();
        }
    }
}

impl Drop for LaneMembership {
    fn drop(&mut self) {
        let _last = self.lane_ended();
        self.pool.leave(&self.entry);
    }
}

/// What only those need who change the list.
#[derive(Debug, Default)]
struct Change {
    /// The next client's number.
    next_number: u64,
    /// The last lane's serial number.
    last_serial: u64,
    /// Instances that lost their id to a newer one, the latest last.
    replaced: VecDeque<InstanceId>,
}

impl Change {
    fn replaced(&mut self, instance: InstanceId) {
        if self.replaced.len() == REPLACED_MAX {
            self.replaced.pop_front();
        }
        self.replaced.push_back(instance);
    }
}

/// The clients of one listener.
#[derive(Debug)]
pub(crate) struct ClientPool {
    balancer: LoadBalancer,
    epoch: Instant,
    cores: usize,
    clients: ArcSwap<Vec<Arc<ClientEntry>>>,
    /// Guards changes of the list.
    change: Mutex<Change>,
    /// Choices made so far: rotates ties, and is the whole of round-robin. One for each protocol, because visitors of
    /// both who come by turns would otherwise each get every other client only.
    tcp_turn: CachePadded<AtomicUsize>,
    udp_turn: CachePadded<AtomicUsize>,
}

impl ClientPool {
    /// An empty pool for a process of `cores` cores.
    pub(crate) fn new(balancer: LoadBalancer, cores: usize) -> ClientPool {
        ClientPool {
            balancer,
            epoch: Instant::now(),
            cores,
            clients: ArcSwap::default(),
            change: Mutex::default(),
            tcp_turn: CachePadded::default(),
            udp_turn: CachePadded::default(),
        }
    }

    /// Registers a lane on `core`.
    ///
    /// # Errors
    /// If the applicant was replaced by a newer instance that takes flows.
    pub(crate) fn join(
        self: &Arc<Self>,
        applicant: &Applicant<'_>,
        core: usize,
        now: Instant,
    ) -> Result<Joined, Duplicate> {
        let mut change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.clients.load_full();
        let known = current
            .iter()
            .find(|entry| entry.client_id == applicant.client_id);
        let mut replaced = None;
        let entry = match known {
            Some(entry) if entry.instance_id == applicant.instance_id => Arc::clone(entry),
            Some(entry)
                if entry.takes_flows() && change.replaced.contains(&applicant.instance_id) =>
            {
                return Err(Duplicate {
                    address: entry.address,
                    first: !entry.contested.swap(true, Ordering::Relaxed),
                });
            }
            _ => {
                let others = current.iter().filter(|other| {
                    other.client_id != applicant.client_id && other.usable() && !other.is_silent()
                });
                let age = now.saturating_duration_since(self.epoch);
                let head_start = HeadStart::beside(others.map(|other| other.flows()), age);
                let entry = self.entry(change.next_number, applicant, head_start);
                change.next_number += 1;
                change
                    .replaced
                    .retain(|instance| *instance != applicant.instance_id);
                let mut list: Vec<_> = current
                    .iter()
                    .filter(|other| other.client_id != applicant.client_id)
                    .cloned()
                    .collect();
                list.push(Arc::clone(&entry));
                self.clients.store(Arc::new(list));
                replaced = known.map(|old| {
                    old.replaced.store(true, Ordering::Relaxed);
                    change.replaced(old.instance_id);
                    Replaced {
                        client: old.number,
                        address: old.address,
                        drains: !old.takes_flows(),
                        silent: old.is_silent(),
                    }
                });
                entry
            }
        };
        entry.registered.fetch_add(1, Ordering::Relaxed);
        entry.lanes[core].open.fetch_add(1, Ordering::Relaxed);
        entry.lanes_total.open.fetch_add(1, Ordering::Relaxed);
        change.last_serial += 1;
        let first = entry.lanes_up.fetch_add(1, Ordering::Relaxed) == 0;
        let membership = LaneMembership {
            first,
            pool: Arc::clone(self),
            entry,
            core,
            serial: change.last_serial,
            takes_flows: Cell::new(true),
            service_down: Cell::new(false),
            silent: Cell::new(false),
            answering: Cell::new(false),
            over: Cell::new(false),
        };
        membership.count_answering();
        Ok(Joined {
            membership,
            replaced,
        })
    }

    fn entry(
        &self,
        number: u64,
        applicant: &Applicant<'_>,
        head_start: HeadStart,
    ) -> Arc<ClientEntry> {
        Arc::new(ClientEntry {
            number,
            client_id: applicant.client_id.into(),
            instance_id: applicant.instance_id,
            address: applicant.address,
            contested: AtomicBool::new(false),
            since: Instant::now(),
            lanes_up: AtomicUsize::new(0),
            told_to_drain: AtomicBool::new(false),
            flows: CachePadded::default(),
            lanes: (0..self.cores).map(|_| CachePadded::default()).collect(),
            lanes_total: LaneCounts::default(),
            registered: AtomicUsize::new(0),
            service_down: AtomicUsize::new(0),
            replaced: AtomicBool::new(false),
            path: PathNumbers::default(),
            udp_refusals: UdpRefusals::new(Instant::now()),
            prober: AtomicU64::new(NOBODY),
            last_alarm_ms: AtomicU64::new(0),
            blame: Blame::default(),
            head_start,
            epoch: self.epoch,
        })
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

    /// Picks a client that is not among `tried` for a new flow and counts the flow, or `None` if no client can take it.
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
        let clients = self.clients.load();
        let chosen = choose(clients.iter(), turn, |entry| {
            if !entry.usable() || tried.contains(entry.number) {
                return None;
            }
            let silent = entry.is_silent();
            if silent && tried.must_answer() {
                return None;
            }
            let tcp = protocol == Protocol::Tcp;
            let down = match protocol {
                Protocol::Tcp => entry.service_is_down(),
                Protocol::Udp => entry.udp_refusals.count(now),
            };
            let failing = tcp && entry.is_failing(now);
            let load = match self.balancer {
                LoadBalancer::RoundRobin => 0,
                LoadBalancer::LeastConnections => entry.load(now),
            };
            Some((silent, down, failing, load))
        });
        chosen.map(|entry| FlowTicket::new(Arc::clone(entry)))
    }

    /// Whether there is a client that answers for a visitor who has been to those.
    pub(crate) fn has_better(&self, tried: &Tried) -> bool {
        !tried.is_full()
            && self
                .clients
                .load()
                .iter()
                .any(|entry| entry.usable() && !entry.is_silent() && !tried.contains(entry.number))
    }

    /// The clients now.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> Arc<Vec<Arc<ClientEntry>>> {
        self.clients.load_full()
    }
}

/// What the clients of one listener amount to.
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

impl ClientPool {
    /// Registered lanes of an instance of a client, on all cores.
    pub(crate) fn lanes_of(&self, client_id: &str, instance_id: InstanceId) -> usize {
        let clients = self.clients.load();
        let mut entries = clients.iter();
        entries
            .find(|entry| entry.client_id == client_id && entry.instance_id == instance_id)
            .map_or(0, |entry| entry.registered.load(Ordering::Relaxed))
    }

    /// Each client as operators see it; `door` and `service` are the pool's.
    pub(crate) fn rows(&self, door: usize, service: &str) -> Vec<ClientRow> {
        let row = |entry: &Arc<ClientEntry>| ClientRow {
            door,
            number: entry.number,
            name: entry.client_id.clone(),
            instance_id: entry.instance_id,
            address: entry.address,
            lanes: entry.lanes_up(),
            rtt_us: entry.path.rtt_us(),
            lost_packets: entry.path.lost_packets(),
            since: entry.since,
            flows: entry.flows(),
            service: service.to_owned(),
            up: entry.is_reachable(),
        };
        self.clients.load().iter().map(row).collect()
    }

    /// For the admin endpoint; the numbers are read one after the other.
    pub(crate) fn totals(&self) -> PoolTotals {
        let mut totals = PoolTotals::default();
        for entry in self.clients.load().iter() {
            totals.clients += 1;
            totals.usable += usize::from(entry.usable());
            totals.reachable += usize::from(entry.is_reachable());
            totals.lanes += entry.registered.load(Ordering::Relaxed);
            totals.flows += entry.flows();
        }
        totals
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
