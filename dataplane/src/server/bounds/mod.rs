//! What a service demands of its visitors before they cost it anything: each service has one gate,
//! shared by all cores. The gate is asked when a visitor comes, TCP or UDP, and is told when the
//! visitor's flow ends. It is never asked for the bytes of a flow, nor for a datagram of a flow
//! that is known.

mod refusals;
mod sources;
mod udp_sources;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use qmux_config::Bounds;

use crate::flow::bandwidth::Bandwidth;
use crate::flow::udp::lifetimes::source;
pub(crate) use refusals::{Refusal, RefusalCounters, Refuser};
use sources::{SourceLimits, Sources};
use udp_sources::UdpSources;

/// Number of shards of a table of sources. Each has a lock of its own, so that cores seldom wait
/// for each other.
const SHARDS: usize = 16;

/// The most sources of TCP visitors that one service knows at a time: some 10 MiB, and more than
/// visitors have descriptors on most machines. Each source has completed a handshake, so its
/// address is its own. Sources of UDP may be forged, and are kept in a table without such a bound
/// ([`udp_sources`]).
const SOURCES_MAX: usize = 131_072;

/// What a source is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A TCP visitor.
    Visitor,
    /// A UDP flow.
    UdpFlow,
}

/// The gate of one service.
#[derive(Debug)]
pub(crate) struct Gate {
    /// The configured bounds. A reload may replace them; visitors who are in stay.
    bounds: ArcSwap<Bounds>,
    /// Number of TCP visitors who are in, not counting those who came while their number was
    /// unlimited.
    visitors: AtomicU32,
    /// The sources of TCP visitors; set once these were limited by source.
    sources: OnceLock<Shards<Sources>>,
    /// The sources of UDP flows; set once these were limited by source.
    udp_sources: OnceLock<Shards<UdpSources>>,
    /// The refusals that each core has counted.
    refusals: Vec<RefusalCounters>,
}

/// A table of a service's sources, in shards.
#[derive(Debug)]
struct Shards<T> {
    // Visitors choose their addresses, and must not be able to choose one shard for all of them.
    hasher: RandomState,
    shards: Vec<Mutex<T>>,
}

impl<T> Shards<T> {
    fn new(shard: impl Fn() -> T) -> Shards<T> {
        Shards {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
        }
    }

    fn of(&self, source: IpAddr) -> MutexGuard<'_, T> {
        let hash = self.hasher.hash_one(source) % SHARDS as u64;
        let shard = &self.shards[usize::try_from(hash).unwrap_or_default()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shards<Sources> {
    /// Replaces the limits. They hold for visitors who come from now on.
    fn limit(&self, limits: SourceLimits) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.limit(limits);
        }
    }
}

/// What a visitor or a flow takes up at a gate. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    /// The visitor is counted among all visitors.
    of_all: bool,
    /// The source that the visitor or flow is counted for, if any.
    of_source: Option<(IpAddr, Kind)>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.of_all {
            self.gate.visitors.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some((source, kind)) = self.of_source {
            self.gate.one_less_of(source, kind);
        }
    }
}

impl Gate {
    /// The gate of a service with these bounds.
    pub(crate) fn new(bounds: &Bounds, cores: usize) -> Gate {
        let gate = Gate {
            bounds: ArcSwap::default(),
            visitors: AtomicU32::new(0),
            sources: OnceLock::new(),
            udp_sources: OnceLock::new(),
            refusals: (0..cores).map(|_| RefusalCounters::default()).collect(),
        };
        gate.demand(bounds);
        gate
    }

    /// Replaces the bounds. They hold for visitors who come from now on.
    pub(crate) fn demand(&self, bounds: &Bounds) {
        // Every key is named here, so that the program does not compile when a new key is added
        // until somebody has decided what uses it: this function, the admission of a visitor, or a
        // method that flows ask.
        let Bounds {
            allow: _,
            deny: _,
            accept_proxy_from: _,
            max_visitors: _,
            max_visitors_per_source,
            visitors_per_second_per_source,
            max_udp_flows_per_source,
            bandwidth_per_visitor: _,
            idle_timeout: _,
        } = *bounds;
        let limits = SourceLimits {
            visitors_max: max_visitors_per_source,
            visitors_per_second: visitors_per_second_per_source,
            sources_max: SOURCES_MAX / SHARDS,
        };
        match self.sources.get() {
            Some(shards) => shards.limit(limits),
            None if limits.limit_something() => {
                let _first = self.sources.set(Shards::new(|| Sources::new(limits)));
            }
            None => {}
        }
        if max_udp_flows_per_source > 0 {
            let _known = self
                .udp_sources
                .get_or_init(|| Shards::new(UdpSources::default));
        }
        self.bounds.store(Arc::new(bounds.clone()));
    }

    /// How long a TCP flow may go without a byte; zero means for ever.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.bounds.load().idle_timeout
    }

    /// The bandwidth of a flow that begins now, TCP or UDP; `None` if it is not limited.
    pub(crate) fn bandwidth(&self, now: Instant) -> Option<Box<Bandwidth>> {
        Bandwidth::of(self.bounds.load().bandwidth_per_visitor, now)
    }

    /// The refusals that each core has counted.
    pub(crate) fn refusals(&self) -> &[RefusalCounters] {
        &self.refusals
    }

    /// Number of visitors that were refused, for whatever reason, on all cores.
    pub(crate) fn refused_in_all(&self) -> u64 {
        let mut sum = 0;
        for core in &self.refusals {
            core.for_each(|_, _, value| sum += value);
        }
        sum
    }

    /// Admits a TCP visitor who has come to `core`, if the bounds allow it. The caller keeps the
    /// permit until the visitor's flow ends; there is none if nothing is limited.
    ///
    /// # Errors
    /// The reason for which the visitor is refused, which has been counted.
    pub(crate) fn admit_visitor(
        self: &Arc<Self>,
        core: usize,
        visitor: IpAddr,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || {
            let bounds = self.bounds.load();
            judge(&bounds, visitor)?;
            let permit = self.one_of_all(&bounds)?;
            self.one_of_its_source(&bounds, visitor, permit, now)
        })
    }

    /// Whether TCP visitors from this address must begin with a PROXY header.
    pub(crate) fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        self.bounds.load().accept_proxy_from.contains(peer)
    }

    /// The first half of [`Self::admit_visitor`], for a visitor whose address is not known yet.
    ///
    /// # Errors
    /// The reason for which the visitor is refused, which has been counted.
    pub(crate) fn admit_unknown(self: &Arc<Self>, core: usize) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || self.one_of_all(&self.bounds.load()))
    }

    /// The second half of [`Self::admit_visitor`], for a visitor whose address was not known
    /// before.
    ///
    /// # Errors
    /// The reason for which the visitor is refused, which has been counted.
    pub(crate) fn admit_known(
        self: &Arc<Self>,
        core: usize,
        visitor: IpAddr,
        permit: Option<Permit>,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || {
            let bounds = self.bounds.load();
            judge(&bounds, visitor)?;
            self.one_of_its_source(&bounds, visitor, permit, now)
        })
    }

    fn one_of_all(self: &Arc<Self>, bounds: &Bounds) -> Result<Option<Permit>, Refusal> {
        if bounds.max_visitors == 0 {
            return Ok(None);
        }
        self.one_more(bounds.max_visitors)?;
        Ok(Some(self.permit(true)))
    }

    fn one_of_its_source(
        self: &Arc<Self>,
        bounds: &Bounds,
        visitor: IpAddr,
        mut permit: Option<Permit>,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        let limited =
            bounds.max_visitors_per_source > 0 || bounds.visitors_per_second_per_source > 0;
        if let (true, Some(sources)) = (limited, self.sources.get()) {
            let source = source(visitor);
            if sources.of(source).open(source, now)? {
                let permit = permit.get_or_insert_with(|| self.permit(false));
                permit.of_source = Some((source, Kind::Visitor));
            }
        }
        Ok(permit)
    }

    /// Admits a UDP visitor who has no flow, as [`Self::admit_visitor`] does for TCP.
    ///
    /// # Errors
    /// The reason for which the visitor is refused, which has been counted.
    pub(crate) fn admit_udp_flow(
        self: &Arc<Self>,
        core: usize,
        visitor: IpAddr,
    ) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || {
            let bounds = self.bounds.load();
            judge(&bounds, visitor)?;
            let most = bounds.max_udp_flows_per_source;
            let Some(sources) = self.udp_sources.get().filter(|_| most > 0) else {
                return Ok(None);
            };
            let source = source(visitor);
            sources.of(source).open(source, most)?;
            let mut permit = self.permit(false);
            permit.of_source = Some((source, Kind::UdpFlow));
            Ok(Some(permit))
        })
    }

    fn counted<T>(
        &self,
        core: usize,
        admit: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let admitted = admit();
        if let Err(refusal) = &admitted {
            refusal.counter(&self.refusals[core]).increment();
        }
        admitted
    }

    fn permit(self: &Arc<Self>, of_all: bool) -> Permit {
        Permit {
            gate: Arc::clone(self),
            of_all,
            of_source: None,
        }
    }

    fn one_more(&self, most: u32) -> Result<(), Refusal> {
        let more = |visitors| (visitors < most).then_some(visitors + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.visitors.fetch_update(set, fetch, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Visitors),
        }
    }

    fn one_less_of(&self, source: IpAddr, kind: Kind) {
        match kind {
            Kind::Visitor => {
                if let Some(sources) = self.sources.get() {
                    sources.of(source).close(source, Instant::now());
                }
            }
            Kind::UdpFlow => {
                if let Some(sources) = self.udp_sources.get() {
                    sources.of(source).close(source);
                }
            }
        }
    }
}

/// Checks `deny` and `allow` for the visitor's address.
fn judge(bounds: &Bounds, visitor: IpAddr) -> Result<(), Refusal> {
    if bounds.denies(visitor) {
        return Err(Refusal::Denied);
    }
    if bounds.does_not_allow(visitor) {
        return Err(Refusal::NotAllowed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(change: impl FnOnce(&mut Bounds)) -> Arc<Gate> {
        let mut bounds = Bounds::default();
        change(&mut bounds);
        Arc::new(Gate::new(&bounds, 2))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn without_bounds_everybody_comes_in_and_holds_nothing() {
        let it = gate(|_| {});
        let now = Instant::now();
        assert!(matches!(it.admit_visitor(0, ip("::1"), now), Ok(None)));
        assert!(matches!(it.admit_udp_flow(1, ip("::1")), Ok(None)));
    }

    #[test]
    fn the_number_of_visitors_is_one_for_all_cores_and_falls_when_they_go() {
        let it = gate(|bounds| bounds.max_visitors = 2);
        let now = Instant::now();
        let come = |core| it.admit_visitor(core, ip("192.0.2.1"), now);
        let (first, _second) = (come(0).expect("in"), come(1).expect("in"));
        for core in [0, 1, 1] {
            assert_eq!(come(core).expect_err("full"), Refusal::Visitors);
        }
        let refused = |core: usize| it.refusals()[core].max_visitors.get();
        assert_eq!((refused(0), refused(1)), (1, 2));
        assert!(it.admit_udp_flow(0, ip("192.0.2.1")).is_ok());
        drop(first);
        let _third = come(0).expect("in");
        assert_eq!(come(0).expect_err("full"), Refusal::Visitors);
    }

    #[test]
    fn who_is_refused_for_its_source_takes_no_place_of_all() {
        let it = gate(|bounds| {
            bounds.max_visitors = 3;
            bounds.max_visitors_per_source = 1;
        });
        let now = Instant::now();
        let come = |from| it.admit_visitor(0, ip(from), now);
        let _first = come("2001:db8::1").expect("in");
        for _ in 0..5 {
            let refusal = come("2001:db8::2").expect_err("of the same 64 bits");
            assert_eq!(refusal, Refusal::VisitorsOfSource);
        }
        let _second = come("2001:db8:0:1::1").expect("of another network");
        let _third = come("192.0.2.1").expect("in");
        assert_eq!(it.visitors.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn other_bounds_hold_for_those_who_come_and_who_is_in_is_counted_on() {
        let it = gate(|bounds| {
            bounds.max_visitors = 2;
            bounds.max_visitors_per_source = 2;
        });
        let now = Instant::now();
        let come = |from| it.admit_visitor(0, ip(from), now);
        let first = come("192.0.2.1").expect("in");
        let _second = come("192.0.2.1").expect("in");
        let fewer = Bounds {
            max_visitors: 1,
            max_visitors_per_source: 1,
            ..Bounds::default()
        };
        it.demand(&fewer);
        drop(first);
        assert_eq!(come("192.0.2.2").expect_err("one is in"), Refusal::Visitors);
        let more = Bounds {
            max_visitors: 0,
            ..fewer
        };
        it.demand(&more);
        let refusal = come("192.0.2.1").expect_err("it is in once");
        assert_eq!(refusal, Refusal::VisitorsOfSource);
        let _another = come("192.0.2.2").expect("in");
        it.demand(&Bounds::default());
        assert!(matches!(come("192.0.2.1"), Ok(None)));
    }

    #[test]
    fn who_came_before_there_was_a_limit_gives_nothing_back_that_others_hold() {
        let it = gate(|bounds| bounds.visitors_per_second_per_source = 100);
        let now = Instant::now();
        let come = || it.admit_visitor(0, ip("192.0.2.1"), now);
        let early = come().expect("in");
        it.demand(&Bounds {
            max_visitors_per_source: 1,
            ..Bounds::default()
        });
        let _held = come().expect("the first that counts");
        drop(early);
        assert_eq!(come().expect_err("full"), Refusal::VisitorsOfSource);
    }

    #[test]
    fn forged_sources_of_udp_close_a_service_to_nobody() {
        let it = gate(|bounds| {
            bounds.max_udp_flows_per_source = 1;
            bounds.max_visitors_per_source = 1;
        });
        // These are more flows than eight cores can have, each from an address of its own.
        let of = |number: u32| IpAddr::from(number.to_be_bytes());
        let forged: Vec<_> = (0..600_000)
            .map(|number| it.admit_udp_flow(0, of(number)).expect("in"))
            .collect();
        assert!(matches!(
            it.admit_udp_flow(0, ip("2001:db8::1")),
            Ok(Some(_))
        ));
        let visitor = it.admit_visitor(0, ip("192.0.2.1"), Instant::now());
        assert!(matches!(visitor, Ok(Some(_))));
        assert_eq!(
            it.admit_udp_flow(1, of(0)).expect_err("it has one"),
            Refusal::UdpFlowsOfSource
        );
        drop(forged);
        let _again = it.admit_udp_flow(1, of(0)).expect("it has none");
    }
}
