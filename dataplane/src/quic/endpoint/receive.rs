//! The receiving half of an endpoint: from the socket to the lanes, and the first packets of new lanes.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::CID_LEN;
use qmux_proto::cid::{self, LONG_HEADER_BIT};

use super::Endpoint;
use crate::quic::event::yield_now;
use crate::quic::lane::Lane;
use crate::quic::roaming::{Moved, Way};
use crate::quic::settings;
use crate::sys::udp::{Purpose, ReceiveBatch};

/// Turns that a receive waits for a flush that should come first.
const FLUSH_TURNS_MAX: usize = 8;

/// Datagrams of a lane that may wait before they are handed on: in small portions, because the sockets of services and
/// visitors, 208 KB by default, take fewer than 100 at once.
const DELIVER_AT: usize = 32;

/// Lanes per endpoint whose peer may be anybody, because it has not registered; above it new ones are refused. Peers
/// that have not authenticated must cost a bounded amount: one costs about 40 KB.
const UNADMITTED_LANES_MAX: usize = 1_024;

/// Above so many of them, a client must first show that it receives at its address: then nobody can fill the places
/// with invented ones.
const RETRY_ABOVE: usize = UNADMITTED_LANES_MAX / 4;

/// That there are too many is logged this often at most; how many, a counter tells.
const CROWDED_LOG_PAUSE: Duration = Duration::from_secs(60);

/// A Retry packet: header, two connection ids of up to 20 bytes, token of up to 60, tag of 16.
const RETRY_BYTES_MAX: usize = 256;

/// Stateless resets that one endpoint sends per second. After a restart every lane needs one; a flood must not make us
/// answer without bound.
const RESETS_PER_SECOND_MAX: u32 = 10_000;

/// Shortest first destination connection id that a client may choose (RFC 9000 section 7.2).
const INITIAL_DCID_BYTES_MIN: usize = 8;

thread_local! {
    /// The receive buffers of this core, shared by its endpoints: they are used only within one call.
    static RECEIVE: RefCell<ReceiveBatch> = RefCell::new(ReceiveBatch::new(Purpose::Quic));
}

impl Endpoint {
    pub(super) async fn receive_task(self: Rc<Self>) {
        loop {
            let ready = self.stopped.cuts_short(self.socket.readable()).await;
            let Some(ready) = ready else { return };
            if let Err(error) = ready {
                self.counters.internal_errors.increment();
                tracing::error!(%error, "waiting for a QUIC socket failed");
                monoio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            loop {
                // A flush that waits for room in the socket is not waited for: the acknowledgements to be received
                // may be what it needs.
                for _ in 0..FLUSH_TURNS_MAX {
                    if !self.flush_first.get() {
                        break;
                    }
                    yield_now().await;
                }
                let more = RECEIVE.with_borrow_mut(|batch| self.receive_once(batch));
                self.finish_turn();
                if !more {
                    break;
                }
                yield_now().await;
            }
        }
    }

    /// One receive call. False once the socket is drained.
    fn receive_once(self: &Rc<Self>, batch: &mut ReceiveBatch) -> bool {
        match self.socket.try_receive(batch) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // An ICMP error of an earlier send; the next call goes on (udp(7)).
            Err(error) => {
                tracing::debug!(%error, "receive on a QUIC socket");
                self.socket_error(&error);
                return false;
            }
        }
        self.counters.quic_receive_batches.increment();
        let (mut packets, mut bytes) = (0, 0);
        batch.for_each(|received| {
            packets += 1;
            bytes += received.data.len() as u64;
            self.packet(received.data, received.from, received.to_ip, false);
        });
        self.counters.quic_packets_received.add(packets);
        self.counters.quic_bytes_received.add(bytes);
        batch.is_full()
    }

    /// On an endpoint that dials: gives up the handshake if the network says that it is in vain.
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
                // Of this host's own firewall.
                | io::ErrorKind::PermissionDenied
        ) {
            return;
        }
        for lane in self.lanes() {
            if lane.nobody_listens(kind) {
                self.counters.handshakes_unreachable.increment();
            }
        }
    }

    /// The network's word about the peer counts only before the handshake is complete; errors that are left unread
    /// would keep the socket ready for ever.
    pub(super) fn stop_hearing_unreachable(&self) {
        if let Err(error) = self.socket.hear_unreachable(false) {
            tracing::debug!(%error, "IP_RECVERR");
        }
    }

    pub(super) fn packet(
        self: &Rc<Self>,
        data: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
        handed_over: bool,
    ) {
        if from.port() == 0 {
            // Nobody can be answered there (RFC 768), and the kernel calls the attempt an invalid argument.
            self.counters.quic_packets_invalid.increment();
            return;
        }
        let Some(lane) = self.find_lane(data) else {
            self.unknown_packet(data, from, to_ip, handed_over);
            return;
        };
        self.feed(&lane, data, from, to_ip);
    }

    fn feed(
        self: &Rc<Self>,
        lane: &Rc<Lane>,
        data: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) {
        let way = Way {
            peer: from,
            local: to_ip,
        };
        // A client's peer does not move, and what comes from elsewhere is not its peer's.
        let elsewhere = self.accepts && way != lane.way();
        // Whoever has not registered may be anybody, and is not followed.
        let followed = elsewhere && !lane.counted_unadmitted.get() && lane.follows();
        // quiche knows a lane by the addresses that it began with.
        let named = if self.accepts { lane.first_way() } else { way };
        let info = quiche::RecvInfo {
            from: named.peer,
            to: self.local_addr(named.local),
        };
        let length = data.len();
        let (result, queued, genuine) = {
            let before = if followed { lane.genuine_packets() } else { 0 };
            let mut conn = lane.conn.borrow_mut();
            let result = conn.recv(data, info);
            let queued = conn.dgram_recv_queue_len();
            drop(conn);
            (result, queued, followed && lane.genuine_packets() > before)
        };
        if genuine {
            self.follow(lane, way, data.len());
        } else if !elsewhere {
            lane.received(data.len());
        }
        if let Err(error) = result {
            self.counters.quic_packets_invalid.increment();
            tracing::debug!(lane = lane.key(), %from, %error, "packet refused");
        }
        lane.owes_for_packet(length);
        if queued > DELIVER_AT {
            lane.deliver_datagrams();
        }
        if !lane.touched.replace(true) {
            self.touched.borrow_mut().push(Rc::clone(lane));
        }
    }

    /// After the packets of a turn: deliver what they changed, and have their lanes flushed, at once or, if that would
    /// only acknowledge, soon.
    pub(super) fn finish_turn(self: &Rc<Self>) {
        let mut touched = std::mem::take(&mut *self.touched.borrow_mut());
        let now = Instant::now();
        for lane in touched.drain(..) {
            lane.touched.set(false);
            if !self.accepts {
                lane.watch_for_silence(now);
            }
            lane.heard();
            let only_datagrams = lane.dispatch();
            lane.owes_for_turn(only_datagrams, now);
        }
        *self.touched.borrow_mut() = touched;
    }

    /// The local address that quiche knows the path by. A server tells its addresses apart, so that it answers from
    /// the one that was asked; a client's wildcard socket is one path whatever the network does.
    fn local_addr(&self, to_ip: Option<IpAddr>) -> SocketAddr {
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

    fn unknown_packet(
        self: &Rc<Self>,
        data: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
        handed_over: bool,
    ) {
        if !handed_over
            && let Some(core) = cid::core_of_packet(data, self.group)
            && core != self.core
            && let Some(owner) = self.owner.borrow().clone()
        {
            let counter = if owner.hand_over(core, data, from, to_ip) {
                &self.counters.quic_packets_handed_over
            } else {
                &self.counters.quic_packets_handover_dropped
            };
            counter.increment();
            return;
        }
        if data
            .first()
            .is_none_or(|first| first & LONG_HEADER_BIT == 0)
        {
            self.unknown_short_header(data, from, to_ip);
            return;
        }
        if !self.accepts || self.closing.get() {
            self.counters.quic_packets_unknown.increment();
            return;
        }
        self.begin_handshake(data, from, to_ip);
    }

    /// On a server: a lane of an earlier process, mostly. On a client: a stateless reset, perhaps; only the lane can
    /// tell, by its token.
    fn unknown_short_header(
        self: &Rc<Self>,
        data: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) {
        if !self.accepts {
            let lane = self.lanes.borrow().values().next().cloned();
            match lane {
                Some(lane) => self.feed(&lane, data, from, to_ip),
                None => self.counters.quic_packets_unknown.increment(),
            }
            return;
        }
        self.counters.quic_packets_unknown.increment();
        let Some(answer) = self.reset_key.as_ref().and_then(|key| key.answer(data)) else {
            return;
        };
        let (mut since, mut sent) = self.resets.get();
        if since.elapsed() >= Duration::from_secs(1) {
            (since, sent) = (Instant::now(), 0);
        }
        self.resets.set((since, sent + 1));
        if sent >= RESETS_PER_SECOND_MAX {
            self.counters.stateless_resets_suppressed.increment();
            return;
        }
        self.counters.stateless_resets_sent.increment();
        // Best effort: the peer's next packet asks again.
        let _lost = self.socket.try_send(&answer, answer.len(), from, to_ip);
    }

    /// The first packet of a connection (RFC 9000 section 5.2.2).
    fn begin_handshake(self: &Rc<Self>, data: &mut [u8], from: SocketAddr, to_ip: Option<IpAddr>) {
        let Ok(header) = quiche::Header::from_slice(data, CID_LEN) else {
            self.counters.quic_packets_invalid.increment();
            return;
        };
        if !quiche::version_is_supported(header.version) {
            self.negotiate_version(&header, data.len(), from, to_ip);
            return;
        }
        if header.ty != quiche::Type::Initial
            || data.len() < quiche::MIN_CLIENT_INITIAL_LEN
            || header.dcid.len() < INITIAL_DCID_BYTES_MIN
        {
            self.counters.quic_packets_unknown.increment();
            return;
        }
        let unadmitted = self.unadmitted.get();
        if unadmitted >= UNADMITTED_LANES_MAX {
            self.refuse_handshake(Instant::now());
            return;
        }
        let token = header.token.as_deref().unwrap_or_default();
        let original = match self.retry_key.verify(from, token, Instant::now()) {
            Some(original) => Some(quiche::ConnectionId::from_ref(original)),
            None if unadmitted < RETRY_ABOVE => None,
            None => {
                self.ask_for_address(&header, from, to_ip);
                return;
            }
        };
        // After a Retry the client uses the connection id that we gave it there.
        let scid = match <[u8; CID_LEN]>::try_from(header.dcid.as_ref()) {
            Ok(id) if original.is_some() => id,
            _ => self.new_cid(),
        };
        if let Some(key) = &self.reset_key {
            self.config
                .borrow_mut()
                .set_stateless_reset_token(Some(key.token(&scid)));
        }
        settings::fit_to_route(&mut self.config.borrow_mut(), self.packet_bytes_max, from);
        let accepted = quiche::accept_with_buf_factory(
            &quiche::ConnectionId::from_ref(&scid),
            original.as_ref(),
            self.local_addr(to_ip),
            from,
            &mut self.config.borrow_mut(),
        );
        let Ok(conn) = accepted else {
            self.counters.handshakes_failed.increment();
            return;
        };
        let way = Way {
            peer: from,
            local: to_ip,
        };
        let lane = self.adopt(conn, scid, way);
        let initial_id: Box<[u8]> = header.dcid.as_ref().into();
        *lane.initial_id.borrow_mut() = Some(initial_id.clone());
        self.by_initial
            .borrow_mut()
            .insert(initial_id, Rc::clone(&lane));
        if let Some(owner) = self.owner.borrow().clone() {
            owner.lane_accepted(&lane);
        }
        self.feed(&lane, data, from, to_ip);
        if lane.conn.borrow().stats().recv == 0 {
            // Not a packet of QUIC after all: it must not hold a place.
            lane.give_up();
        }
    }

    /// A genuine packet of `bytes` came along another way than the lane's.
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

    /// There is no place for one more. The client repeats its first packet after a second (RFC 9002 section 6.2.2), and
    /// finds one when as many handshakes as a core completes meanwhile are over.
    fn refuse_handshake(&self, now: Instant) {
        self.counters.handshakes_refused.increment();
        let due = |at: Instant| now.saturating_duration_since(at) >= CROWDED_LOG_PAUSE;
        if self.crowded_logged_at.get().is_none_or(due) {
            self.crowded_logged_at.set(Some(now));
            tracing::warn!(
                core = self.core,
                addr = %self.socket.local_addr(),
                limit = UNADMITTED_LANES_MAX,
                "more clients at once than one core shakes hands with; the others try again (counter handshakes_refused)"
            );
        }
    }

    /// Answers with a Retry: a client that receives it comes back with a token.
    fn ask_for_address(
        &self,
        header: &quiche::Header<'_>,
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) {
        let id = self.new_cid();
        let token = self.retry_key.token(from, &header.dcid, Instant::now());
        let mut answer = [0u8; RETRY_BYTES_MAX];
        let written = quiche::retry(
            &header.scid,
            &header.dcid,
            &quiche::ConnectionId::from_ref(&id),
            &token,
            header.version,
            &mut answer,
        );
        if let Ok(written) = written {
            self.counters.retries_sent.increment();
            // Best effort: the client repeats its first packet.
            let _lost = self
                .socket
                .try_send(&answer[..written], written, from, to_ip);
        }
    }

    fn negotiate_version(
        &self,
        header: &quiche::Header<'_>,
        length: usize,
        to: SocketAddr,
        from_ip: Option<IpAddr>,
    ) {
        // Not for small packets: the answer must not be larger than the question (RFC 9000 section 6.1).
        if length < quiche::MIN_CLIENT_INITIAL_LEN {
            self.counters.quic_packets_unknown.increment();
            return;
        }
        let mut answer = [0u8; 128];
        if let Ok(written) = quiche::negotiate_version(&header.scid, &header.dcid, &mut answer) {
            // Best effort: the peer asks again.
            let _lost = self
                .socket
                .try_send(&answer[..written], written, to, from_ip);
        }
    }
}
