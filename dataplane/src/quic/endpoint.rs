//! An endpoint: one UDP socket with its lanes, on one core.
//!
//! Two tasks drive it. The receive task drains the socket in GRO batches, feeds quiche, and wakes the flows that can
//! go on. The flush task runs after those flows and sends, for every lane that has something to say, GSO batches; it
//! also owns the timers. An endpoint ends when it was asked to and its last lane is gone.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_proto::CID_LEN;
use qmux_proto::cid::{self, CID_RANDOM_LEN, ConnectionId, LONG_HEADER_BIT};
use rand::Rng;
use rustc_hash::FxBuildHasher;

use super::event::{Event, yield_now};
use super::lane::{Connection, Lane};
use super::reset::ResetKey;
use super::settings::DATAGRAM_RECEIVE_QUEUE;
use super::timers::Timers;
use super::transmit::{Batch, Filled};
use crate::metrics::CoreCounters;
use crate::sys::udp::{ReceiveBatch, UdpSocket};

/// Receive calls before the flows get a turn.
const RECEIVE_CALLS_PER_TURN: usize = 2;

/// Turns that a receive waits for a flush that should come first.
const FLUSH_TURNS_MAX: usize = 8;

/// GSO batches that one lane may send before the next lane gets its turn.
const BATCHES_PER_TURN: usize = 4;

/// Handshakes that may be incomplete at once on one endpoint; above it new ones are refused. Peers that have not
/// authenticated must cost a bounded amount: one costs about 40 KB.
const INCOMPLETE_HANDSHAKES_MAX: usize = 1_024;

/// Stateless resets that one endpoint sends per second. After a restart every lane needs one; a flood must not make us
/// answer without bound.
const RESETS_PER_SECOND_MAX: u32 = 10_000;

/// Shortest first destination connection id that a client may choose (RFC 9000 section 7.2).
const INITIAL_DCID_BYTES_MIN: usize = 8;

thread_local! {
    /// The receive buffers of this core, shared by its endpoints: they are used only within one call.
    static RECEIVE: RefCell<ReceiveBatch> = RefCell::new(ReceiveBatch::new());
}

/// What owns an endpoint and is told of what concerns more than one lane.
pub(crate) trait EndpointOwner {
    /// A peer begins a handshake: say who handles the lane's events. Not called on endpoints that only dial.
    fn lane_accepted(&self, lane: &Rc<Lane>);
    /// A packet arrived whose connection id names another core. Returns false if it could not be handed over.
    fn hand_over(
        &self,
        core: usize,
        packet: &[u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) -> bool;
}

/// How an endpoint is set up.
pub(crate) struct EndpointSetup {
    /// The socket that it owns.
    pub(crate) socket: UdpSocket,
    /// Index of this core: the first byte of the connection ids that the endpoint issues.
    pub(crate) core: usize,
    /// Number of cores that share the port (1 for an endpoint that dials).
    pub(crate) group: usize,
    /// Transport settings and TLS.
    pub(crate) config: quiche::Config,
    /// Whether peers may begin lanes.
    pub(crate) accepts: bool,
    /// How long a handshake may take.
    pub(crate) handshake_timeout: Duration,
    /// Derives reset tokens; an endpoint that dials has none.
    pub(crate) reset_key: Option<ResetKey>,
    /// The core's counters.
    pub(crate) counters: Arc<CoreCounters>,
}

/// One UDP socket with its lanes.
pub(crate) struct Endpoint {
    socket: UdpSocket,
    core: usize,
    group: usize,
    accepts: bool,
    handshake_timeout: Duration,
    config: RefCell<quiche::Config>,
    reset_key: Option<ResetKey>,
    /// Stateless resets sent in the current second.
    resets: Cell<(Instant, u32)>,
    owner: RefCell<Option<Rc<dyn EndpointOwner>>>,
    lanes: RefCell<HashMap<u64, Rc<Lane>, FxBuildHasher>>,
    /// Connection ids that we issued. Only we choose the keys, so a fast hash is safe.
    by_cid: RefCell<HashMap<[u8; CID_LEN], Rc<Lane>, FxBuildHasher>>,
    /// First destination connection ids, chosen by clients: hashed so that they cannot choose collisions.
    by_initial: RefCell<HashMap<Box<[u8]>, Rc<Lane>>>,
    incomplete: Cell<usize>,
    dirty: RefCell<VecDeque<u64>>,
    touched: RefCell<Vec<Rc<Lane>>>,
    flush: Event,
    timers: RefCell<Timers>,
    next_key: Cell<u64>,
    /// True while received packets must wait for a flush.
    flush_first: Cell<bool>,
    closing: Cell<bool>,
    stopped: Event,
    counters: Arc<CoreCounters>,
}

impl Endpoint {
    /// Makes the endpoint and starts its tasks on the current core.
    pub(crate) fn start(
        setup: EndpointSetup,
        owner: Option<Rc<dyn EndpointOwner>>,
    ) -> Rc<Endpoint> {
        let endpoint = Rc::new(Endpoint {
            socket: setup.socket,
            core: setup.core,
            group: setup.group,
            accepts: setup.accepts,
            handshake_timeout: setup.handshake_timeout,
            config: RefCell::new(setup.config),
            reset_key: setup.reset_key,
            resets: Cell::new((Instant::now(), 0)),
            owner: RefCell::new(owner),
            lanes: RefCell::default(),
            by_cid: RefCell::default(),
            by_initial: RefCell::default(),
            incomplete: Cell::new(0),
            dirty: RefCell::default(),
            touched: RefCell::default(),
            flush: Event::default(),
            timers: RefCell::default(),
            next_key: Cell::new(0),
            flush_first: Cell::new(false),
            closing: Cell::new(false),
            stopped: Event::default(),
            counters: setup.counters,
        });
        monoio::spawn(Rc::clone(&endpoint).receive_task());
        monoio::spawn(Rc::clone(&endpoint).flush_task());
        endpoint
    }

    /// Says who owns the endpoint, where that could not be known when it was started.
    pub(crate) fn set_owner(&self, owner: Rc<dyn EndpointOwner>) {
        *self.owner.borrow_mut() = Some(owner);
    }

    /// Begins a lane towards `peer`, aimed at the server core `aim` by the first byte of its connection id.
    ///
    /// # Errors
    /// If quiche refuses the parameters.
    pub(crate) fn dial(
        self: &Rc<Self>,
        peer: SocketAddr,
        server_name: &str,
        aim: u8,
    ) -> Result<Rc<Lane>, quiche::Error> {
        let scid = self.new_cid();
        let dcid = ConnectionId::new(aim, random_cid());
        let ip = server_name.parse::<IpAddr>().ok();
        let mut conn: Connection = quiche::connect_with_dcid_and_buffer_factory(
            if ip.is_some() {
                None
            } else {
                Some(server_name)
            },
            &quiche::ConnectionId::from_ref(&scid),
            &quiche::ConnectionId::from_ref(dcid.as_bytes()),
            self.socket.local_addr(),
            peer,
            &mut self.config.borrow_mut(),
        )?;
        if let Some(ip) = ip {
            super::tls::expect_server_ip(conn.as_mut(), ip).map_err(|_| quiche::Error::TlsFail)?;
        }
        let lane = self.adopt(conn, scid);
        lane.mark_dirty();
        Ok(lane)
    }

    /// Ends the endpoint once its last lane is gone. Lanes are not closed by this.
    pub(crate) fn stop_when_empty(&self) {
        self.closing.set(true);
        self.flush.set();
    }

    /// All lanes that have not ended.
    pub(crate) fn lanes(&self) -> Vec<Rc<Lane>> {
        self.lanes.borrow().values().cloned().collect()
    }

    /// Processes a packet that another core received.
    pub(crate) fn inject(
        self: &Rc<Self>,
        packet: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) {
        self.packet(packet, from, to_ip, true);
        self.finish_turn();
    }

    /// The core's counters.
    pub(super) fn counters(&self) -> &CoreCounters {
        &self.counters
    }

    /// Holds back the next packets until what is to be sent has been sent once (see [`Lane::finish`]).
    pub(super) fn flush_before_receiving(&self) {
        self.flush_first.set(true);
    }

    pub(super) fn push_dirty(&self, lane: u64) {
        self.dirty.borrow_mut().push_back(lane);
        self.flush.set();
    }

    // ---- receiving -----------------------------------------------------------------------------------------------

    async fn receive_task(self: Rc<Self>) {
        loop {
            let ready = {
                let mut readable = pin!(self.socket.readable());
                poll_fn(|cx| {
                    if self.stopped.poll(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    readable.as_mut().poll(cx).map(Some)
                })
                .await
            };
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
                let mut drained = false;
                for _ in 0..RECEIVE_CALLS_PER_TURN {
                    if !RECEIVE.with_borrow_mut(|batch| self.receive_once(batch)) {
                        drained = true;
                        break;
                    }
                }
                self.finish_turn();
                if drained {
                    break;
                }
                yield_now().await;
            }
        }
    }

    /// One receive call. False when the socket is drained.
    fn receive_once(self: &Rc<Self>, batch: &mut ReceiveBatch) -> bool {
        match self.socket.try_receive(batch) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // An ICMP error of an earlier send; the next call goes on (udp(7)).
            Err(error) => {
                tracing::debug!(%error, "receive on a QUIC socket");
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
        true
    }

    fn packet(
        self: &Rc<Self>,
        data: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
        handed_over: bool,
    ) {
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
        let info = quiche::RecvInfo {
            from,
            to: self.local_addr(to_ip),
        };
        let (result, queued) = {
            let mut conn = lane.conn.borrow_mut();
            (conn.recv(data, info), conn.dgram_recv_queue_len())
        };
        if let Err(error) = result {
            self.counters.quic_packets_invalid.increment();
            tracing::debug!(lane = lane.key(), %from, %error, "packet refused");
        }
        if queued > DATAGRAM_RECEIVE_QUEUE / 2 {
            lane.deliver_datagrams();
        }
        if !lane.touched.replace(true) {
            self.touched.borrow_mut().push(Rc::clone(lane));
        }
    }

    /// After the packets of a turn: deliver what they changed, and have their lanes flushed (at least to acknowledge).
    fn finish_turn(self: &Rc<Self>) {
        let mut touched = std::mem::take(&mut *self.touched.borrow_mut());
        for lane in touched.drain(..) {
            lane.touched.set(false);
            lane.dispatch();
            lane.mark_dirty();
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
            let id: &[u8; CID_LEN] = packet.get(1..)?.first_chunk()?;
            return self.by_cid.borrow().get(id).cloned();
        }
        let dcid = long_header_dcid(packet)?;
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
        if self.incomplete.get() >= INCOMPLETE_HANDSHAKES_MAX {
            self.counters.handshakes_refused.increment();
            return;
        }
        let scid = self.new_cid();
        if let Some(key) = &self.reset_key {
            self.config
                .borrow_mut()
                .set_stateless_reset_token(Some(key.token(&scid)));
        }
        let accepted = quiche::accept_with_buf_factory(
            &quiche::ConnectionId::from_ref(&scid),
            None,
            self.local_addr(to_ip),
            from,
            &mut self.config.borrow_mut(),
        );
        let Ok(conn) = accepted else {
            self.counters.handshakes_failed.increment();
            return;
        };
        let lane = self.adopt(conn, scid);
        let initial_id: Box<[u8]> = header.dcid.as_ref().into();
        *lane.initial_id.borrow_mut() = Some(initial_id.clone());
        self.by_initial
            .borrow_mut()
            .insert(initial_id, Rc::clone(&lane));
        if let Some(owner) = self.owner.borrow().clone() {
            owner.lane_accepted(&lane);
        }
        self.feed(&lane, data, from, to_ip);
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

    fn adopt(self: &Rc<Self>, conn: Connection, scid: [u8; CID_LEN]) -> Rc<Lane> {
        let key = self.next_key.get();
        self.next_key.set(key + 1);
        let lane = Lane::new(
            key,
            Rc::downgrade(self),
            conn,
            Instant::now() + self.handshake_timeout,
        );
        self.lanes.borrow_mut().insert(key, Rc::clone(&lane));
        self.by_cid.borrow_mut().insert(scid, Rc::clone(&lane));
        self.incomplete.set(self.incomplete.get() + 1);
        lane
    }

    fn new_cid(&self) -> [u8; CID_LEN] {
        // The number of cores is at most 256 (`core::CORES_MAX`).
        ConnectionId::new(u8::try_from(self.core).unwrap_or(u8::MAX), random_cid()).into()
    }

    // ---- sending -------------------------------------------------------------------------------------------------

    async fn flush_task(self: Rc<Self>) {
        let mut batch = Batch::new();
        let mut turn = VecDeque::new();
        loop {
            if self.closing.get() && self.lanes.borrow().is_empty() {
                self.stopped.set();
                *self.owner.borrow_mut() = None;
                return;
            }
            if self.dirty.borrow().is_empty() {
                self.wait_for_work().await;
            }
            let now = Instant::now();
            self.fire_timers(now);
            std::mem::swap(&mut turn, &mut *self.dirty.borrow_mut());
            while let Some(key) = turn.pop_front() {
                let lane = self.lanes.borrow().get(&key).cloned();
                if let Some(lane) = lane {
                    lane.dirty.set(false);
                    lane.bare_fin.set(false);
                    self.flush_lane(&lane, &mut batch, now).await;
                }
            }
            if self.dirty.borrow().is_empty() {
                self.flush_first.set(false);
            } else {
                yield_now().await;
            }
        }
    }

    /// Waits for a dirty lane or the earliest deadline.
    async fn wait_for_work(&self) {
        let next = self.timers.borrow().next();
        match next {
            None => self.flush.wait().await,
            Some(at) => {
                let mut sleep = pin!(monoio::time::sleep_until(at.into()));
                poll_fn(|cx| {
                    if self.flush.poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    sleep.as_mut().poll(cx)
                })
                .await;
            }
        }
    }

    fn fire_timers(self: &Rc<Self>, now: Instant) {
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some((at, key)) = due else { return };
            let lane = self.lanes.borrow().get(&key).cloned();
            let Some(lane) = lane else { continue };
            if lane.armed.get() == Some(at) {
                lane.armed.set(None);
            }
            let (timed_out, overdue) = {
                let mut conn = lane.conn.borrow_mut();
                let timed_out = conn
                    .timeout_instant()
                    .is_some_and(|deadline| deadline <= now);
                if timed_out {
                    conn.on_timeout();
                }
                let overdue = lane
                    .handshake_deadline
                    .get()
                    .is_some_and(|deadline| deadline <= now);
                if overdue {
                    // `Done`: it is closing already.
                    let _closing = conn.close(true, 0, b"handshake timeout");
                }
                (timed_out, overdue)
            };
            if timed_out || overdue {
                lane.dispatch();
            }
            lane.mark_dirty();
        }
    }

    async fn flush_lane(self: &Rc<Self>, lane: &Rc<Lane>, batch: &mut Batch, now: Instant) {
        let segments = self.socket.gso_segments();
        for round in 1.. {
            let filled = batch.fill(lane, now, segments);
            self.send(batch).await;
            if filled == Filled::All {
                break;
            }
            if round >= BATCHES_PER_TURN && !batch.carries() {
                lane.mark_dirty();
                break;
            }
        }
        lane.wake_room_waiters();
        self.keep_connection_ids(lane);
        if lane.note_end() {
            self.remove(lane);
            return;
        }
        let deadline = {
            let conn = lane.conn.borrow();
            [
                conn.timeout_instant(),
                lane.release_at.get(),
                lane.handshake_deadline.get(),
            ]
            .into_iter()
            .flatten()
            .min()
        };
        let mut armed = lane.armed.get();
        self.timers
            .borrow_mut()
            .arm(lane.key(), deadline, &mut armed);
        lane.armed.set(armed);
    }

    async fn send(&self, batch: &Batch) {
        let Some(ready) = batch.ready() else { return };
        loop {
            match self
                .socket
                .try_send(ready.bytes, ready.segment, ready.to, ready.from_ip)
            {
                Ok(()) => {
                    self.counters.quic_send_batches.increment();
                    self.counters.quic_packets_sent.add(ready.packets() as u64);
                    self.counters.quic_bytes_sent.add(ready.bytes.len() as u64);
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.counters.quic_send_waits.increment();
                    if self.socket.writable().await.is_err() {
                        return;
                    }
                }
                // A path MTU probe that the local interface already refuses: quiche sees it as lost.
                Err(error) if quinn_udp::is_msg_size_err(&error) => {
                    self.counters.quic_sends_too_large.increment();
                    return;
                }
                Err(error)
                    if ready.segment < ready.bytes.len() && self.socket.gso_segments() == 1 =>
                {
                    // quinn-udp has just found out that the device cannot do GSO.
                    self.counters.gso_fallbacks.increment();
                    tracing::warn!(%error, "GSO does not work on this path; sending single packets, which is slower");
                    for packet in ready.bytes.chunks(ready.segment) {
                        // What is lost here is repeated by QUIC.
                        let _lost =
                            self.socket
                                .try_send(packet, packet.len(), ready.to, ready.from_ip);
                    }
                    return;
                }
                Err(error) => {
                    self.counters.quic_sends_failed.increment();
                    tracing::debug!(%error, to = %ready.to, "send failed");
                    return;
                }
            }
        }
    }

    /// Issues spare connection ids, which a change of address needs, and forgets retired ones.
    fn keep_connection_ids(&self, lane: &Rc<Lane>) {
        let mut conn = lane.conn.borrow_mut();
        while let Some(retired) = conn.retired_scid_next() {
            if let Ok(id) = <[u8; CID_LEN]>::try_from(retired.as_ref()) {
                self.by_cid.borrow_mut().remove(&id);
            }
        }
        if !conn.is_established() {
            return;
        }
        if self.handshake_over(lane) {
            self.counters.lanes_opened.increment();
        }
        while conn.scids_left() > 0 {
            let id = self.new_cid();
            let reset_token = self
                .reset_key
                .as_ref()
                .map_or_else(rand::random, |key| key.token(&id));
            if conn
                .new_scid(&quiche::ConnectionId::from_ref(&id), reset_token, false)
                .is_err()
            {
                break;
            }
            self.by_cid.borrow_mut().insert(id, Rc::clone(lane));
        }
    }

    /// No longer counts the lane among the incomplete handshakes. False if it was not.
    fn handshake_over(&self, lane: &Lane) -> bool {
        if !lane.counted_incomplete.replace(false) {
            return false;
        }
        self.incomplete.set(self.incomplete.get() - 1);
        if let Some(id) = lane.initial_id.borrow_mut().take() {
            self.by_initial.borrow_mut().remove(&id);
        }
        true
    }

    fn remove(&self, lane: &Rc<Lane>) {
        self.lanes.borrow_mut().remove(&lane.key());
        for id in lane.conn.borrow().source_ids() {
            if let Ok(id) = <&[u8; CID_LEN]>::try_from(id.as_ref()) {
                self.by_cid.borrow_mut().remove(id);
            }
        }
        if self.handshake_over(lane) {
            self.counters.handshakes_failed.increment();
        } else {
            self.counters.lanes_ended.increment();
        }
    }
}

fn random_cid() -> [u8; CID_RANDOM_LEN] {
    let mut random = [0; CID_RANDOM_LEN];
    rand::rng().fill_bytes(&mut random);
    random
}

/// The destination connection id of a long header packet (RFC 8999 section 5.1).
fn long_header_dcid(packet: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*packet.get(cid::LONG_HEADER_DCID_OFFSET - 1)?);
    packet.get(cid::LONG_HEADER_DCID_OFFSET..)?.get(..length)
}
