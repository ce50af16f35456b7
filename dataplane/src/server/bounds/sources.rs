//! How many TCP visitors each source has at a time, and how often it comes. No clock: time comes in
//! as an argument.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits, which is what one subscriber has. The
//! table is bounded. A source that has nothing and whose rate has recovered is forgotten; if as many
//! as there may be have something, further ones are refused, because to forget one of these would
//! be to let it in again and again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::refusals::Refusal;

/// Time between two searches for sources to forget.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// What a source may have of TCP visitors; zero: as many as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SourceLimits {
    /// At a time.
    pub(super) visitors_max: u32,
    /// Per second, and as many at once.
    pub(super) visitors_per_second: u32,
    /// Sources that are known at a time.
    pub(super) sources_max: usize,
}

impl SourceLimits {
    /// Whether sources have to be known at all.
    pub(super) fn limit_something(&self) -> bool {
        self.visitors_max > 0 || self.visitors_per_second > 0
    }
}

#[derive(Debug)]
struct Source {
    /// TCP visitors who are in, if their number is limited: a rate alone keeps no source known for
    /// as long as its visitors stay.
    visitors: u32,
    /// When its rate has recovered from all visitors so far (the generic cell rate algorithm's
    /// theoretical arrival time): the later, the more have come of late.
    recovered_at: Instant,
}

impl Source {
    fn is_idle(&self, now: Instant) -> bool {
        self.visitors == 0 && self.recovered_at <= now
    }
}

/// The sources that have something, or have come of late.
#[derive(Debug)]
pub(super) struct Sources {
    limits: SourceLimits,
    // Visitors choose their addresses: hashed so that they cannot choose collisions.
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

    /// Other limits hold from now on.
    pub(super) fn limit(&mut self, limits: SourceLimits) {
        self.limits = limits;
    }

    /// A source wants one more; it has it if this is no error. True if it must be told when the
    /// source has it no more.
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

    /// A source has one less.
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

/// The time that one visitor takes up of its source's rate.
fn interval(per_second: u32) -> Option<Duration> {
    Duration::from_secs(1).checked_div(per_second)
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
