//! A client of a door: an instance of a program that registered, with its lanes, whatever it
//! serves.
//!
//! All cores share it, without a lock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::quic::path_numbers::PathNumbers;

use super::registry::{Applicant, InstanceId};

/// No lane has the probing role.
pub(super) const NOBODY: u64 = 0;

/// An alarm is not given again within this time: the lanes that heard it ask until they are
/// answered.
pub(super) const ALARM_PAUSE: Duration = Duration::from_millis(100);

/// Lanes of one client on one core.
#[derive(Debug, Default)]
pub(super) struct LaneCounts {
    /// Those that take new flows.
    pub(super) open: AtomicUsize,
    /// Those of them whose peer answers.
    pub(super) answering: AtomicUsize,
}

/// One client: an instance of a program, with what it offers.
#[derive(Debug)]
pub(crate) struct Client {
    /// Tells clients of a door apart, also successive instances of one client.
    pub(crate) number: u64,
    /// What it is called: by its entry among those who may serve, or by itself.
    pub(crate) client_id: String,
    /// Its name is that of its entry, and not for itself to choose.
    pub(super) has_entry: bool,
    /// Drawn at the client's start.
    pub(super) instance_id: InstanceId,
    /// Where its first lane came from.
    address: Option<SocketAddr>,
    /// An instance that had the name before has been told to stay out, and the operator that it
    /// was.
    pub(super) contested: AtomicBool,
    /// When its first lane came.
    since: Instant,
    /// Lanes registered that have not ended, whether they take flows or not.
    pub(super) lanes_up: AtomicUsize,
    /// Those of them that ride TLS.
    pub(super) lanes_over_tls: AtomicUsize,
    /// The log has it that it stops.
    told_to_drain: AtomicBool,
    /// Lanes per core.
    pub(super) lanes: Box<[CachePadded<LaneCounts>]>,
    /// The same, in all.
    pub(super) lanes_total: LaneCounts,
    /// Lanes registered, in all; the client leaves the list with its last one.
    pub(super) registered: AtomicUsize,
    /// What its lanes have told of the way to it.
    pub(crate) path: PathNumbers,
    /// A newer instance has taken its name.
    pub(super) replaced: AtomicBool,
    /// The lane that probes it, by its serial number.
    pub(super) prober: AtomicU64,
    /// When the last alarm was given, in milliseconds since the registry began, plus 1.
    last_alarm_ms: AtomicU64,
    /// When the registry began.
    epoch: Instant,
}

impl Client {
    /// Of an applicant that has no lane yet.
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

    /// Lanes registered with it, in all.
    pub(crate) fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    /// It says on one of its lanes that it stops. True for the first one.
    pub(crate) fn begins_to_drain(&self) -> bool {
        !self.told_to_drain.swap(true, Ordering::Relaxed)
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

    /// Whether it seems to be dead or out of reach: what is sent is not answered on any lane that
    /// takes flows.
    pub(crate) fn is_silent(&self) -> bool {
        self.takes_flows() && !self.answers()
    }

    /// Whether a lane that takes flows is answered.
    pub(crate) fn answers(&self) -> bool {
        self.lanes_total.answering.load(Ordering::Relaxed) > 0
    }

    /// Whether a newer instance has taken its name.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// True if an alarm is due: each of many lanes that fall silent at once asks, and one alarm is
    /// enough.
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

    /// Whether it takes new flows.
    pub(crate) fn usable(&self) -> bool {
        self.takes_flows() && !self.is_replaced()
    }

    pub(super) fn takes_flows(&self) -> bool {
        self.lanes_total.open.load(Ordering::Relaxed) > 0
    }

    /// Whether it is called so, by its entry or by itself. One that names itself has nothing of a
    /// client of that name that has an entry.
    pub(super) fn is_called(&self, name: &str, by_entry: bool) -> bool {
        self.has_entry == by_entry && self.client_id == name
    }
}
