//! What a service demands of its visitors before they cost it anything: one gate for each service,
//! which all cores ask. It is asked when a visitor comes, TCP or UDP, and told when its flow ends,
//! and never for its bytes or for a datagram of a flow that is known.

mod refusals;
mod sources;

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qmux_config::Bounds;

use crate::flow::bandwidth::Bandwidth;
use crate::flow::udp::lives::source;
pub(crate) use refusals::{Refusal, RefusalCounters};
use sources::{Kind, SourceLimits, Sources};

/// Parts of the table of sources, each with a lock of its own: so that cores seldom wait for each
/// other.
const SHARDS: usize = 16;

/// Sources of one service that are known at a time: some 10 MiB, and more than visitors have
/// descriptors on most machines.
const SOURCES_MAX: usize = 131_072;

/// The gate of one service.
#[derive(Debug)]
pub(crate) struct Gate {
    bounds: Bounds,
    /// TCP visitors who are in, if their number is limited.
    visitors: AtomicU32,
    /// If anything is limited by source.
    sources: Option<Shards>,
    /// Of each core.
    refusals: Vec<RefusalCounters>,
}

/// The sources of a service.
#[derive(Debug)]
struct Shards {
    // Visitors choose their addresses, and must not be able to choose one shard for all of them.
    hasher: RandomState,
    shards: Vec<Mutex<Sources>>,
}

impl Shards {
    fn new(limits: SourceLimits) -> Shards {
        Shards {
            hasher: RandomState::new(),
            shards: (0..SHARDS)
                .map(|_| Mutex::new(Sources::new(limits)))
                .collect(),
        }
    }

    fn of(&self, source: IpAddr) -> MutexGuard<'_, Sources> {
        let hash = self.hasher.hash_one(source) % SHARDS as u64;
        let shard = &self.shards[usize::try_from(hash).unwrap_or_default()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a visitor or a flow takes up at a gate; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    /// It is one of all visitors.
    of_all: bool,
    /// It is one of its source.
    of_source: Option<(IpAddr, Kind)>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.of_all {
            self.gate.visitors.fetch_sub(1, Ordering::Relaxed);
        }
        if let (Some((source, kind)), Some(sources)) = (self.of_source, &self.gate.sources) {
            sources.of(source).close(source, kind, Instant::now());
        }
    }
}

impl Gate {
    /// Of a service with these bounds.
    pub(crate) fn new(bounds: &Bounds, cores: usize) -> Gate {
        let limits = SourceLimits {
            visitors_max: bounds.max_visitors_per_source,
            visitors_per_second: bounds.visitors_per_second_per_source,
            udp_flows_max: bounds.max_udp_flows_per_source,
            sources_max: SOURCES_MAX / SHARDS,
        };
        Gate {
            bounds: bounds.clone(),
            visitors: AtomicU32::new(0),
            sources: limits.limit_something().then(|| Shards::new(limits)),
            refusals: (0..cores).map(|_| RefusalCounters::default()).collect(),
        }
    }

    /// How long a TCP flow may move nothing; zero: for ever.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.bounds.idle_timeout
    }

    /// What a flow that begins now may carry, TCP or UDP; `None`: as much as it can.
    pub(crate) fn bandwidth(&self, now: Instant) -> Option<Box<Bandwidth>> {
        Bandwidth::of(self.bounds.bandwidth_per_visitor, now)
    }

    /// What each core has refused.
    pub(crate) fn refusals(&self) -> &[RefusalCounters] {
        &self.refusals
    }

    /// Whether a TCP visitor may come in that has come to `core`. What it is given it holds until
    /// its flow ends; nothing if nothing is limited.
    ///
    /// # Errors
    /// Why not; it has been counted.
    pub(crate) fn admit_visitor(
        self: &Arc<Self>,
        core: usize,
        visitor: IpAddr,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || {
            self.judge(visitor)?;
            let permit = self.one_of_all()?;
            self.one_of_its_source(visitor, permit, now)
        })
    }

    /// Whether TCP visitors from there must begin with a PROXY header.
    pub(crate) fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        self.bounds.accept_proxy_from.contains(peer)
    }

    /// The first half of [`Self::admit_visitor`], for one whose address is not known yet.
    ///
    /// # Errors
    /// Why not; it has been counted.
    pub(crate) fn admit_unknown(self: &Arc<Self>, core: usize) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || self.one_of_all())
    }

    /// The second half: its address is known now.
    ///
    /// # Errors
    /// Why not; it has been counted.
    pub(crate) fn admit_known(
        self: &Arc<Self>,
        core: usize,
        visitor: IpAddr,
        permit: Option<Permit>,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || {
            self.judge(visitor)?;
            self.one_of_its_source(visitor, permit, now)
        })
    }

    fn one_of_all(self: &Arc<Self>) -> Result<Option<Permit>, Refusal> {
        if self.bounds.max_visitors == 0 {
            return Ok(None);
        }
        self.one_more()?;
        Ok(Some(self.permit(true)))
    }

    fn one_of_its_source(
        self: &Arc<Self>,
        visitor: IpAddr,
        mut permit: Option<Permit>,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        let limited = self.bounds.max_visitors_per_source > 0
            || self.bounds.visitors_per_second_per_source > 0;
        if limited {
            self.one_more_of(visitor, Kind::Visitor, now, &mut permit)?;
        }
        Ok(permit)
    }

    /// The same for a UDP visitor that has no flow.
    ///
    /// # Errors
    /// Why not; it has been counted.
    pub(crate) fn admit_udp_flow(
        self: &Arc<Self>,
        core: usize,
        visitor: IpAddr,
        now: Instant,
    ) -> Result<Option<Permit>, Refusal> {
        self.counted(core, || {
            self.judge(visitor)?;
            let mut permit = None;
            if self.bounds.max_udp_flows_per_source > 0 {
                self.one_more_of(visitor, Kind::UdpFlow, now, &mut permit)?;
            }
            Ok(permit)
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

    fn judge(&self, visitor: IpAddr) -> Result<(), Refusal> {
        if self.bounds.denies(visitor) {
            return Err(Refusal::Denied);
        }
        if self.bounds.does_not_allow(visitor) {
            return Err(Refusal::NotAllowed);
        }
        Ok(())
    }

    fn permit(self: &Arc<Self>, of_all: bool) -> Permit {
        Permit {
            gate: Arc::clone(self),
            of_all,
            of_source: None,
        }
    }

    fn one_more(&self) -> Result<(), Refusal> {
        let more = |visitors| (visitors < self.bounds.max_visitors).then_some(visitors + 1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.visitors.fetch_update(set, fetch, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Visitors),
        }
    }

    fn one_more_of(
        self: &Arc<Self>,
        visitor: IpAddr,
        kind: Kind,
        now: Instant,
        permit: &mut Option<Permit>,
    ) -> Result<(), Refusal> {
        let Some(sources) = &self.sources else {
            return Ok(());
        };
        let source = source(visitor);
        sources.of(source).open(source, kind, now)?;
        let permit = permit.get_or_insert_with(|| self.permit(false));
        permit.of_source = Some((source, kind));
        Ok(())
    }
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
        assert!(matches!(it.admit_udp_flow(1, ip("::1"), now), Ok(None)));
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
        assert!(it.admit_udp_flow(0, ip("192.0.2.1"), now).is_ok());
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
}
