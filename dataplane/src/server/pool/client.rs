//! A client of a door: one instance of a program that has registered, with its lanes, whatever
//! services it serves.
//!
//! All cores share it, without a lock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::quic::path_numbers::PathNumbers;

use super::registry::{Applicant, InstanceId};

/// The serial number that stands for no lane: none probes the client.
pub(super) const NOBODY: u64 = 0;

/// The least time between two alarms. The lanes that heard an alarm ask until they are answered.
pub(super) const ALARM_PAUSE: Duration = Duration::from_millis(100);

/// Number of lanes of one client on one core.
#[derive(Debug, Default)]
pub(super) struct LaneCounts {
    /// Lanes that take new flows.
    pub(super) open: AtomicUsize,
    /// Lanes among them whose peer answers.
    pub(super) answering: AtomicUsize,
}

/// One client: an instance of a program, and its lanes.
#[derive(Debug)]
pub(crate) struct Client {
    /// Tells apart the clients of a door, and successive instances of one client.
    pub(crate) number: u64,
    /// The client's name: by its entry in dp.toml, or as the client calls itself.
    pub(crate) client_id: String,
    /// Whether the name comes from an entry, and is not for the client to choose.
    pub(super) has_entry: bool,
    /// The id that the client drew at its start.
    pub(super) instance_id: InstanceId,
    /// The address that the client's first lane came from.
    address: Option<SocketAddr>,
    /// Whether an instance that had the name before has been told to stay out, and the operator
    /// that this happened.
    pub(super) contested: AtomicBool,
    /// The time at which the client's first lane came.
    since: Instant,
    /// Registered lanes that have not ended, whether they take flows or not.
    pub(super) lanes_up: AtomicUsize,
    /// Lanes among them that ride TLS.
    pub(super) lanes_over_tls: AtomicUsize,
    /// Whether the log has said that the client stops.
    told_to_drain: AtomicBool,
    /// Number of lanes on each core.
    pub(super) lanes: Box<[CachePadded<LaneCounts>]>,
    /// Number of lanes on all cores.
    pub(super) lanes_total: LaneCounts,
    /// Registered lanes on all cores; the client leaves the registry with the last one.
    pub(super) registered: AtomicUsize,
    /// Numbers of the path to the client, as its lanes have measured them.
    pub(crate) path: PathNumbers,
    /// Whether a newer instance has taken the client's name.
    pub(super) replaced: AtomicBool,
    /// The serial number of the lane that probes the client.
    pub(super) prober: AtomicU64,
    /// The time at which the last alarm was given, in milliseconds since the registry began, plus
    /// 1.
    last_alarm_ms: AtomicU64,
    /// The time at which the registry began.
    epoch: Instant,
}

impl Client {
    /// A client that has no lane yet.
    pub(super) fn new(
        number: u64,
        applicant: &Applicant<'_>,
        cores: usize,
        epoch: Instant,
    ) -> Client {
        Client {
            number,
            client_id: applicant.name.into(),
            has_entry: applicant.has_entry,
            instance_id: applicant.instance_id,
            address: applicant.address,
            contested: AtomicBool::new(false),
            since: Instant::now(),
            lanes_up: AtomicUsize::new(0),
            lanes_over_tls: AtomicUsize::new(0),
            told_to_drain: AtomicBool::new(false),
            lanes: (0..cores).map(|_| CachePadded::default()).collect(),
            lanes_total: LaneCounts::default(),
            registered: AtomicUsize::new(0),
            path: PathNumbers::default(),
            replaced: AtomicBool::new(false),
            prober: AtomicU64::new(NOBODY),
            last_alarm_ms: AtomicU64::new(0),
            epoch,
        }
    }

    /// The address that the client's first lane came from.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The time at which the client's first lane came.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Number of lanes that the client has now.
    pub(crate) fn lanes_up(&self) -> usize {
        self.lanes_up.load(Ordering::Relaxed)
    }

    /// Number of lanes that are registered with the client, on all cores.
    pub(crate) fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    /// The client says on one of its lanes that it stops. Returns true for the first lane that says
    /// so.
    pub(crate) fn begins_to_drain(&self) -> bool {
        !self.told_to_drain.swap(true, Ordering::Relaxed)
    }

    /// Number of lanes on `core` that take new flows.
    pub(crate) fn lanes_on(&self, core: usize) -> usize {
        self.lanes
            .get(core)
            .map_or(0, |lanes| lanes.open.load(Ordering::Relaxed))
    }

    /// Number of lanes on `core` that take new flows and whose peer answers.
    pub(crate) fn answering_on(&self, core: usize) -> usize {
        self.lanes
            .get(core)
            .map_or(0, |lanes| lanes.answering.load(Ordering::Relaxed))
    }

    /// The first core after `core` (counted around) with a lane that takes new flows and whose peer
    /// answers; `core` itself is not considered.
    pub(crate) fn other_core_that_answers(&self, core: usize) -> Option<usize> {
        self.core_between(core, core, |core| self.answering_on(core) > 0)
    }

    /// The first core after `core` with a lane that takes new flows, whether its peer answers or
    /// not.
    pub(crate) fn other_core_with_lane(&self, core: usize) -> Option<usize> {
        self.core_with_lane_between(core, core)
    }

    /// The first core after `core` and before `end` (counted around) with a lane that takes new
    /// flows.
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

    /// Whether the client seems to be dead or unreachable: what is sent to it stays unanswered on
    /// every lane that takes flows.
    pub(crate) fn is_silent(&self) -> bool {
        self.takes_flows() && !self.answers()
    }

    /// Whether the peer of a lane that takes flows answers.
    pub(crate) fn answers(&self) -> bool {
        self.lanes_total.answering.load(Ordering::Relaxed) > 0
    }

    /// Whether a newer instance has taken the client's name.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Whether an alarm is due. Each of many lanes that fall silent at once asks this, and one
    /// alarm is enough.
    pub(crate) fn may_alarm(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.epoch);
        let now_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let pause_ms = ALARM_PAUSE.as_millis() as u64;
        let due = |last: u64| last == 0 || now_ms >= last + pause_ms;
        self.last_alarm_ms
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |last| {
                due(last).then_some(now_ms)
            })
            .is_ok()
    }

    /// Whether the client takes new flows.
    pub(crate) fn usable(&self) -> bool {
        self.takes_flows() && !self.is_replaced()
    }

    pub(super) fn takes_flows(&self) -> bool {
        self.lanes_total.open.load(Ordering::Relaxed) > 0
    }

    /// Whether the client has this name, by an entry or by its own word. A client that names itself
    /// has nothing in common with a client of that name that has an entry.
    pub(super) fn is_called(&self, name: &str, by_entry: bool) -> bool {
        self.has_entry == by_entry && self.client_id == name
    }
}
