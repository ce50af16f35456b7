//! How many TCP visitors each source has at a time, and how often it comes. There is no clock in
//! here: time comes in as an argument.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits, which is what one subscriber has. The
//! table is bounded. A source that has no visitor and whose rate has recovered is forgotten. When
//! the table is full of sources that cannot be forgotten, new sources are refused, because
//! forgetting one of the others would let it in again and again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::refusals::Refusal;

/// Time between two searches for sources that can be forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// The limits for TCP visitors of each source; zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SourceLimits {
    /// TCP visitors of one source at a time.
    pub(super) visitors_max: u32,
    /// New TCP visitors of one source per second, and as many at once.
    pub(super) visitors_per_second: u32,
    /// Sources that the table holds at a time.
    pub(super) sources_max: usize,
}

impl SourceLimits {
    /// Whether sources have to be tracked at all.
    pub(super) fn limit_something(&self) -> bool {
        self.visitors_max > 0 || self.visitors_per_second > 0
    }
}

#[derive(Debug)]
struct Source {
    /// TCP visitors of the source who are in, if their number is limited. With a limit of the rate
    /// alone nothing is counted here, so that a source can be forgotten while its visitors stay.
    visitors: u32,
    /// The time at which the rate of the source has recovered from all visitors so far (the
    /// theoretical arrival time of the generic cell rate algorithm). The more visitors have come of
    /// late, the later this is.
    recovered_at: Instant,
}

impl Source {
    fn is_idle(&self, now: Instant) -> bool {
        self.visitors == 0 && self.recovered_at <= now
    }
}

/// The sources that have visitors, or have had new ones recently.
#[derive(Debug)]
pub(super) struct Sources {
    limits: SourceLimits,
    // Visitors choose their addresses, so the hash is one for which they cannot choose collisions.
    known: HashMap<IpAddr, Source>,
    forget_at: Option<Instant>,
}

impl Sources {
    pub(super) fn new(limits: SourceLimits) -> Sources {
        Sources {
            limits,
            known: HashMap::new(),
            forget_at: None,
        }
    }

    /// Replaces the limits. They hold for visitors who come from now on.
    pub(super) fn limit(&mut self, limits: SourceLimits) {
        self.limits = limits;
    }

    /// Counts one more visitor of a source, or refuses it. Returns true if [`Self::close`] must be
    /// called when the visitor has gone.
    pub(super) fn open(&mut self, source: IpAddr, now: Instant) -> Result<bool, Refusal> {
        if self.forget_at.is_none_or(|at| at <= now) {
            self.known.retain(|_, source| !source.is_idle(now));
            self.forget_at = Some(now + FORGET_INTERVAL);
        }
        let limits = self.limits;
        if !self.known.contains_key(&source) && self.known.len() >= limits.sources_max {
            return Err(Refusal::SourcesFull);
        }
        let entry = self.known.entry(source).or_insert(Source {
            visitors: 0,
            recovered_at: now,
        });
        if limits.visitors_max > 0 && entry.visitors >= limits.visitors_max {
            return Err(Refusal::VisitorsOfSource);
        }
        if let Some(interval) = interval(limits.visitors_per_second) {
            let recovered_at = entry.recovered_at.max(now) + interval;
            if recovered_at > now + interval * limits.visitors_per_second {
                return Err(Refusal::RateOfSource);
            }
            entry.recovered_at = recovered_at;
        }
        let counts = limits.visitors_max > 0;
        entry.visitors += u32::from(counts);
        Ok(counts)
    }

    /// Counts one visitor of a source less.
    pub(super) fn close(&mut self, source: IpAddr, now: Instant) {
        let Some(entry) = self.known.get_mut(&source) else {
            return;
        };
        entry.visitors = entry.visitors.saturating_sub(1);
        if entry.is_idle(now) {
            self.known.remove(&source);
        }
    }
}

/// The share of its source's rate that one visitor takes, as a time.
fn interval(per_second: u32) -> Option<Duration> {
    Duration::from_secs(1).checked_div(per_second)
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
