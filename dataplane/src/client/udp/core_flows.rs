//! What the lanes of one core share on the client: how many UDP flows there may be, and how fast
//! their sockets are opened.
//!
//! Each flow has a socket, and so a descriptor and a port, which TCP flows, lanes and other
//! programs of this machine need as well. So all flows of a process have a part of them, and each
//! core an equal part of that; within it [`Lifetimes`] says which flow goes first. Sockets are
//! opened at a bounded [`Pace`]. New flows beyond it wait in a bounded queue; what has no room
//! there is dropped and counted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use super::super::services::{Service, Services};
use super::addresses::Addresses;
use super::flow::Flow;
use super::flows::ClientFlows;
use super::pace::{Pace, SLICE};
use crate::core::counters::CoreCounters;
use crate::flow::udp::lifetimes::{Lifetimes, Limits, Room, Stage, Why};
use crate::flow::udp::{FLOWS_PER_CORE_MAX, Rarely, UdpSettings};

/// The part of the machine's ports that a process takes for UDP flows: two clients on one machine
/// then leave half of the ports to all others.
const PORTS_PART: usize = 4;

/// The part of the process's descriptors that UDP flows get: TCP flows have at least as many.
const DESCRIPTORS_PART: usize = 2;

/// Flows that each core may have even where next to nothing is allowed.
const FLOWS_PER_CORE_MIN: usize = 8;

/// The most datagrams of flows that wait to be opened: an eighth of a second's worth.
const WAITING_MAX: usize = 1_024;

/// The most bytes of these datagrams: 1,024 of the size of an Ethernet frame.
const WAITING_BYTES_MAX: usize = 1_536 << 10;

/// How many flows each of `cores` cores may have, given the descriptors for all flows of the
/// process (with what it had open before), and the ports for all programs of the machine.
pub(crate) fn flows_max(descriptors: usize, ports: &RangeInclusive<u16>, cores: usize) -> usize {
    let of_process = (descriptors / DESCRIPTORS_PART).min(ports.len() / PORTS_PART);
    (of_process / cores.max(1)).clamp(FLOWS_PER_CORE_MIN, FLOWS_PER_CORE_MAX)
}

/// One flow, and the lane that carries it.
pub(super) struct Owned {
    pub(super) lane: Weak<ClientFlows>,
    pub(super) flow: Rc<Flow>,
}

/// A datagram of a flow that is to be opened.
struct Waiting {
    lane: Weak<ClientFlows>,
    datagram: Vec<u8>,
}

/// The UDP flows of one core, of all its lanes.
pub(crate) struct CoreFlows {
    pub(super) settings: UdpSettings,
    /// The addresses of the services' hosts.
    addresses: RefCell<Vec<Rc<Addresses>>>,
    pub(super) counters: Arc<CoreCounters>,
    pub(super) lifetimes: RefCell<Lifetimes<Owned>>,
    pace: RefCell<Pace>,
    waiting: RefCell<VecDeque<Waiting>>,
    waiting_bytes: Cell<usize>,
    /// Whether a task is opening the flows that wait.
    opening: Cell<bool>,
    pub(super) full_log: Rarely,
    pub(super) dial_log: Rarely,
}

impl CoreFlows {
    /// The shared state for at most `flows_max` flows to all services together.
    pub(crate) fn new(
        settings: UdpSettings,
        flows_max: usize,
        counters: Arc<CoreCounters>,
    ) -> Rc<CoreFlows> {
        Rc::new(CoreFlows {
            addresses: RefCell::default(),
            lifetimes: RefCell::new(Lifetimes::new(Limits {
                flows_max,
                unanswered_timeout: settings.unanswered_timeout,
                session_timeout: settings.session_timeout,
            })),
            settings,
            counters,
            pace: RefCell::default(),
            waiting: RefCell::default(),
            waiting_bytes: Cell::new(0),
            opening: Cell::new(false),
            full_log: Rarely::default(),
            dial_log: Rarely::default(),
        })
    }

    /// The addresses of each service, in the order of the services.
    pub(super) fn addresses(&self, services: &Services) -> Vec<Rc<Addresses>> {
        let mut known = self.addresses.borrow_mut();
        let of = |service: &Arc<Service>| {
            if let Some(known) = known.iter().find(|it| it.are_of(&service.host)) {
                return Rc::clone(known);
            }
            let new = Rc::new(Addresses::new(&service.host));
            known.push(Rc::clone(&new));
            new
        };
        services.all().iter().map(of).collect()
    }

    /// Replaces the services. Lanes of before keep those that they have.
    pub(crate) fn services_are(&self, services: &Services) {
        let hosts = services.hosts();
        let is_one = |it: &Rc<Addresses>| hosts.iter().any(|host| it.are_of(host));
        self.addresses.borrow_mut().retain(is_one);
    }

    /// Looks for changes of all services' addresses.
    pub(super) fn look_for_changes(&self) {
        for addresses in &*self.addresses.borrow() {
            addresses.version();
        }
    }

    /// Whether a flow of `visitor` may be opened; ends another one for it if need be.
    pub(super) fn make_room(&self, visitor: SocketAddr, now: Instant) -> bool {
        let room = self.lifetimes.borrow().room_for(visitor.ip());
        let (key, why) = match room {
            Room::Free => return true,
            Room::Instead(key, why) => (key, why),
            Room::None => {
                self.say_full("a UDP flow is refused");
                return false;
            }
        };
        match why {
            Why::Full => {
                self.counters.udp_flows_evicted.increment();
                self.say_full("the oldest UDP flow without an answer ends for a new one");
            }
            Why::Source => self.counters.udp_flows_evicted_of_source.increment(),
        }
        self.end_one(key, |lane, flow| lane.evicted(flow, now));
        true
    }

    fn say_full(&self, what: &str) {
        if self.full_log.pass(Instant::now()) {
            tracing::warn!(
                flows = self.lifetimes.borrow().len(),
                "{what}: this core has as many as it may have of the machine's descriptors and ports"
            );
        }
    }

    fn end_one(&self, key: usize, end: impl FnOnce(&ClientFlows, &Flow)) {
        let owned = self.lifetimes.borrow_mut().remove(key);
        if let Some(owned) = owned
            && let Some(lane) = owned.lane.upgrade()
        {
            end(&lane, &owned.flow);
        }
    }

    /// Ends one flow that has expired. Returns false if there is none.
    pub(super) fn expire_one(&self, now: Instant) -> bool {
        let due = {
            let mut lives = self.lifetimes.borrow_mut();
            let key = lives.next_expired(now, |_| false);
            key.and_then(|key| Some((key, lives.stage(key)?)))
        };
        let Some((key, stage)) = due else {
            return false;
        };
        self.counters.udp_flows_expired.increment();
        if stage == Stage::Unanswered {
            self.counters.udp_flows_unanswered.increment();
        }
        self.end_one(key, |lane, flow| lane.expired(flow, now));
        true
    }

    // ---- opening ----

    /// Whether a socket may be opened at this moment, before all flows that wait.
    pub(super) fn may_open(&self, now: Instant) -> bool {
        self.waiting.borrow().is_empty() && self.pace.borrow_mut().may_open(now)
    }

    /// Runs `open`, which opens a socket, and counts the time that it takes.
    pub(super) fn timed<R>(&self, open: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let result = open();
        self.pace.borrow_mut().opened(began.elapsed());
        result
    }

    /// Keeps a datagram until its flow can be opened. It is dropped and counted if too many wait.
    pub(super) fn wait(self: &Rc<Self>, lane: &Rc<ClientFlows>, datagram: &[u8]) {
        let bytes = self.waiting_bytes.get() + datagram.len();
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WAITING_MAX || bytes > WAITING_BYTES_MAX {
            self.counters.udp_dropped_opening.increment();
            return;
        }
        self.waiting_bytes.set(bytes);
        waiting.push_back(Waiting {
            lane: Rc::downgrade(lane),
            datagram: datagram.to_vec(),
        });
        if !self.opening.replace(true) {
            let core = Rc::clone(self);
            crate::core::task::spawn_or(Rc::clone(self).open_task(), move || {
                core.opening.set(false);
            });
        }
    }

    /// Opens the flows that wait, and ends with the last of them.
    async fn open_task(self: Rc<Self>) {
        loop {
            self.open_some();
            if self.waiting.borrow().is_empty() {
                self.opening.set(false);
                return;
            }
            crate::core::time::sleep(SLICE).await;
        }
    }

    fn open_some(&self) {
        while self.pace.borrow_mut().may_open(Instant::now()) {
            let Some(next) = self.waiting.borrow_mut().pop_front() else {
                return;
            };
            let bytes = self.waiting_bytes.get() - next.datagram.len();
            self.waiting_bytes.set(bytes);
            if let Some(lane) = next.lane.upgrade() {
                lane.waited(&next.datagram);
            } else {
                self.counters.udp_dropped_unknown_flow.increment();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_leave_others_their_part_of_descriptors_and_ports() {
        let ports = 32_768..=60_999;
        assert_eq!(flows_max(usize::MAX, &ports, 1), 7_058);
        assert_eq!(flows_max(usize::MAX, &ports, 4), 1_764);
        assert_eq!(flows_max(960, &ports, 1), 480);
        assert_eq!(flows_max(960, &ports, 64), FLOWS_PER_CORE_MIN);
        assert_eq!(flows_max(0, &ports, 0), FLOWS_PER_CORE_MIN);
        assert_eq!(flows_max(usize::MAX, &(1_024..=65_535), 1), 16_128);
    }
}
