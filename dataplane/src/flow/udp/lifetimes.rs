//! The lifetimes of flows, and which flow is evicted when there is no room: the same rules at both
//! ends of a lane. No I/O; time comes in as an argument.
//!
//! Anybody can send a datagram with any source address, so a flow must earn its place. It begins
//! *unanswered*; the service's first datagram makes it *answered*; the visitor's next one after
//! that makes it *established*, because it shows that somebody receives at that address and that
//! the exchange goes on. An unanswered flow lives for a shorter time without a datagram than others
//! do.
//!
//! When there is no room for a new flow, one that is not established is evicted: either among the
//! unanswered or among the answered flows, whichever are more, the one that has been quiet for
//! longest. So strangers whom the service does not answer never cost an answered flow, and
//! strangers whom it does answer (for example a DNS server) never cost a newcomer the time that its
//! answer takes. Established flows are never evicted; if all are established, the new one is
//! refused.
//!
//! One source (an IPv4 address, or an IPv6 network of 64 bits) may have only a part of all flows
//! that are not established; above it, the oldest flow of that source is evicted.
//!
//! Every call takes constant time, except for the deadlines of established flows, which cost one
//! heap operation per flow and timeout.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use slab::Slab;

use super::expiry::Expiry;
use super::order::{Links, List};
use super::room;

/// The fraction of all flows that one source may have, as long as they are not established: eight
/// strangers with a network each must conspire to fill a table.
const SOURCES_TO_FILL: usize = 8;

/// Flows that one source may have in any case: several programs behind one NAT.
const PER_SOURCE_MIN: usize = 16;

/// The limits of one table of flows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most flows.
    pub(crate) flows_max: usize,
    /// How long an unanswered flow lives without a datagram.
    pub(crate) unanswered_timeout: Duration,
    /// How long any other flow lives without a datagram.
    pub(crate) session_timeout: Duration,
}

impl Limits {
    fn per_source_max(&self) -> usize {
        (self.flows_max / SOURCES_TO_FILL).max(PER_SOURCE_MIN)
    }
}

/// How far a flow's exchange has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The service has sent nothing.
    Unanswered,
    /// The service has sent something.
    Answered,
    /// After the answer the visitor has sent something.
    Established,
}

/// Why a flow is evicted for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The table is full.
    Full,
    /// The source has as many as it may have.
    Source,
}

/// Whether there is room for another flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// There is room.
    Free,
    /// There is room when this flow has been taken out.
    Instead(usize, Why),
    /// There is no room: all flows are established.
    None,
}

#[derive(Debug)]
struct Life<T> {
    /// Tells apart the flows that have the same key one after the other.
    serial: u64,
    stage: Stage,
    source: IpAddr,
    last_activity: Instant,
    value: T,
}

/// Flows with their lifetimes, by slab keys.
#[derive(Debug)]
pub(crate) struct Lifetimes<T> {
    limits: Limits,
    flows: Slab<Life<T>>,
    next_serial: u64,
    /// Links of the two lists below, each ordered by last activity.
    by_activity: Links,
    unanswered: List,
    answered: List,
    /// Links of the lists of each source: its flows that are not established, in the order in which
    /// they were opened.
    by_opening: Links,
    // Visitors choose their addresses, so the hash is one for which they cannot choose collisions.
    sources: HashMap<IpAddr, List>,
    /// Deadlines of the established flows.
    expiry: Expiry<(usize, u64)>,
}

impl<T> Lifetimes<T> {
    pub(crate) fn new(limits: Limits) -> Lifetimes<T> {
        Lifetimes {
            limits,
            flows: Slab::new(),
            next_serial: 0,
            by_activity: Links::default(),
            unanswered: List::default(),
            answered: List::default(),
            by_opening: Links::default(),
            sources: HashMap::new(),
            expiry: Expiry::new(limits.session_timeout),
        }
    }

    /// Sets how many flows there may be from now on.
    pub(crate) fn set_flows_max(&mut self, flows_max: usize) {
        self.limits.flows_max = flows_max;
    }

    /// Number of flows.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Number of flows that there is memory for.
    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        let links = self.by_activity.places().max(self.by_opening.places());
        let places = self.flows.capacity().max(links);
        places
            .max(self.sources.capacity())
            .max(self.expiry.places())
    }

    pub(crate) fn get(&self, key: usize) -> Option<&T> {
        self.flows.get(key).map(|life| &life.value)
    }

    pub(crate) fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        self.flows.get_mut(key).map(|life| &mut life.value)
    }

    /// The stage of a flow.
    pub(crate) fn stage(&self, key: usize) -> Option<Stage> {
        self.flows.get(key).map(|life| life.stage)
    }

    /// Whether a flow of a visitor at `ip` may be opened, and which flow is to be evicted for it.
    pub(crate) fn room_for(&self, ip: IpAddr) -> Room {
        let of_source = self.sources.get(&source(ip));
        if let Some(list) = of_source
            && list.len() >= self.limits.per_source_max()
            && let Some(oldest) = list.oldest()
        {
            return Room::Instead(oldest, Why::Source);
        }
        if self.flows.len() < self.limits.flows_max {
            return Room::Free;
        }
        let longer = if self.answered.len() > self.unanswered.len() {
            self.answered
        } else {
            self.unanswered
        };
        longer
            .oldest()
            .map_or(Room::None, |oldest| Room::Instead(oldest, Why::Full))
    }

    /// Adds a new flow, unanswered, of a visitor at `ip`. The caller has asked
    /// [`Lifetimes::room_for`].
    pub(crate) fn open(&mut self, ip: IpAddr, value: T, now: Instant) -> usize {
        let source = source(ip);
        let key = self.flows.insert(Life {
            serial: self.next_serial,
            stage: Stage::Unanswered,
            source,
            last_activity: now,
            value,
        });
        self.next_serial += 1;
        self.by_activity.push(&mut self.unanswered, key);
        let of_source = self.sources.entry(source).or_default();
        self.by_opening.push(of_source, key);
        key
    }

    /// Notes that the visitor has sent a datagram.
    pub(crate) fn asked(&mut self, key: usize, now: Instant) {
        let Some(life) = self.flows.get_mut(key) else {
            return;
        };
        life.last_activity = now;
        match life.stage {
            Stage::Unanswered => self.by_activity.renew(&mut self.unanswered, key),
            Stage::Answered => {
                life.stage = Stage::Established;
                let (serial, source) = (life.serial, life.source);
                self.by_activity.remove(&mut self.answered, key);
                self.leave_source(key, source);
                let flows = &self.flows;
                self.expiry
                    .watch((key, serial), now, flows.len(), |(key, serial)| {
                        flows.get(key).is_some_and(|life| life.serial == serial)
                    });
            }
            Stage::Established => {}
        }
    }

    /// Notes that the service has sent a datagram. Returns true if it is the flow's first.
    pub(crate) fn answered(&mut self, key: usize, now: Instant) -> bool {
        let Some(life) = self.flows.get_mut(key) else {
            return false;
        };
        life.last_activity = now;
        match life.stage {
            Stage::Unanswered => {
                life.stage = Stage::Answered;
                self.by_activity.remove(&mut self.unanswered, key);
                self.by_activity.push(&mut self.answered, key);
                return true;
            }
            Stage::Answered => self.by_activity.renew(&mut self.answered, key),
            Stage::Established => {}
        }
        false
    }

    /// Removes a flow.
    pub(crate) fn remove(&mut self, key: usize) -> Option<T> {
        let life = self.flows.try_remove(key)?;
        match life.stage {
            Stage::Unanswered => self.by_activity.remove(&mut self.unanswered, key),
            Stage::Answered => self.by_activity.remove(&mut self.answered, key),
            Stage::Established => return Some(life.value),
        }
        self.leave_source(key, life.source);
        Some(life.value)
    }

    /// Gives memory back after a flood. Keys stay the same, so only the places behind the last flow
    /// can be freed; flows that outlive a flood were mostly there before it.
    fn give_room_back(&mut self) {
        self.expiry.give_room_back();
        if self.flows.capacity() > room::CAPACITY_KEPT
            && self.flows.len() < self.flows.capacity() / 4
        {
            self.flows.shrink_to_fit();
            let places = self.flows.capacity();
            self.by_activity.shrink_to(places);
            self.by_opening.shrink_to(places);
        }
    }

    fn leave_source(&mut self, key: usize, source: IpAddr) {
        if let Some(list) = self.sources.get_mut(&source) {
            self.by_opening.remove(list, key);
            if list.len() == 0 {
                self.sources.remove(&source);
                room::give_back(&mut self.sources);
            }
        }
    }

    /// The next flow that has expired, which must be removed. Flows for which `kept` is true count
    /// as active now instead. The caller must call this now and then until there is none: only then
    /// is memory given back, which may walk over all places.
    pub(crate) fn next_expired(
        &mut self,
        now: Instant,
        kept: impl Fn(&T) -> bool,
    ) -> Option<usize> {
        for stage in [Stage::Unanswered, Stage::Answered] {
            while let Some(key) = self.oldest_due(stage, now) {
                if !kept(&self.flows[key].value) {
                    return Some(key);
                }
                self.flows[key].last_activity = now;
                let list = match stage {
                    Stage::Unanswered => &mut self.unanswered,
                    _ => &mut self.answered,
                };
                self.by_activity.renew(list, key);
            }
        }
        let flows = &self.flows;
        let due = self.expiry.next_due(now, |(key, serial)| {
            let life = flows.get(key).filter(|life| life.serial == serial)?;
            Some(if kept(&life.value) {
                now
            } else {
                life.last_activity
            })
        });
        if due.is_none() {
            self.give_room_back();
        }
        due.map(|(key, _)| key)
    }

    fn oldest_due(&self, stage: Stage, now: Instant) -> Option<usize> {
        let (list, timeout) = match stage {
            Stage::Unanswered => (&self.unanswered, self.limits.unanswered_timeout),
            _ => (&self.answered, self.limits.session_timeout),
        };
        let oldest = list.oldest()?;
        let quiet = now.saturating_duration_since(self.flows[oldest].last_activity);
        (quiet >= timeout).then_some(oldest)
    }
}

/// The source that an address belongs to.
pub(crate) fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let network = u128::from(ip) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
#[path = "lifetimes_tests.rs"]
mod tests;
