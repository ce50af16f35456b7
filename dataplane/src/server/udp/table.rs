//! The server's UDP flows of one traffic socket, by visitor and by flow id. It does no I/O; time
//! comes in as an argument.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use rustc_hash::FxBuildHasher;

use super::budget::Budget;
use crate::flow::udp::lifetimes::{Lifetimes, Limits, Room, Stage, Why};
use crate::flow::udp::room;

/// A lane as tables know it. Tokens are never used twice on a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LaneToken(u64);

impl LaneToken {
    /// Stands in place of a lane for flows on lanes of other cores.
    pub(super) const ELSEWHERE: LaneToken = LaneToken(0);

    /// The token after this one; the first one is [`Self::ELSEWHERE`].
    pub(super) fn next(self) -> LaneToken {
        LaneToken(self.0 + 1)
    }
}

/// One visitor's flow.
#[derive(Debug)]
pub(super) struct Flow<T> {
    /// The address that the flow's datagrams come from.
    pub(super) visitor: SocketAddr,
    /// The lane that carries the flow.
    pub(super) lane: LaneToken,
    /// The flow's id on that lane, by which the peer knows it. Ids are never used twice.
    pub(super) id: u64,
    /// Whether the peer has shown that it knows the flow; until then datagrams introduce it.
    pub(super) known: bool,
    /// What the owner of the table keeps with the flow.
    pub(super) data: T,
}

/// The table has as many flows as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TableFull;

/// The flows of one lane by their id. Ids are our own, so a fast hash is safe.
type ById = HashMap<u64, usize, FxBuildHasher>;

/// Whether a visitor who has no flow may get one.
#[derive(Debug)]
pub(super) enum Admission<T> {
    /// There is room for the flow.
    Free,
    /// There is room, because this flow was ended.
    Instead(Flow<T>, Why),
    /// There is no room.
    None,
}

/// The flows with their two indexes and their lifetimes.
#[derive(Debug)]
pub(super) struct Table<T> {
    flows: Lifetimes<Flow<T>>,
    // Visitors choose their addresses, so the hash is one for which they cannot choose collisions.
    by_visitor: HashMap<SocketAddr, usize>,
    /// The lanes that have flows in this table.
    lanes: HashMap<LaneToken, ById, FxBuildHasher>,
    flows_max: usize,
    /// The bound for all tables of the core together.
    budget: Rc<Budget>,
}

impl<T> Table<T> {
    /// An empty table that shares `budget` with others.
    pub(super) fn new(limits: Limits, budget: Rc<Budget>) -> Table<T> {
        budget.joined();
        Table {
            budget,
            flows: Lifetimes::new(limits),
            by_visitor: HashMap::new(),
            lanes: HashMap::default(),
            flows_max: limits.flows_max,
        }
    }

    /// Makes room for a flow of `visitor`, at the cost of another one if need be. A flow for which
    /// `answered` returns true, because its service has answered on another core, counts as
    /// answered.
    pub(super) fn make_room(
        &mut self,
        visitor: SocketAddr,
        now: Instant,
        answered: impl Fn(&T) -> bool,
    ) -> Admission<T> {
        let allowed = self.budget.allowed(self.flows.len());
        self.flows.set_flows_max(allowed.min(self.flows_max));
        loop {
            let (key, why) = match self.flows.room_for(visitor.ip()) {
                Room::Free => return Admission::Free,
                Room::None => return Admission::None,
                Room::Instead(key, why) => (key, why),
            };
            // Each flow passes this once in its life, so it costs little on the whole.
            let unanswered = self.flows.stage(key) == Some(Stage::Unanswered);
            if unanswered && self.flows.get(key).is_some_and(|flow| answered(&flow.data)) {
                self.flows.answered(key, now);
                if why == Why::Source {
                    // A visitor's flow on another core counts as established, because that core
                    // applies its own rules to it.
                    self.flows.asked(key, now);
                }
                continue;
            }
            return match self.take_out(key) {
                Some(flow) => Admission::Instead(flow, why),
                None => Admission::None,
            };
        }
    }

    /// How many flows the table has memory for.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        let of_lanes = self.lanes.values().map(ById::capacity);
        let most = of_lanes.fold(self.by_visitor.capacity(), usize::max);
        most.max(self.flows.places())
    }

    /// Number of flows.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Number of flows of one lane.
    pub(super) fn lane_len(&self, lane: LaneToken) -> usize {
        self.lanes.get(&lane).map_or(0, ById::len)
    }

    /// Opens the flow of a visitor who has none. The caller has called [`Table::make_room`], and
    /// has got the `id` from the lane.
    pub(super) fn open(
        &mut self,
        visitor: SocketAddr,
        lane: LaneToken,
        id: u64,
        data: T,
        now: Instant,
    ) -> Result<&mut Flow<T>, TableFull> {
        assert!(
            !self.by_visitor.contains_key(&visitor),
            "{visitor} has a flow already"
        );
        if self.flows.len() >= self.flows_max {
            return Err(TableFull);
        }
        let flow = Flow {
            visitor,
            lane,
            id,
            known: false,
            data,
        };
        self.budget.opened();
        let key = self.flows.open(visitor.ip(), flow, now);
        self.lanes.entry(lane).or_default().insert(id, key);
        self.by_visitor.insert(visitor, key);
        self.flows.get_mut(key).ok_or(TableFull)
    }

    /// Handles a datagram from `visitor`: returns the visitor's flow, if it has one.
    pub(super) fn packet_from(
        &mut self,
        visitor: SocketAddr,
        now: Instant,
    ) -> Option<&mut Flow<T>> {
        let key = *self.by_visitor.get(&visitor)?;
        self.flows.asked(key, now);
        self.flows.get_mut(key)
    }

    /// Handles a datagram of a flow that came through `lane`, by which the peer shows that it knows
    /// the flow. Returns true with the first one.
    pub(super) fn packet_through(
        &mut self,
        lane: LaneToken,
        id: u64,
        now: Instant,
    ) -> Option<(&mut Flow<T>, bool)> {
        let key = *self.lanes.get(&lane)?.get(&id)?;
        let first = self.flows.answered(key, now);
        let flow = self.flows.get_mut(key)?;
        flow.known = true;
        Some((flow, first))
    }

    /// The stage of a visitor's flow.
    #[cfg(test)]
    pub(super) fn stage_of(&self, visitor: SocketAddr) -> Option<Stage> {
        self.flows.stage(*self.by_visitor.get(&visitor)?)
    }

    /// Whether there is such a flow and its service has sent nothing.
    pub(super) fn is_unanswered(&self, lane: LaneToken, id: u64) -> bool {
        let lane = self.lanes.get(&lane);
        let key = lane.and_then(|lane| lane.get(&id));
        key.is_some_and(|key| self.flows.stage(*key) == Some(Stage::Unanswered))
    }

    /// Makes the flow's next datagram introduce it, because the peer does not know the flow (any
    /// more). Returns false if there is no such flow here either.
    pub(super) fn introduce_again(&mut self, lane: LaneToken, id: u64) -> bool {
        let key = self
            .lanes
            .get(&lane)
            .and_then(|lane| lane.get(&id).copied());
        let flow = key.and_then(|key| self.flows.get_mut(key));
        flow.map(|flow| flow.known = false).is_some()
    }

    /// Ends a flow and returns it.
    pub(super) fn close(&mut self, lane: LaneToken, id: u64) -> Option<Flow<T>> {
        let key = *self.lanes.get(&lane)?.get(&id)?;
        self.take_out(key)
    }

    /// Ends the flow of a visitor if it is on `lane`.
    pub(super) fn close_visitor(
        &mut self,
        visitor: SocketAddr,
        lane: LaneToken,
    ) -> Option<Flow<T>> {
        let key = *self.by_visitor.get(&visitor)?;
        let there = self.flows.get(key).is_some_and(|flow| flow.lane == lane);
        there.then(|| self.take_out(key)).flatten()
    }

    /// Ends all flows of a lane and returns them.
    pub(super) fn end_lane(&mut self, lane: LaneToken) -> Vec<Flow<T>> {
        let Some(lane) = self.lanes.remove(&lane) else {
            return Vec::new();
        };
        let keys = lane.into_values();
        keys.filter_map(|key| self.take_out(key)).collect()
    }

    /// Ends the next flow that has expired. Flows for which `kept` is true live on.
    pub(super) fn expire_next(
        &mut self,
        now: Instant,
        kept: impl Fn(&T) -> bool,
    ) -> Option<(Flow<T>, Stage)> {
        let key = self.flows.next_expired(now, |flow| kept(&flow.data))?;
        let stage = self.flows.stage(key)?;
        Some((self.take_out(key)?, stage))
    }

    fn take_out(&mut self, key: usize) -> Option<Flow<T>> {
        let flow = self.flows.remove(key)?;
        self.budget.closed();
        self.by_visitor.remove(&flow.visitor);
        room::give_back(&mut self.by_visitor);
        if let Some(lane) = self.lanes.get_mut(&flow.lane) {
            lane.remove(&flow.id);
            room::give_back(lane);
            if lane.is_empty() {
                self.lanes.remove(&flow.lane);
            }
        }
        Some(flow)
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        self.budget.left(self.flows.len());
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
