//! An endpoint's TLS connections: packets that come along them, packets that leave, and their end.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::cid;

use super::Endpoint;
use crate::core::event::yield_now;
use crate::core::panics::contain;
use crate::core::time;
use crate::quic::lane::Lane;
use crate::quic::over_tls::TlsConnection;
use crate::quic::over_tls::way::{Sent, Taken, TlsWay};
use crate::quic::roaming::{TlsId, Way};
use crate::quic::transmit::Ready;

/// How often to check a connection that carries no lane and brought nothing.
///
/// It is longer than a client keeps one that it may need again (`SPARE_FOR` of
/// `client/lane/fallback.rs`).
const IDLE_LOOK: Duration = Duration::from_secs(60);

/// Connections that one lane may have at a time on a server: the one that it rides, and a new one
/// that it moves to. A client needs no more, and may not hold more.
const PER_LANE_MAX: usize = 2;

impl Endpoint {
    /// Takes packets from this connection from now on, and sends those of lanes that ride it.
    ///
    /// # Errors
    /// If its socket cannot be used on this core.
    pub(crate) fn adopt_tls(self: &Rc<Self>, connection: TlsConnection) -> io::Result<TlsId> {
        let id = self.next_tls_id();
        self.adopt_tls_as(id, connection)?;
        Ok(id)
    }

    pub(super) fn next_tls_id(&self) -> TlsId {
        let number = self.next_tls.get();
        self.next_tls.set(number + 1);
        TlsId::new(number)
    }

    pub(super) fn adopt_tls_as(
        self: &Rc<Self>,
        id: TlsId,
        connection: TlsConnection,
    ) -> io::Result<()> {
        let way = TlsWay::adopt(connection, id)?;
        self.tls_ways.borrow_mut().insert(id, Rc::clone(&way));
        self.counters.tls_connections_opened.increment();
        tracing::debug!(core = self.core, peer = %way.way.peer, "a TLS connection carries packets");
        let (this, ends) = (Rc::clone(self), Rc::clone(self));
        crate::core::task::spawn_or(
            async move {
                this.receive_tls(way).await;
            },
            move || ends.end_tls(id),
        );
        Ok(())
    }

    /// The path along one of this endpoint's connections, while it is open.
    pub(crate) fn tls_way(&self, id: TlsId) -> Option<Way> {
        Some(self.tls_ways.borrow().get(&id)?.way)
    }

    /// Ends one of this endpoint's connections.
    pub(crate) fn close_tls(&self, id: TlsId) {
        if let Some(way) = self.tls_ways.borrow().get(&id) {
            way.close();
        }
    }

    pub(super) fn close_all_tls(&self) {
        for way in self.tls_ways.borrow().values() {
            way.close();
        }
    }

    async fn receive_tls(self: &Rc<Self>, way: Rc<TlsWay>) {
        let id = way.way.tls;
        let why = loop {
            let mut other_core = None;
            let taken = way.receive(
                |first| {
                    other_core = self.other_core_of(first);
                    other_core.is_some()
                },
                |packet| self.tls_packet(&way, packet),
            );
            self.finish_turn();
            if let Some(core) = other_core {
                self.hand_tls_over(core, way);
                return;
            }
            match taken {
                Taken::Over(why) => break why,
                Taken::More => {
                    yield_now().await;
                    continue;
                }
                Taken::All => {}
            }
            if let Some(why) = self.wait_for_tls(&way).await {
                break why;
            }
        };
        tracing::debug!(core = self.core, peer = %way.way.peer, why, "a TLS connection has ended");
        way.close();
        if let Some(id) = id {
            self.end_tls(id);
        }
    }

    /// Waits until there is something to read, or returns why the connection is to end.
    async fn wait_for_tls(self: &Rc<Self>, way: &Rc<TlsWay>) -> Option<String> {
        loop {
            if self.closing.get() && self.lanes.borrow().is_empty() {
                return Some("the last lane has ended".into());
            }
            let now = Instant::now();
            self.note_claim(way);
            let patience = match way.claim_until.get() {
                Some(until) if until <= now => {
                    self.counters.tls_connections_unclaimed.increment();
                    return Some("no lane has registered on it in time".into());
                }
                Some(until) => until - now,
                None => IDLE_LOOK,
            };
            match time::timeout(patience, way.readable()).await {
                Ok(Ok(())) => return None,
                Ok(Err(error)) => return Some(error.to_string()),
                Err(_) if way.claim_until.get().is_some() => {}
                Err(_) if self.accepts && self.rider(way).is_none() => {
                    return Some("no lane rides it".into());
                }
                Err(_) => {}
            }
        }
    }

    fn tls_packet(self: &Rc<Self>, way: &TlsWay, packet: &mut [u8]) {
        self.counters.quic_packets_received.increment();
        self.counters.quic_bytes_received.add(packet.len() as u64);
        if self.other_core_of(packet).is_some() {
            // If this core looked for another core's lane here, it would answer as for a lane that
            // is gone.
            self.counters.tls_packets_astray.increment();
            return;
        }
        let _counted = contain(|| self.packet(packet, way.way, true));
    }

    /// The core that a packet is for, if it is not this one.
    fn other_core_of(&self, packet: &[u8]) -> Option<usize> {
        let core = cid::core_of_packet(packet, self.group)?;
        (self.accepts && core != self.core).then_some(core)
    }

    /// The registered lane that rides a connection.
    fn rider(&self, way: &TlsWay) -> Option<Rc<Lane>> {
        let lane = self.lane(way.lane.get()?)?;
        let rides = lane.way().tls == way.way.tls && !lane.counted_unadmitted.get();
        rides.then_some(lane)
    }

    /// Notes that a registered lane rides a connection, which then is no stranger's any more.
    fn note_claim(&self, way: &TlsWay) {
        if way.claim_until.get().is_none() {
            return;
        }
        let Some(lane) = self.rider(way) else { return };
        way.claim_until.set(None);
        if let Some(id) = way.way.tls {
            self.give_tls_place_back(id);
        }
        let ways = self.tls_ways.borrow();
        let of_lane = ways.values().filter(|other| {
            other.lane.get() == Some(lane.key()) && other.claim_until.get().is_none()
        });
        let mut of_lane: Vec<_> = of_lane.collect();
        of_lane.sort_unstable_by_key(|way| way.way.tls);
        let surplus = of_lane.len().saturating_sub(PER_LANE_MAX);
        for oldest in of_lane.into_iter().take(surplus) {
            oldest.close();
        }
    }

    fn hand_tls_over(self: &Rc<Self>, core: usize, way: Rc<TlsWay>) {
        let Some(id) = way.way.tls else { return };
        self.tls_ways.borrow_mut().remove(&id);
        self.give_tls_place_back(id);
        let handed = match way.leave() {
            Ok(Some(connection)) => {
                let owner = self.owner.borrow().clone();
                owner.is_some_and(|owner| owner.hand_over_tls(core, connection))
            }
            _ => false,
        };
        let counter = if handed {
            &self.counters.tls_connections_handed_over
        } else {
            &self.counters.tls_handovers_dropped
        };
        counter.increment();
    }

    /// Handles the end of a connection.
    fn end_tls(self: &Rc<Self>, id: TlsId) {
        let Some(way) = self.tls_ways.borrow_mut().remove(&id) else {
            return;
        };
        way.close();
        self.counters.tls_connections_ended.increment();
        self.give_tls_place_back(id);
        for lane in self.lanes() {
            let rides = lane.way().tls == Some(id);
            // A client has one lane here, which may have meant to ride it.
            if rides || !self.accepts {
                lane.way_lost(id, rides);
                if rides && way.was_hung_up() {
                    lane.peer_hung_up();
                }
            }
        }
    }

    /// Closes the connections of a lane that has ended.
    pub(super) fn close_tls_of(&self, lane: u64) {
        for way in self.tls_ways.borrow().values() {
            if way.lane.get() == Some(lane) {
                way.close();
            }
        }
    }

    /// Notes which lane's packet came along a connection.
    pub(super) fn note_tls_lane(&self, id: TlsId, lane: u64) {
        if let Some(way) = self.tls_ways.borrow().get(&id) {
            way.lane.set(Some(lane));
        }
    }

    /// Whether the lane's packets must wait for room in the socket of its connection. The lane is
    /// flushed when there is some.
    pub(in crate::quic) fn must_wait_for_tls(&self, lane: &Lane) -> bool {
        let Some(id) = lane.way().tls else {
            return false;
        };
        let ways = self.tls_ways.borrow();
        ways.get(&id).is_some_and(|way| way.is_full(lane.key()))
    }

    pub(super) fn send_tls(self: &Rc<Self>, id: TlsId, ready: &Ready<'_>) {
        let way = self.tls_ways.borrow().get(&id).cloned();
        let packets = ready.packets() as u64;
        let Some(way) = way else {
            self.counters.tls_sends_lost.add(packets);
            return;
        };
        match way.send(ready.bytes, ready.segment) {
            Sent::Lost => {
                self.counters.tls_sends_lost.add(packets);
                return;
            }
            Sent::All => {}
            Sent::Waits => {
                self.counters.tls_send_waits.increment();
                if way.begins_to_wait() {
                    crate::core::task::spawn(Rc::clone(self).write_tls(way));
                }
            }
        }
        self.counters.quic_send_batches.increment();
        self.counters.quic_packets_sent.add(packets);
        self.counters.quic_bytes_sent.add(ready.bytes.len() as u64);
    }

    async fn write_tls(self: Rc<Self>, way: Rc<TlsWay>) {
        way.write_rest().await;
        if let Some(lane) = way.waits.take().and_then(|lane| self.lane(lane)) {
            lane.mark_dirty();
        }
    }
}
