//! The reassembler: finds the packet of a fragment, keeps the limits, and gives packets up.

use std::collections::HashMap;
use std::time::Instant;

use super::buffers::Buffers;
use super::counters::Counters;
use super::drop_reason::DropReason;
use super::flow::Flow;
use super::limits::Limits;
use super::list::{Links, List};
use super::packet::{self, Packet};
use super::slots::{Slot, Slots};

/// The incomplete packets of one lane.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    counters: Counters,
    buffers: Buffers,
    /// The packet that the last push returned.
    completed: Box<[u8]>,

    packets: Slots<Packet>,
    packet_of: HashMap<(u64, u64), Slot>,
    /// All packets by age, so that the oldest is the next to expire.
    age_links: Links,
    age: List,
    /// The packets of each flow by age; the list's ends are in the flow.
    sibling_links: Links,

    flows: Slots<Flow>,
    flow_of: HashMap<u64, Slot>,
    /// All flows by the last time that they started a packet.
    recency_links: Links,
    recency: List,
}

impl Reassembler {
    /// A reassembler without packets. It allocates only as far as it is used.
    ///
    /// # Panics
    ///
    /// If a limit is 0, or if `bytes_max` is below [`BYTES_MAX_MIN`](super::BYTES_MAX_MIN).
    pub fn new(limits: Limits) -> Self {
        limits.assert_valid();
        Self {
            limits,
            counters: Counters::default(),
            buffers: Buffers::new(limits.bytes_max),
            completed: Box::default(),
            packets: Slots::new(),
            packet_of: HashMap::new(),
            age_links: Links::default(),
            age: List::default(),
            sibling_links: Links::default(),
            flows: Slots::new(),
            flow_of: HashMap::new(),
            recency_links: Links::default(),
            recency: List::default(),
        }
    }

    /// Takes a fragment. `Some` is the whole packet, valid until the next call.
    ///
    /// A packet id is used once: fragments of a packet that was completed or given up are late, and
    /// so are those more than [`PACKET_WINDOW`](super::PACKET_WINDOW) ids back.
    ///
    /// # Errors
    ///
    /// The [`DropReason`] if the fragment was not used. It has been counted.
    pub fn push(
        &mut self,
        now: Instant,
        flow_id: u64,
        packet_id: u64,
        index: u8,
        count: u8,
        payload: &[u8],
    ) -> Result<Option<&[u8]>, DropReason> {
        self.expire(now);
        let slot = match self.accept(now, (flow_id, packet_id), index, count, payload) {
            Ok(slot) => slot,
            Err(reason) => {
                self.count_drop(reason);
                return Err(reason);
            }
        };
        let packet = self.packets.get_mut(slot);
        packet.write(index, payload);
        let Some(length) = packet.complete_bytes() else {
            return Ok(None);
        };
        self.completed = self.close(slot);
        self.counters.completed += 1;
        Ok(Some(&self.completed[..length]))
    }

    /// Gives up the packets whose fragments have taken longer than the limit; returns their number.
    /// [`push`](Self::push) does so too; call this when [`next_expiry`](Self::next_expiry) comes.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.recycle_completed();
        let mut expired = 0;
        while let Some(oldest) = self.age.oldest() {
            let opened_at = self.packets.get(oldest).opened_at;
            if now.saturating_duration_since(opened_at) < self.limits.age_max {
                break;
            }
            self.give_up(oldest);
            expired += 1;
        }
        self.counters.expired += expired as u64;
        expired
    }

    /// The time at which the oldest packet expires; `None` without an incomplete packet.
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.age.oldest()?;
        self.packets
            .get(oldest)
            .opened_at
            .checked_add(self.limits.age_max)
    }

    /// Forgets a flow that has ended, with its incomplete packets.
    pub fn forget_flow(&mut self, flow_id: u64) {
        self.recycle_completed();
        if let Some(&flow) = self.flow_of.get(&flow_id) {
            self.counters.forgotten += self.drop_flow(flow);
        }
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Number of incomplete packets.
    pub fn packets(&self) -> usize {
        self.packets.len()
    }

    /// Number of flows that are remembered.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The bytes of all buffers, in use or waiting to be used again.
    pub fn allocated_bytes(&self) -> usize {
        self.buffers.allocated_bytes()
    }

    /// Finds or starts the packet of a fragment, and makes room for it.
    fn accept(
        &mut self,
        now: Instant,
        key: (u64, u64),
        index: u8,
        count: u8,
        payload: &[u8],
    ) -> Result<Slot, DropReason> {
        if !packet::is_possible(index, count, payload) {
            return Err(DropReason::Invalid);
        }
        let slot = match self.packet_of.get(&key) {
            Some(&slot) => slot,
            None => self.open(now, key, count)?,
        };
        match self.packets.get(slot).check(index, count, payload.len()) {
            Ok(bytes) => self.make_room(slot, bytes),
            Err(DropReason::Duplicate) => return Err(DropReason::Duplicate),
            Err(reason) => {
                self.give_up(slot);
                self.counters.broken += 1;
                return Err(reason);
            }
        }
        Ok(slot)
    }

    /// Starts a packet.
    fn open(&mut self, now: Instant, key: (u64, u64), count: u8) -> Result<Slot, DropReason> {
        let (flow_id, packet_id) = key;
        let flow = self.touch_flow(flow_id, packet_id)?;
        if self.flows.get(flow).packets.len() >= self.limits.packets_per_flow_max
            || self.packets.len() >= self.limits.packets_max
        {
            self.evict_for(flow, None);
        }
        let slot = self
            .packets
            .insert(Packet::new(flow, flow_id, packet_id, count, now));
        self.packet_of.insert(key, slot);
        self.age_links.push(&mut self.age, slot);
        self.sibling_links
            .push(&mut self.flows.get_mut(flow).packets, slot);
        Ok(slot)
    }

    /// Finds or remembers the flow of a packet that starts, unless the packet is over already.
    fn touch_flow(&mut self, flow_id: u64, packet_id: u64) -> Result<Slot, DropReason> {
        let flow = match self.flow_of.get(&flow_id) {
            Some(&flow) => {
                if self.flows.get(flow).over.contains(packet_id) {
                    return Err(DropReason::Late);
                }
                self.recency_links.remove(&mut self.recency, flow);
                flow
            }
            None => {
                if self.flows.len() >= self.limits.flows_max
                    && let Some(stalest) = self.recency.oldest()
                {
                    self.counters.evicted += self.drop_flow(stalest);
                }
                let flow = self.flows.insert(Flow::new(flow_id));
                self.flow_of.insert(flow_id, flow);
                flow
            }
        };
        self.recency_links.push(&mut self.recency, flow);
        Ok(flow)
    }

    /// Gives the packet a buffer of at least `bytes`, at the cost of other packets if need be.
    fn make_room(&mut self, slot: Slot, bytes: usize) {
        if self.packets.get(slot).buffer.len() >= bytes {
            return;
        }
        let buffer = loop {
            if let Some(buffer) = self.buffers.take(bytes) {
                break buffer;
            }
            self.evict_for(self.packets.get(slot).flow, Some(slot));
        };
        let smaller = self.packets.get_mut(slot).grow(buffer);
        self.buffers.give(smaller);
    }

    /// Gives up the oldest packet of `flow`, else the oldest of all, but never `spared`.
    fn evict_for(&mut self, flow: Slot, spared: Option<Slot>) {
        let oldest_of = |links: &Links, list: &List| match list.oldest() {
            oldest if oldest == spared => oldest.and_then(|oldest| links.newer(oldest)),
            oldest => oldest,
        };
        let victim = oldest_of(&self.sibling_links, &self.flows.get(flow).packets)
            .or_else(|| oldest_of(&self.age_links, &self.age))
            .expect("BYTES_MAX_MIN has room for the only packet, so there is another one");
        self.give_up(victim);
        self.counters.evicted += 1;
    }

    /// Forgets a flow; returns the number of incomplete packets that it had.
    fn drop_flow(&mut self, flow: Slot) -> u64 {
        let mut packets = 0;
        while let Some(oldest) = self.flows.get(flow).packets.oldest() {
            self.give_up(oldest);
            packets += 1;
        }
        self.recency_links.remove(&mut self.recency, flow);
        let flow = self.flows.remove(flow);
        self.flow_of.remove(&flow.flow_id);
        packets
    }

    fn give_up(&mut self, slot: Slot) {
        let buffer = self.close(slot);
        self.buffers.give(buffer);
    }

    /// Ends a packet and returns its buffer. Its id is over from now on.
    fn close(&mut self, slot: Slot) -> Box<[u8]> {
        let packet = self.packets.remove(slot);
        self.packet_of.remove(&(packet.flow_id, packet.packet_id));
        self.age_links.remove(&mut self.age, slot);
        let flow = self.flows.get_mut(packet.flow);
        self.sibling_links.remove(&mut flow.packets, slot);
        flow.over.insert(packet.packet_id);
        packet.buffer
    }

    fn recycle_completed(&mut self) {
        self.buffers.give(std::mem::take(&mut self.completed));
    }

    fn count_drop(&mut self, reason: DropReason) {
        match reason {
            DropReason::Duplicate => self.counters.duplicates += 1,
            DropReason::Late => self.counters.late += 1,
            DropReason::Invalid | DropReason::Inconsistent | DropReason::TooLarge => {
                self.counters.refused += 1;
            }
        }
    }
}
