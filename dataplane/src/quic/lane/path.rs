//! The path of a lane: where it leads, and the largest packet that it carries.
//!
//! quiche searches for that with probes (RFC 8899) and tells by events. Its own estimate of what
//! fits a packet follows the *probes* (`max_send_udp_payload_size` is the size of the probe under
//! way), so datagrams measured by it would wait behind a probe that fails, and then be dropped
//! silently.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::control::{Message, PathChallenge};
use qmux_proto::varint;

use super::Lane;
use super::datagrams::Tally;
use crate::quic::over_tls::TlsConnection;
use crate::quic::path_numbers::PathSample;
use crate::quic::roaming::{Moved, Roaming, TlsId, Way};

/// Every path of QUIC carries packets of this size (RFC 9000 section 14).
pub(crate) const PACKET_BYTES_SURE: usize = quiche::MIN_CLIENT_INITIAL_LEN;

/// Timeouts in a row without an acknowledged packet that make a path suspect of losing only large
/// packets. The second one comes after three probe timeouts, and a mere outage costs one round trip
/// with small packets.
const TIMEOUTS_SUSPECT: u32 = 2;

/// A lane that was in use and has heard nothing for this long sends a PING, which is repeated until
/// it is answered. If this side's address has changed, the peer learns the new one by it, and not
/// only with the next heartbeat.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// A lane is in use if it has received this many bytes since its last such PING: more than an idle
/// one gets in minutes.
const IN_USE_BYTES: u64 = 1_500;

/// Pause between two PINGs of a lane whose packets do not leave this machine.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(250);

/// If less than this is left for an address that is not proved, nothing is sent: a packet with a
/// challenge takes about 70 bytes.
const BUDGET_BYTES_MIN: usize = 100;

/// The state of a lane's path; see the module.
#[derive(Debug)]
pub(super) struct PathState {
    roaming: RefCell<Roaming>,
    /// The path that the lane began with; quiche knows it by these addresses for ever.
    first: Way,
    /// Whether the peer's address is not proved.
    on_probation: Cell<bool>,
    /// Bytes received, now and when the last PING against silence was sent.
    received: Cell<u64>,
    received_at_ping: Cell<u64>,
    /// Genuine packets along the current path, up to the last turn.
    heard_here: Cell<u64>,
    /// Genuine packets along other paths.
    strayed: Cell<u64>,
    /// The time at which there will have been silence for too long.
    silence_at: Cell<Option<Instant>>,
    /// The largest packet that the path is known to carry.
    packet_bytes_max: Cell<usize>,
    /// Timeouts since this many bytes were acknowledged.
    timeouts: Cell<(u64, u32)>,
    /// Genuine packets when the acknowledged ones were last counted, and the result.
    answers: Cell<(u64, u64)>,
}

impl PathState {
    pub(super) fn new(way: Way) -> PathState {
        PathState {
            roaming: RefCell::new(Roaming::new(way)),
            first: way,
            on_probation: Cell::new(false),
            received: Cell::new(0),
            received_at_ping: Cell::new(0),
            heard_here: Cell::new(0),
            strayed: Cell::new(0),
            silence_at: Cell::new(None),
            packet_bytes_max: Cell::new(PACKET_BYTES_SURE),
            timeouts: Cell::new((0, 0)),
            answers: Cell::new((0, 0)),
        }
    }
}

/// The changes of a path since the last call.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::quic) struct PathChanges {
    /// Datagrams dropped because they no longer fit a packet.
    pub(in crate::quic) datagrams_dropped: usize,
}

impl Lane {
    /// The current path of packets.
    pub(in crate::quic) fn way(&self) -> Way {
        self.path.roaming.borrow().current()
    }

    /// The path under which quiche knows the lane.
    pub(in crate::quic) fn first_way(&self) -> Way {
        self.path.first
    }

    /// For a client: sends packets along `way` from now on.
    pub(crate) fn choose_way(&self, way: Way) {
        self.path.roaming.borrow_mut().choose(way);
        self.path.on_probation.set(false);
    }

    /// Whether the lane rides a TLS connection that takes no packet now.
    pub(super) fn must_wait_for_tls(&self) -> bool {
        self.tls().is_some()
            && self
                .endpoint
                .upgrade()
                .is_some_and(|endpoint| endpoint.must_wait_for_tls(self))
    }

    /// The TLS connection that the lane rides.
    pub(crate) fn tls(&self) -> Option<TlsId> {
        self.way().tls
    }

    /// For a client: makes its endpoint take packets from a TLS connection as well.
    ///
    /// # Errors
    /// If its socket cannot be used, or the lane is gone.
    pub(crate) fn adopt_tls(&self, connection: TlsConnection) -> std::io::Result<TlsId> {
        let gone = || std::io::Error::other("the lane has ended");
        let endpoint = self.endpoint.upgrade().ok_or_else(gone)?;
        endpoint.adopt_tls(connection)
    }

    /// For a client: sends packets along this TLS connection from now on. Returns false if it is
    /// over.
    pub(crate) fn ride_tls(&self, id: TlsId) -> bool {
        let way = self.endpoint.upgrade().and_then(|it| it.tls_way(id));
        if let Some(way) = way {
            self.move_to(way);
        }
        way.is_some()
    }

    /// For a client: sends packets over UDP from now on.
    pub(crate) fn ride_udp(&self) {
        self.move_to(self.first_way());
        // A packet size that passed along TLS need not pass here.
        self.distrust_packet_size();
    }

    fn move_to(&self, way: Way) {
        self.choose_way(way);
        // The peer learns of it by the next packet. And a packet that is acknowledged tells what
        // was lost before, however full the window is.
        self.ping();
        self.hurries.set(true);
        self.mark_dirty();
    }

    /// For a client: closes a TLS connection that is not needed any more.
    pub(crate) fn close_tls(&self, id: TlsId) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.close_tls(id);
        }
    }

    /// Handles the end of a TLS connection that the lane rides, or might have ridden.
    pub(in crate::quic) fn way_lost(self: &Rc<Self>, id: TlsId, rides: bool) {
        if rides && self.nobody_listens(std::io::ErrorKind::ConnectionReset) {
            return;
        }
        if rides {
            self.is_cut_off();
        }
        if let Some(events) = self.events() {
            events.way_lost(self, id);
        }
    }

    /// Handles the end of the lane's TLS connection by the peer.
    pub(in crate::quic) fn peer_hung_up(self: &Rc<Self>) {
        if let Some(events) = self.events() {
            events.hung_up(self);
        }
    }

    /// Whether packets follow the peer to the address that its own come from.
    pub(in crate::quic) fn follows(&self) -> bool {
        self.path.roaming.borrow().follows()
    }

    /// Notes that the peer answers PathChallenge messages.
    pub(crate) fn peer_answers_challenges(&self) {
        self.path.roaming.borrow_mut().peer_answers();
    }

    /// Counts a packet of `bytes` along the current path.
    pub(in crate::quic) fn received(&self, bytes: usize) {
        self.path
            .received
            .set(self.path.received.get() + bytes as u64);
        if self.path.on_probation.get() {
            self.path.roaming.borrow_mut().received(bytes);
        }
    }

    /// Ends a turn, whose packets have been processed: if any came along the current path, the peer
    /// is there.
    pub(super) fn note_peer_here(&self) {
        if !self.follows() {
            return;
        }
        let genuine = self
            .genuine_packets()
            .saturating_sub(self.path.strayed.get());
        if genuine != self.path.heard_here.replace(genuine) {
            self.path.roaming.borrow_mut().heard(Instant::now());
        }
    }

    /// Number of packets that decrypted, which nobody else may have sent in the peer's name.
    pub(in crate::quic) fn genuine_packets(&self) -> u64 {
        let conn = self.conn.borrow();
        // `stats()` is not used because it visits every stream.
        conn.path_stats().map(|path| path.recv as u64).sum()
    }

    /// A number that grows whenever the peer acknowledges what was sent to it. That packets come
    /// says less, because the path may be broken in the other direction alone.
    ///
    /// It visits every stream if packets have come since the last call.
    pub(crate) fn answers(&self) -> u64 {
        let genuine = self.genuine_packets();
        let (before, known) = self.path.answers.get();
        if genuine == before {
            return known;
        }
        let answers = self.conn.borrow().stats().acked_bytes;
        self.path.answers.set((genuine, answers));
        answers
    }

    /// Number of packets sent since the lane began, and of those among them that were declared
    /// lost.
    pub(crate) fn packets_sent_and_lost(&self) -> (u64, u64) {
        let conn = self.conn.borrow();
        let counts = conn.path_stats().map(|path| (path.sent, path.lost));
        counts.fold((0, 0), |sum, (sent, lost)| {
            (sum.0 + sent as u64, sum.1 + lost as u64)
        })
    }

    /// Measurements of the path for operators.
    pub(crate) fn path_sample(&self) -> PathSample {
        let conn = self.conn.borrow();
        let mut sample = PathSample {
            rtt: Duration::ZERO,
            lost_packets: 0,
            window_bytes: 0,
        };
        for path in conn.path_stats() {
            sample.lost_packets += path.lost as u64;
            if path.active {
                sample.rtt = path.rtt;
                sample.window_bytes = path.cwnd as u64;
            }
        }
        sample
    }

    /// Handles a genuine packet of `bytes` that came along another path: returns whether the lane
    /// follows, and how.
    pub(in crate::quic) fn follow(&self, way: Way, bytes: usize) -> Option<Moved> {
        let earlier = self.way();
        self.path.strayed.set(self.path.strayed.get() + 1);
        let nonce = rand::random::<u64>() & varint::MAX;
        let moved = self.path.roaming.borrow_mut().strayed(
            way,
            bytes,
            Instant::now(),
            nonce,
            self.path.heard_here.get(),
        )?;
        // What came earlier in this turn came along the previous path.
        self.turn.moved();
        tracing::debug!(
            lane = self.key,
            from = %earlier.peer,
            to = %way.peer,
            to_be_proved = matches!(moved, Moved::Challenge(_)),
            "the peer's address has changed"
        );
        // When this is acknowledged, losses in between are known, however full the window is.
        self.ping();
        self.hurries.set(true);
        let from_tls = earlier.tls.is_some() && way.tls.is_none();
        if way.tls.is_none() && (from_tls || earlier.peer.ip() != way.peer.ip()) {
            // This is another network. With a new port alone, the path is what it was (RFC 9000
            // section 9.4).
            self.distrust_packet_size();
        }
        match moved {
            Moved::Challenge(nonce) => {
                self.path.on_probation.set(true);
                self.send_control(&Message::PathChallenge(PathChallenge { nonce }));
            }
            Moved::Known => self.path.on_probation.set(false),
        }
        self.mark_dirty();
        self.tell_moved();
        Some(moved)
    }

    fn tell_moved(&self) {
        if let (Some(events), Some(this)) = (self.events(), self.this.upgrade()) {
            events.moved(&this);
        }
    }

    /// Handles the answer to a challenge. Returns true if it proves the peer's address.
    pub(crate) fn path_response(&self, nonce: u64) -> bool {
        let proved = self.path.roaming.borrow_mut().answered(nonce);
        if proved {
            self.path.on_probation.set(false);
            if let Some(endpoint) = self.endpoint.upgrade() {
                endpoint.counters().paths_validated.increment();
            }
            tracing::debug!(lane = self.key, peer = %self.way().peer, "the peer has moved");
            self.mark_dirty();
        }
        proved
    }

    /// How large the next packet may be. `None` if nothing may be sent now.
    pub(in crate::quic) fn send_budget(&self, room: usize) -> Option<usize> {
        if !self.path.on_probation.get() {
            return Some(room);
        }
        let budget = self.path.roaming.borrow().budget().unwrap_or(room);
        (budget >= BUDGET_BYTES_MIN).then_some(budget.min(room))
    }

    /// Takes `bytes` from the budget, if there is one.
    pub(in crate::quic) fn spend(&self, bytes: usize) {
        if self.path.on_probation.get() {
            self.path.roaming.borrow_mut().sent(bytes);
        }
    }

    /// Restarts the watch for silence at `now`, after the packets of a turn have been processed.
    pub(in crate::quic) fn watch_for_silence(&self, now: Instant) {
        if self.path.received.get() - self.path.received_at_ping.get() > IN_USE_BYTES {
            self.path.silence_at.set(Some(now + SILENCE_MAX));
        }
    }

    /// Notes that nothing leaves this machine towards the peer, so that the lane tries again soon.
    pub(in crate::quic) fn unreachable(&self) {
        if self.path.silence_at.get().is_none() {
            self.path
                .silence_at
                .set(Some(Instant::now() + UNREACHABLE_PAUSE));
        }
    }

    /// The time at which [`Lane::path_due`] has something to do.
    pub(in crate::quic) fn path_deadline(&self) -> Option<Instant> {
        let probation = if self.path.on_probation.get() {
            self.path.roaming.borrow().deadline()
        } else {
            None
        };
        [probation, self.path.silence_at.get()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due for the path. Returns true if the peer has not proved its address in time.
    pub(in crate::quic) fn path_due(&self, now: Instant) -> bool {
        if self.path.silence_at.get().is_some_and(|at| at <= now) {
            self.path.silence_at.set(None);
            self.path.received_at_ping.set(self.path.received.get());
            self.ping();
        }
        let failed = self.path.on_probation.get() && self.path.roaming.borrow_mut().expire(now);
        if failed {
            self.path.on_probation.set(false);
            self.mark_dirty();
            self.tell_moved();
        }
        failed
    }

    /// The largest packet that the path is known to carry. A larger one is a probe.
    pub(in crate::quic) fn packet_bytes_max(&self) -> usize {
        self.path.packet_bytes_max.get()
    }

    /// The largest datagram that one packet carries now; it changes with the path. 0 if none can be
    /// sent.
    pub(crate) fn datagram_room(&self) -> usize {
        let conn = self.conn.borrow();
        let room = conn.dgram_max_writable_len().unwrap_or(0);
        let unsure = conn
            .max_send_udp_payload_size()
            .saturating_sub(self.path.packet_bytes_max.get());
        room.saturating_sub(unsure)
    }

    /// Takes what quiche has learned about the path.
    pub(in crate::quic) fn note_path(&self) -> PathChanges {
        let mut changes = PathChanges::default();
        loop {
            let event = self.conn.borrow_mut().path_event_next();
            match event {
                None => return changes,
                Some(quiche::PathEvent::PmtuUpdated { pmtu, .. }) => {
                    tracing::debug!(lane = self.key, pmtu, "largest packet of the path");
                    let before = self.path.packet_bytes_max.replace(pmtu);
                    if pmtu < before {
                        changes.datagrams_dropped += self.drop_large_datagrams();
                    }
                }
                Some(event) => tracing::debug!(lane = self.key, ?event, "path"),
            }
        }
    }

    /// Drops queued datagrams that fit no packet any more; those behind them would wait for ever.
    fn drop_large_datagrams(&self) -> usize {
        let room = self.datagram_room();
        let mut conn = self.conn.borrow_mut();
        let before = conn.dgram_send_queue_len();
        conn.dgram_purge_outgoing(|datagram| datagram.len() > room);
        let dropped = before - conn.dgram_send_queue_len();
        Tally::add(&self.datagrams.purged, dropped);
        dropped
    }

    /// Counts a timeout of the connection. Returns true if the path is now suspected of losing
    /// large packets, and the search for their size begins anew.
    pub(in crate::quic) fn suspects_packet_size(&self) -> bool {
        let acknowledged = self.conn.borrow().stats().acked_bytes;
        let (mark, count) = self.path.timeouts.get();
        if acknowledged >= mark + PACKET_BYTES_SURE as u64 {
            self.path.timeouts.set((acknowledged, 1));
            return false;
        }
        self.path.timeouts.set((mark, count.saturating_add(1)));
        // This repeats while nothing helps, because a search that was under way could not be begun
        // anew.
        (count + 1).is_multiple_of(TIMEOUTS_SUSPECT) && self.distrust_packet_size()
    }

    /// Begins the search for the largest packet anew, from small ones. Returns false if it is at
    /// the smallest already, or has not ended yet.
    pub(in crate::quic) fn distrust_packet_size(&self) -> bool {
        if self.path.packet_bytes_max.get() <= PACKET_BYTES_SURE {
            return false;
        }
        let mut conn = self.conn.borrow_mut();
        if conn.pmtu().is_none() {
            return false;
        }
        conn.revalidate_pmtu();
        drop(conn);
        self.mark_dirty();
        true
    }
}
