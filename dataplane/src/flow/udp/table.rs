//! The server's UDP flows of one traffic socket, by visitor and by flow id. No I/O; time comes in as an argument.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxBuildHasher;
use slab::Slab;

use super::expiry::Expiry;

/// Flows of one traffic socket, which is one per listener and core. Source addresses can be forged, so there must be
/// a limit; one flow costs about 400 bytes here, and a socket has 64,512 ports from one address at most (RFC 6335).
pub(super) const FLOWS_MAX: usize = 65_536;

/// A lane within one table. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LaneToken(u64);

/// One visitor's flow.
#[derive(Debug)]
pub(super) struct Flow<T> {
    /// Where its datagrams come from.
    pub(super) visitor: SocketAddr,
    /// The lane that carries it.
    pub(super) lane: LaneToken,
    /// Its number on that lane, counted from 0 and never used again.
    pub(super) id: u64,
    /// True once the peer has shown that it knows the flow; until then datagrams introduce it.
    pub(super) known: bool,
    last_activity: Instant,
    /// What the owner keeps of it.
    pub(super) data: T,
}

/// Why a flow could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    /// There are as many flows as there may be.
    TableFull,
    /// The lane has ended.
    LaneEnded,
}

#[derive(Debug, Default)]
struct LaneFlows {
    next_id: u64,
    // Ids are ours, so a fast hash is safe.
    by_id: HashMap<u64, usize, FxBuildHasher>,
}

/// The flows, their two indexes and their deadlines.
#[derive(Debug)]
pub(super) struct Table<T> {
    flows: Slab<Flow<T>>,
    // Visitors choose their addresses: hashed so that they cannot choose collisions.
    by_visitor: HashMap<SocketAddr, usize>,
    lanes: HashMap<LaneToken, LaneFlows, FxBuildHasher>,
    next_lane: u64,
    expiry: Expiry<(LaneToken, u64)>,
    flows_max: usize,
}

impl<T> Table<T> {
    pub(super) fn new(timeout: Duration, flows_max: usize) -> Table<T> {
        Table {
            flows: Slab::new(),
            by_visitor: HashMap::new(),
            lanes: HashMap::default(),
            next_lane: 0,
            expiry: Expiry::new(timeout),
            flows_max,
        }
    }

    /// Makes room for the flows of another lane.
    pub(super) fn add_lane(&mut self) -> LaneToken {
        let token = LaneToken(self.next_lane);
        self.next_lane += 1;
        self.lanes.insert(token, LaneFlows::default());
        token
    }

    /// Whether another flow may be opened.
    pub(super) fn has_room(&self) -> bool {
        self.flows.len() < self.flows_max
    }

    /// All flows.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// The flows of one lane.
    pub(super) fn lane_len(&self, lane: LaneToken) -> usize {
        self.lanes.get(&lane).map_or(0, |lane| lane.by_id.len())
    }

    /// Opens the flow of a visitor that has none.
    pub(super) fn open(
        &mut self,
        visitor: SocketAddr,
        lane: LaneToken,
        data: T,
        now: Instant,
    ) -> Result<&mut Flow<T>, OpenError> {
        assert!(
            !self.by_visitor.contains_key(&visitor),
            "{visitor} has a flow already"
        );
        if !self.has_room() {
            return Err(OpenError::TableFull);
        }
        let lane_flows = self.lanes.get_mut(&lane).ok_or(OpenError::LaneEnded)?;
        let id = lane_flows.next_id;
        lane_flows.next_id += 1;
        let key = self.flows.insert(Flow {
            visitor,
            lane,
            id,
            known: false,
            last_activity: now,
            data,
        });
        lane_flows.by_id.insert(id, key);
        self.by_visitor.insert(visitor, key);
        let lanes = &self.lanes;
        self.expiry
            .watch((lane, id), now, self.flows.len(), |(lane, id)| {
                lanes
                    .get(&lane)
                    .is_some_and(|lane| lane.by_id.contains_key(&id))
            });
        Ok(&mut self.flows[key])
    }

    /// A datagram came from `visitor`: its flow, if it has one.
    pub(super) fn packet_from(
        &mut self,
        visitor: SocketAddr,
        now: Instant,
    ) -> Option<&mut Flow<T>> {
        let flow = &mut self.flows[*self.by_visitor.get(&visitor)?];
        flow.last_activity = now;
        Some(flow)
    }

    /// A datagram of a flow came through `lane`, so the peer knows that flow.
    pub(super) fn packet_through(
        &mut self,
        lane: LaneToken,
        id: u64,
        now: Instant,
    ) -> Option<&mut Flow<T>> {
        let flow = &mut self.flows[*self.lanes.get(&lane)?.by_id.get(&id)?];
        flow.last_activity = now;
        flow.known = true;
        Some(flow)
    }

    /// The peer does not know the flow (any more): it is introduced again. False if we do not know it either.
    pub(super) fn introduce_again(&mut self, lane: LaneToken, id: u64) -> bool {
        let key = self
            .lanes
            .get(&lane)
            .and_then(|lane| lane.by_id.get(&id).copied());
        if let Some(key) = key {
            self.flows[key].known = false;
        }
        key.is_some()
    }

    /// Ends a flow.
    pub(super) fn close(&mut self, lane: LaneToken, id: u64) -> Option<Flow<T>> {
        let key = self.lanes.get_mut(&lane)?.by_id.remove(&id)?;
        let flow = self.flows.remove(key);
        self.by_visitor.remove(&flow.visitor);
        Some(flow)
    }

    /// Ends the flow of a visitor if it is on `lane`.
    pub(super) fn close_visitor(
        &mut self,
        visitor: SocketAddr,
        lane: LaneToken,
    ) -> Option<Flow<T>> {
        let flow = &self.flows[*self.by_visitor.get(&visitor)?];
        if flow.lane != lane {
            return None;
        }
        let id = flow.id;
        self.close(lane, id)
    }

    /// Ends a lane with all its flows.
    pub(super) fn end_lane(&mut self, lane: LaneToken) -> Vec<Flow<T>> {
        let Some(lane) = self.lanes.remove(&lane) else {
            return Vec::new();
        };
        let flows: Vec<Flow<T>> = lane
            .by_id
            .into_values()
            .map(|key| self.flows.remove(key))
            .collect();
        for flow in &flows {
            self.by_visitor.remove(&flow.visitor);
        }
        flows
    }

    /// Ends the next flow that was last active a timeout ago or longer. Those that are `kept` live
    /// for another timeout.
    pub(super) fn expire_next(
        &mut self,
        now: Instant,
        kept: impl Fn(&T) -> bool,
    ) -> Option<Flow<T>> {
        let (lanes, flows) = (&self.lanes, &self.flows);
        let (lane, id) = self.expiry.next_due(now, |(lane, id)| {
            let key = *lanes.get(&lane)?.by_id.get(&id)?;
            let flow = &flows[key];
            Some(if kept(&flow.data) {
                now
            } else {
                flow.last_activity
            })
        })?;
        self.close(lane, id)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
