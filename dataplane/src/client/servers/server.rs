//! One server as all cores of the client see it: an address, and what its lanes have learned about
//! it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use qmux_config::Lanes;

use super::demand::{Change, Demand, Work};
use super::stand_in;
use super::take_up::TakeUp;
use super::transport::TransportState;
use crate::client::services::answers::Told;
use crate::quic::path_numbers::PathNumbers;
use crate::sys::CORES_MAX;

/// The least time between two alarms. The lanes that heard an alarm ask until they are answered.
const ALARM_PAUSE: Duration = Duration::from_millis(100);

/// The most lanes that may be left to their flows for as long as these take.
const LEFT_MAX: usize = 2 * CORES_MAX;

/// The serial number that stands for no lane: none probes the server.
const NOBODY: u64 = 0;

/// The instance is not known yet.
const UNKNOWN: u64 = 0;

/// The configured server that an address comes from. It never changes; another one takes its place.
#[derive(Debug)]
pub(crate) struct Configured {
    /// Tells the configured servers of this process apart, also successive ones of one index.
    pub(crate) number: u64,
    /// The index of the configured server.
    pub(crate) target: usize,
    /// The name that the server's certificate must have.
    pub(crate) server_name: String,
}

/// One server.
#[derive(Debug)]
pub(crate) struct ServerState {
    /// Tells the servers of this process apart, also successive ones at one address.
    pub(crate) number: u64,
    /// The address of the server.
    pub(crate) address: SocketAddr,
    /// Another configuration changes it, and lanes are registered anew then.
    configured: ArcSwap<Configured>,
    /// The number of cores that the server last reported; 0 until then.
    cores: AtomicUsize,
    /// A part of the instance id that the server last reported; several servers may be behind one
    /// address.
    instance: AtomicU64,
    /// How many lanes there are to be if the configuration does not say. It is used when the server
    /// or one of its lanes reports something, never by a flow.
    demand: Mutex<Demand>,
    /// The last result of `demand`.
    demanded: AtomicUsize,
    /// Surplus lanes that carry on with their flows.
    left: AtomicUsize,
    /// Lanes registered with the server now, on all cores.
    registered: AtomicUsize,
    /// Whether the address keeps no lane because another address of the same server serves (see
    /// [`super::same_server`]).
    rests: AtomicBool,
    /// Whether it was logged that this host has no route to the server.
    no_route_said: AtomicBool,
    /// Registered lanes whose questions nobody answers.
    unanswered: AtomicUsize,
    /// The server's answers to the services that this client offers, as they were logged.
    pub(crate) told: Told,
    /// The serial number of the lane that probes the server.
    prober: AtomicU64,
    /// Numbers of the path to the server, as its lanes have measured them.
    pub(crate) path: PathNumbers,
    /// Whether it was logged that the server stops.
    told_to_drain: AtomicBool,
    started: Instant,
    /// The transport that carries the server's lanes.
    pub(crate) transport: TransportState,
    /// Whether lanes serve by the present configuration.
    pub(crate) take_up: TakeUp,
    /// The time at which the last alarm was given, in milliseconds after `started`, plus 1.
    last_alarm_ms: AtomicU64,
}

/// The news about the server that a registration brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Whether it is the first lane, or the first one with another instance than before, so that
    /// waiting lanes should try now.
    pub(crate) back: bool,
    /// Whether another instance answers than before, so that the lanes that were registered before
    /// may be dead.
    pub(crate) other_instance: bool,
}

/// A part of the instance id that a server drew at its start; never [`UNKNOWN`].
pub(crate) fn instance_number(instance_id: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *instance_id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
}

impl ServerState {
    pub(crate) fn new(
        number: u64,
        address: SocketAddr,
        configured: Arc<Configured>,
    ) -> Arc<ServerState> {
        Arc::new(ServerState {
            number,
            address,
            configured: ArcSwap::new(configured),
            cores: AtomicUsize::new(0),
            instance: AtomicU64::new(UNKNOWN),
            demand: Mutex::default(),
            demanded: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
            rests: AtomicBool::new(false),
            no_route_said: AtomicBool::new(false),
            unanswered: AtomicUsize::new(0),
            told: Told::default(),
            prober: AtomicU64::new(NOBODY),
            path: PathNumbers::default(),
            told_to_drain: AtomicBool::new(false),
            started: Instant::now(),
            transport: TransportState::new(Instant::now()),
            take_up: TakeUp::default(),
            last_alarm_ms: AtomicU64::new(0),
        })
    }

    /// The configured server that the address comes from now.
    pub(crate) fn configured(&self) -> Arc<Configured> {
        self.configured.load_full()
    }

    /// Makes this the configured server that the address comes from.
    pub(super) fn configure(&self, configured: &Arc<Configured>) {
        self.configured.store(Arc::clone(configured));
    }

    /// The index of the configured server that the address comes from now.
    pub(crate) fn target(&self) -> usize {
        self.configured.load().target
    }

    /// The number of cores that the server last reported; 0 until then.
    pub(crate) fn cores(&self) -> usize {
        self.cores.load(Ordering::Relaxed)
    }

    /// Notes how many cores the server has; this client has `own`. Returns true if that is news.
    pub(crate) fn has_cores(&self, cores: usize, own: usize, now: Instant) -> bool {
        if self.cores.swap(cores, Ordering::Relaxed) == cores {
            return false;
        }
        let mut demand = self.demand();
        demand.has_cores(cores, own, now);
        self.demanded.store(demand.wanted(), Ordering::Relaxed);
        true
    }

    /// How many lanes to the server there are to be.
    pub(crate) fn lanes_wanted(&self, lanes: Lanes) -> usize {
        match lanes {
            // One lane is opened first: it learns the number of cores, by which the others are
            // aimed.
            _ if self.cores() == 0 => 1,
            Lanes::Count(count) => usize::from(count.get()),
            Lanes::Auto => self.demanded.load(Ordering::Relaxed).max(1),
        }
    }

    /// Takes what the server had to hand over to a lane since its last report.
    pub(crate) fn handed_over(&self, work: Work, now: Instant) -> Option<Change> {
        let left = self.left.load(Ordering::Relaxed);
        self.demand_says(|demand| demand.handed_over(work, left, now))
    }

    /// Notes that the server has shown on a lane that it will report no hand-overs.
    pub(crate) fn tells_nothing(&self) -> Option<Change> {
        self.demand_says(Demand::is_told_nothing)
    }

    /// Takes what a lane has carried since its last report, which it makes every
    /// `heartbeat_interval`.
    pub(crate) fn carried(
        &self,
        work: Work,
        heartbeat_interval: Duration,
        now: Instant,
    ) -> Option<Change> {
        self.demand_says(|demand| demand.carried(work, heartbeat_interval, now))
    }

    fn demand_says(&self, ask: impl FnOnce(&mut Demand) -> Option<Change>) -> Option<Change> {
        let mut demand = self.demand();
        let change = ask(&mut demand)?;
        self.demanded.store(demand.wanted(), Ordering::Relaxed);
        Some(change)
    }

    fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether surplus lanes get as long as their flows take. With a server that keeps its word
    /// there are never as many as the limit (see [`Demand::handed_over`]); with one that says
    /// another number of cores again and again there would be more and more.
    pub(crate) fn may_leave_lanes(&self) -> bool {
        self.left.load(Ordering::Relaxed) < LEFT_MAX
    }

    /// Counts a surplus lane that begins to be left to its flows, or has ended after that.
    pub(crate) fn lane_left(&self, begins: bool) {
        if begins {
            self.left.fetch_add(1, Ordering::Relaxed);
        } else {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a lane that has registered.
    pub(crate) fn lane_registered(&self, instance: u64) -> Registered {
        let before = self.instance.swap(instance, Ordering::AcqRel);
        let earlier = self.registered.fetch_add(1, Ordering::AcqRel);
        self.no_route_said.store(false, Ordering::Release);
        let other_instance = before != UNKNOWN && before != instance;
        if before != instance {
            self.told_to_drain.store(false, Ordering::Relaxed);
        }
        Registered {
            back: earlier == 0 || other_instance,
            other_instance: earlier > 0 && other_instance,
        }
    }

    /// Counts a registered lane that has ended. Returns true if it was the last one.
    pub(crate) fn lane_ended(&self) -> bool {
        self.registered.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Counts a registered lane whose questions nobody answers any more, or somebody answers again.
    pub(crate) fn lane_unanswered(&self, unanswered: bool) {
        if unanswered {
            self.unanswered.fetch_add(1, Ordering::AcqRel);
        } else {
            self.unanswered.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether nobody answers on any of the server's lanes.
    pub(crate) fn is_unanswered(&self) -> bool {
        let registered = self.registered.load(Ordering::Acquire);
        registered > 0 && self.unanswered.load(Ordering::Acquire) >= registered
    }

    /// Whether a lane that is registered with `instance` and is not answered may blame itself:
    /// another instance has answered since, or other lanes are answered.
    pub(crate) fn is_heard_elsewhere(&self, instance: u64) -> bool {
        self.instance.load(Ordering::Acquire) != instance
            || self.unanswered.load(Ordering::Acquire) < self.registered.load(Ordering::Acquire)
    }

    /// Whether the lane `serial` has the probing role.
    pub(crate) fn is_prober(&self, serial: u64) -> bool {
        self.prober.load(Ordering::Relaxed) == serial
    }

    /// Number of lanes registered with the server now.
    pub(crate) fn lanes(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    /// The server says on one of its lanes that it stops. Returns true for the first lane of this
    /// instance that says so.
    pub(crate) fn begins_to_drain(&self) -> bool {
        !self.told_to_drain.swap(true, Ordering::Relaxed)
    }

    /// Whether the server has said that it stops.
    pub(crate) fn is_draining(&self) -> bool {
        self.told_to_drain.load(Ordering::Relaxed)
    }

    /// Whether lanes are registered with the server, or with another address of it, and it has not
    /// said that it stops.
    pub(crate) fn has_lanes(&self) -> bool {
        self.registered.load(Ordering::Relaxed) > 0 || self.rests()
    }

    /// Whether the address keeps no lane because another address of the server serves.
    pub(crate) fn rests(&self) -> bool {
        self.rests.load(Ordering::Acquire)
    }

    pub(crate) fn set_rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Release);
    }

    /// Returns true the first time that this host has no route to the server, and the first time
    /// after a lane was up.
    pub(crate) fn lacks_route(&self) -> bool {
        !self.no_route_said.swap(true, Ordering::AcqRel)
    }

    /// Takes the probing role for the lane `serial` if no lane has it. Returns true if that lane
    /// has it now.
    pub(crate) fn claim_probing(&self, serial: u64) -> bool {
        self.prober.load(Ordering::Relaxed) == serial
            || self
                .prober
                .compare_exchange(NOBODY, serial, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// Gives the probing role back. Returns true if `serial` had it.
    pub(crate) fn leave_probing(&self, serial: u64) -> bool {
        self.prober
            .compare_exchange(serial, NOBODY, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether an alarm is due. Each of many lanes that end at once asks this, and one alarm is
    /// enough.
    pub(crate) fn may_alarm(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.started).as_millis();
        let now_ms = u64::try_from(since).unwrap_or(u64::MAX - 1) + 1;
        let pause_ms = ALARM_PAUSE.as_millis() as u64;
        let due = |last: u64| last == 0 || now_ms >= last + pause_ms;
        self.last_alarm_ms
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |last| {
                due(last).then_some(now_ms)
            })
            .is_ok()
    }
}

impl std::fmt::Display for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if stand_in::is_one(self.address) {
            f.write_str("an address that its proxy knows")
        } else {
            self.address.fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Arc<ServerState> {
        let address = "192.0.2.1:8443".parse().expect("literal");
        let configured = Configured {
            number: 1,
            target: 0,
            server_name: "server".into(),
        };
        ServerState::new(1, address, Arc::new(configured))
    }

    #[test]
    fn one_lane_at_a_time_probes() {
        let server = server();
        assert!(server.claim_probing(7) && server.claim_probing(7));
        assert!(!server.claim_probing(8));
        assert!(!server.leave_probing(8) && server.leave_probing(7));
        assert!(server.claim_probing(8));
    }

    #[test]
    fn lanes_that_are_left_for_as_long_as_it_takes_are_bounded() {
        let server = server();
        for _ in 0..LEFT_MAX {
            assert!(server.may_leave_lanes());
            server.lane_left(true);
        }
        assert!(!server.may_leave_lanes());
        server.lane_left(false);
        assert!(server.may_leave_lanes());
    }

    #[test]
    fn one_alarm_is_enough_for_many_ends() {
        let server = server();
        let now = Instant::now();
        assert!(server.may_alarm(now) && !server.may_alarm(now));
        assert!(!server.may_alarm(now + ALARM_PAUSE / 2));
        assert!(server.may_alarm(now + ALARM_PAUSE * 2));
    }

    #[test]
    fn a_lane_that_is_not_answered_blames_itself_only_if_another_is_answered() {
        let server = server();
        server.lane_registered(1);
        server.lane_registered(1);
        server.lane_unanswered(true);
        assert!(server.is_heard_elsewhere(1), "the other one is answered");
        server.lane_unanswered(true);
        assert!(!server.is_heard_elsewhere(1), "none is");
        server.lane_registered(2);
        assert!(server.is_heard_elsewhere(1), "another run of the server");
    }

    #[test]
    fn another_instance_is_told_from_the_first_lane_of_one() {
        let server = server();
        let first = server.lane_registered(1);
        assert!(first.back && !first.other_instance);
        let second = server.lane_registered(1);
        assert!(!second.back && !second.other_instance);
        let other = server.lane_registered(2);
        assert!(other.back && other.other_instance);
        for _ in 0..3 {
            server.lane_ended();
        }
        let again = server.lane_registered(3);
        assert!(
            again.back && !again.other_instance,
            "no lane is left to doubt"
        );
    }
}
