//! The receiving half of an endpoint: from the socket to the lanes, and the first packets of new
//! lanes.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::CID_LEN;
use qmux_proto::cid::{self, LONG_HEADER_BIT};

use super::Endpoint;
use crate::core::busy_poll;
use crate::core::event::{in_turn, yield_now};
use crate::core::memory;
use crate::core::panics::{contain, may_be_injected};
use crate::quic::lane::Lane;
use crate::quic::roaming::{Moved, Way};
use crate::sys::timer::FineTimer;
use crate::sys::udp::{Purpose, ReceiveBatch};

/// Turns that a receive waits for a flush that should come first.
const FLUSH_TURNS_MAX: usize = 8;

/// Datagrams of a lane that may wait before they are delivered. They are delivered in small
/// portions, because the sockets of services and visitors, 208 KB by default, take fewer than 100
/// at once.
const DELIVER_AT: usize = 32;

/// The most receive calls of one turn, where each brings few packets because they come from many
/// peers. Acknowledgements, and a turn of every flow, come once per turn, not once per call.
const CALLS_PER_TURN_MAX: usize = 8;

/// The most packets of one turn: 64 cost some 100 µs.
const PACKETS_PER_TURN_MAX: u64 = 64;

/// Bytes after which a turn makes no further call, so that in bulk a turn is one call (see
/// `QUIC_BATCHES` in `sys/udp.rs`).
const BYTES_PER_TURN_MAX: u64 = 128 << 10;

/// Time after which a turn makes no further call. Four first packets of new lanes may take 2 ms,
/// for their signatures.
const TURN_TIME_MAX: Duration = Duration::from_micros(500);

/// Packets per second that one endpoint passes on to the process before this one although their
/// connection ids do not look like those of this server. Garbage must not cost more. But if the
/// server's private key was changed, that process has issued its ids with another one, and its
/// flows get through, if slowly.
const PASSED_ON_UNKNOWN_MAX: u32 = 10_000;

thread_local! {
    /// The receive buffers of this core, shared by its endpoints, because they are used only within
    /// one call.
    static RECEIVE: RefCell<ReceiveBatch> = RefCell::new(ReceiveBatch::new(Purpose::Quic));
}

/// The result of a receive call.
struct OneCall {
    packets: u64,
    bytes: u64,
    /// Whether there may be more to receive.
    more: bool,
}

/// What a turn of receiving has brought.
struct ReceiveTurn {
    began: Instant,
    packets: u64,
    bytes: u64,
    /// Whether there may be more to receive.
    more: bool,
}

/// There is no timer for pauses.
struct NoTimer;

impl Endpoint {
    pub(super) async fn receive_task(self: Rc<Self>) {
        loop {
            let ready = in_turn(self.socket.readable());
            let ready = self.stopped.cuts_short(ready).await;
            let Some(ready) = ready else { return };
            if let Err(error) = ready {
                self.counters.internal_errors.increment();
                tracing::error!(%error, "waiting for a QUIC socket failed");
                crate::core::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            loop {
                // A flush that waits for room in the socket is not waited for, because it may need
                // the acknowledgements that are to be received.
                for _ in 0..FLUSH_TURNS_MAX {
                    if !self.flush_first.get() {
                        break;
                    }
                    yield_now().await;
                }
                if self.is_handed_over.get() {
                    return;
                }
                let turn = RECEIVE.with_borrow_mut(|batch| self.receive_turn(batch));
                self.moderation.received(turn.packets, turn.bytes);
                self.finish_turn();
                if turn.more {
                    self.moderation.interrupted();
                    yield_now().await;
                    continue;
                }
                let Some(pause) = self.moderation.emptied(turn.began) else {
                    break;
                };
                let paused = self.stopped.cuts_short(self.let_packets_gather(pause));
                match paused.await {
                    None => return,
                    Some(Ok(())) => {}
                    Some(Err(NoTimer)) => break,
                }
            }
        }
    }

    /// Waits for this long, so that the next turn finds more packets. Cancel-safe.
    async fn let_packets_gather(&self, pause: Duration) -> Result<(), NoTimer> {
        let no_timer = |error: &io::Error| {
            if !self.gather_timer_missed.replace(true) {
                self.counters.internal_errors.increment();
                tracing::warn!(%error, "no timer for pauses; packets of long paths are read more often than they should be");
            }
            NoTimer
        };
        let timer = self.gather_timer.get_or_init(FineTimer::new);
        let timer = timer.as_ref().map_err(no_timer)?;
        timer.set(pause).map_err(|error| no_timer(&error))?;
        self.counters.quic_receive_pauses.increment();
        timer.fired().await.map_err(|error| no_timer(&error))
    }

    /// Makes as many receive calls as make a turn.
    fn receive_turn(self: &Rc<Self>, batch: &mut ReceiveBatch) -> ReceiveTurn {
        let mut turn = ReceiveTurn {
            began: Instant::now(),
            packets: 0,
            bytes: 0,
            more: false,
        };
        for _ in 0..CALLS_PER_TURN_MAX {
            let received = self.receive_once(batch);
            turn.more = received.as_ref().is_some_and(|received| received.more);
            let Some(received) = received else { break };
            turn.packets += received.packets;
            turn.bytes += received.bytes;
            let full = turn.packets >= PACKETS_PER_TURN_MAX || turn.bytes >= BYTES_PER_TURN_MAX;
            if !turn.more || full || turn.began.elapsed() >= TURN_TIME_MAX {
                break;
            }
        }
        turn
    }

    /// Makes one receive call. `None` if there was nothing.
    fn receive_once(self: &Rc<Self>, batch: &mut ReceiveBatch) -> Option<OneCall> {
        match self.socket.try_receive(batch) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // This is the ICMP error of an earlier send; the next call goes on (udp(7)).
            Err(error) => {
                tracing::debug!(%error, "receive on a QUIC socket");
                self.socket_error(&error);
                return None;
            }
        }
        self.counters.quic_receive_batches.increment();
        let (mut packets, mut bytes) = (0, 0);
        batch.for_each(|received| {
            packets += 1;
            bytes += received.data.len() as u64;
            // Anybody can send such a packet, so a panic costs no more than the packet.
            let _counted = contain(|| {
                let way = Way::over_udp(received.from, received.to_ip);
                self.packet(received.data, way, false);
            });
        });
        self.counters.quic_packets_received.add(packets);
        self.counters.quic_bytes_received.add(bytes);
        Some(OneCall {
            packets,
            bytes,
            more: batch.is_full(),
        })
    }

    /// Gives up the handshake on an endpoint that dials, if the network reports that it is in vain.
    pub(super) fn socket_error(&self, error: &io::Error) {
        if self.accepts {
            return;
        }
        self.stop_hearing_unreachable();
        let kind = error.kind();
        if !matches!(
            kind,
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                // This is the answer of this host's own firewall.
                | io::ErrorKind::PermissionDenied
        ) {
            return;
        }
        for lane in self.lanes() {
            if lane.way().tls.is_none() && lane.nobody_listens(kind) {
                self.counters.handshakes_unreachable.increment();
            }
        }
    }

    /// Stops listening for ICMP errors: they count only before the handshake is complete, and
    /// errors that are left unread would keep the socket ready for ever.
    pub(super) fn stop_hearing_unreachable(&self) {
        if let Err(error) = self.socket.hear_unreachable(false) {
            tracing::debug!(%error, "IP_RECVERR");
        }
    }

    pub(super) fn packet(self: &Rc<Self>, data: &mut [u8], way: Way, handed_over: bool) {
        if way.peer.port() == 0 {
            // Nobody can be answered there (RFC 768), and the kernel calls the attempt an invalid
            // argument.
            self.counters.quic_packets_invalid.increment();
            return;
        }
        let Some(lane) = self.find_lane(data) else {
            self.unknown_packet(data, way, handed_over);
            return;
        };
        self.feed(&lane, data, way);
    }

    /// Gives the lane a packet.
    pub(super) fn feed(self: &Rc<Self>, lane: &Rc<Lane>, data: &mut [u8], way: Way) {
        self.contain_for(lane, || self.feed_lane(lane, data, way));
    }

    fn feed_lane(self: &Rc<Self>, lane: &Rc<Lane>, data: &mut [u8], way: Way) {
        let over_tls = way.tls.is_some();
        if !self.accepts && !over_tls && !is_same_peer(way.peer, lane.first_way().peer) {
            // A client's server does not move (RFC 9000 section 9), so this is somebody else.
            self.counters.quic_packets_from_others.increment();
            return;
        }
        let elsewhere = self.accepts && way != lane.way();
        // A peer that has not registered may be anybody, and is not followed.
        let followed = elsewhere && !lane.counted_unadmitted.get() && lane.follows();
        // quiche knows a lane by the addresses that it began with.
        let named = lane.first_way();
        let info = quiche::RecvInfo {
            from: named.peer,
            to: self.local_addr(named.local),
        };
        let length = data.len();
        let before = if followed { lane.genuine_packets() } else { 0 };
        let (result, queued) = {
            let mut conn = lane.conn.borrow_mut();
            may_be_injected(if self.accepts {
                "server: packet"
            } else {
                "client: packet"
            });
            let result = conn.recv(data, info);
            (result, conn.dgram_recv_queue_len())
        };
        if followed && lane.genuine_packets() > before {
            self.follow(lane, way, length);
        }
        lane.unsent.window_counted();
        lane.turn.fed(if elsewhere { 0 } else { length });
        if let Err(error) = result {
            self.counters.quic_packets_invalid.increment();
            tracing::debug!(lane = lane.key(), from = %way.peer, %error, "packet refused");
        } else if let Some(id) = way.tls {
            self.note_tls_lane(id, lane.key());
        }
        lane.ack_packet(length);
        if queued > DELIVER_AT {
            lane.deliver_datagrams();
        }
        if !lane.touched.replace(true) {
            self.touched.borrow_mut().push(Rc::clone(lane));
        }
    }

    /// Ends a turn: delivers what its packets changed, and has their lanes flushed, at once or, if
    /// that would only acknowledge, soon.
    pub(super) fn finish_turn(self: &Rc<Self>) {
        memory::received();
        let now = Instant::now();
        loop {
            let mut touched = std::mem::take(&mut *self.touched.borrow_mut());
            if touched.is_empty() {
                return;
            }
            for lane in touched.drain(..) {
                lane.touched.set(false);
                self.contain_for(&lane, || self.finish_turn_of(&lane, now));
            }
            // What a handler has touched meanwhile is next; otherwise the allocation is kept.
            let mut next = self.touched.borrow_mut();
            if next.is_empty() {
                *next = touched;
                break;
            }
        }
        if busy_poll::is_on() {
            // The flush task does it, behind the flows that have been woken.
            self.flush.set();
        }
    }

    fn finish_turn_of(&self, lane: &Rc<Lane>, now: Instant) {
        let turn = lane.end_turn();
        self.counters.quic_packets_ignored.add(turn.ignored);
        if turn.genuine {
            // Anybody may send in the peer's name, so only what decrypts is a sign of life.
            lane.received(turn.bytes);
            if !self.accepts {
                lane.watch_for_silence(now);
            }
            lane.heard();
            self.note_path_length(lane, now);
        } else if lane.is_unmoved_by_noise() {
            return;
        }
        let brought = lane.dispatch(now);
        lane.ack_turn(brought, now);
    }

    /// Tells the moderation of the socket that this lane was heard. Lanes of strangers do not
    /// count, and those over TLS have other sockets.
    fn note_path_length(&self, lane: &Lane, now: Instant) {
        if self.moderation.asks_for_paths()
            && !lane.counted_unadmitted.get()
            && lane.way().tls.is_none()
        {
            self.moderation.heard(lane.rtt_min(), now);
        }
    }

    /// The local address under which quiche knows the path. A server tells its addresses apart, so
    /// that it answers from the one that was asked. A client's wildcard socket is one path whatever
    /// the network does.
    pub(super) fn local_addr(&self, to_ip: Option<IpAddr>) -> SocketAddr {
        let local = self.socket.local_addr();
        match to_ip {
            Some(ip) if self.accepts => SocketAddr::new(ip, local.port()),
            _ => local,
        }
    }

    fn find_lane(&self, packet: &[u8]) -> Option<Rc<Lane>> {
        let first = *packet.first()?;
        if first & LONG_HEADER_BIT == 0 {
            let id = cid::short_header_dcid(packet)?;
            return self.by_cid.borrow().get(id).cloned();
        }
        let dcid = cid::long_header_dcid(packet)?;
        if let Ok(id) = <&[u8; CID_LEN]>::try_from(dcid)
            && let Some(lane) = self.by_cid.borrow().get(id)
        {
            return Some(Rc::clone(lane));
        }
        self.by_initial.borrow().get(dcid).cloned()
    }

    fn unknown_packet(self: &Rc<Self>, data: &mut [u8], way: Way, handed_over: bool) {
        if !handed_over
            && let Some(core) = cid::core_of_packet(data, self.group)
            && core != self.core
            && let Some(owner) = self.owner.borrow().clone()
        {
            let counter = if owner.hand_over(core, data, way.peer, way.local) {
                &self.counters.quic_packets_handed_over
            } else {
                &self.counters.quic_packets_handover_dropped
            };
            counter.increment();
            return;
        }
        let is_short = data
            .first()
            .is_none_or(|first| first & LONG_HEADER_BIT == 0);
        if self.accepts && may_be_of_a_lane(data) && self.is_predecessors(data, way) {
            return;
        }
        match (is_short, self.accepts) {
            (true, true) => self.answer_short_header(data, way),
            (true, false) => self.maybe_reset(data, way),
            (false, true) if !self.closing.get() => self.begin_handshake(data, way),
            (false, _) => self.counters.quic_packets_unknown.increment(),
        }
    }

    /// Whether the packet is left to the process that had the socket before, whether that gets it
    /// or not.
    fn is_predecessors(&self, data: &[u8], way: Way) -> bool {
        let owner = self.owner.borrow().clone();
        let Some(owner) = owner.filter(|owner| owner.has_predecessor()) else {
            return false;
        };
        if let Some(id) = way.tls {
            // That process could not answer here. Without this connection the client goes back at
            // once to UDP, where what it sends is passed on.
            self.counters.tls_connections_for_predecessor.increment();
            self.close_tls(id);
            return true;
        }
        let now = Instant::now();
        if !self.has_issued(data, way) && !one_of(&self.passed_on, PASSED_ON_UNKNOWN_MAX, now) {
            self.counters.quic_packets_pass_on_refused.increment();
            return true;
        }
        let passed = owner.pass_on(data, way.peer, way.local);
        match passed {
            Some(true) => self.counters.quic_packets_passed_on.increment(),
            Some(false) => self.counters.quic_packets_pass_on_dropped.increment(),
            None => {}
        }
        passed.is_some()
    }

    /// Whether the packet's connection id was issued by this server with its present key.
    fn has_issued(&self, data: &[u8], way: Way) -> bool {
        let is_long = data.first().is_some_and(|it| it & LONG_HEADER_BIT != 0);
        let id = if is_long {
            cid::long_header_dcid(data).and_then(|id| id.try_into().ok())
        } else {
            cid::short_header_dcid(data)
        };
        let (key, local) = (self.reset_key.as_ref(), self.local_ip(way.local));
        key.zip(id).is_some_and(|(key, id)| key.issued(id, local))
    }

    /// Handles a genuine packet of `bytes` that came along another path than the lane's.
    fn follow(&self, lane: &Lane, way: Way, bytes: usize) {
        match lane.follow(way, bytes) {
            None => self.counters.quic_packets_astray.increment(),
            Some(moved) => {
                self.counters.migrations.increment();
                if matches!(moved, Moved::Challenge(_)) {
                    self.counters.paths_new.increment();
                }
            }
        }
    }
}

/// Whether one more is within `per_second_max` of the second that `counted` is about.
pub(super) fn one_of(counted: &Cell<(Instant, u32)>, per_second_max: u32, now: Instant) -> bool {
    let (mut since, mut count) = counted.get();
    if now.saturating_duration_since(since) >= Duration::from_secs(1) {
        (since, count) = (now, 0);
    }
    let may = count < per_second_max;
    counted.set((since, count + u32::from(may)));
    may
}

/// Whether a packet may belong to a lane that another process has begun: anything except those with
/// which a connection begins (RFC 9000, sections 17.2.2 and 17.2.3).
fn may_be_of_a_lane(packet: &[u8]) -> bool {
    const TYPE_BITS: u8 = 0x30;
    const EARLY_DATA: u8 = 0x10;
    let first = packet.first().copied().unwrap_or_default();
    first & LONG_HEADER_BIT == 0 || first & TYPE_BITS > EARLY_DATA
}

/// Whether two addresses are the same, apart from what the kernel adds to those of IPv6.
fn is_same_peer(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip() == other.ip()
}
