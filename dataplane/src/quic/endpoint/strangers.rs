//! Packets of no known lane: the first packets of new lanes, and the answers to others.
//!
//! Anybody may send them. [`crate::quic::admission`] decides what that may cost. Each packet that
//! gets neither a lane nor an answer is counted.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_proto::CID_LEN;

use super::Endpoint;
use super::receive::one_of;
use crate::quic::admission::{PLACES_MAX, Refused, Verdict};
use crate::quic::lane::Lane;
use crate::quic::reset::Answer;
use crate::quic::roaming::Way;
use crate::quic::transmit::Ready;

/// The shortest time between two log lines about refused handshakes; counters tell how many there
/// were.
const CROWDED_LOG_PAUSE: Duration = Duration::from_secs(60);

/// The longest Retry packet: header, two connection ids of up to 20 bytes, token of up to 72, tag
/// of 16.
const RETRY_BYTES_MAX: usize = 256;

/// The most stateless resets that one endpoint sends per second. After a restart every lane needs
/// one, but a flood must not make us answer without bound.
const RESETS_PER_SECOND_MAX: u32 = 10_000;

/// The shortest first destination connection id that a client may choose (RFC 9000 section 7.2).
const INITIAL_DCID_BYTES_MIN: usize = 8;

impl Endpoint {
    /// Handles a packet on a client that may be a stateless reset; only the lane can tell, by its
    /// token.
    pub(super) fn maybe_reset(self: &Rc<Self>, data: &mut [u8], way: Way) {
        let lane = self.lanes.borrow().values().next().cloned();
        match lane {
            Some(lane) => self.feed(&lane, data, way),
            None => self.counters.quic_packets_unknown.increment(),
        }
    }

    /// Handles a packet on a server that mostly belongs to a lane of an earlier process. It is
    /// answered with a stateless reset, if the lane was ours.
    pub(super) fn answer_short_header(self: &Rc<Self>, data: &[u8], way: Way) {
        self.counters.quic_packets_unknown.increment();
        let Some(key) = &self.reset_key else { return };
        let answer = match key.answer(data, self.local_ip(way.local)) {
            Answer::Reset(answer) => answer,
            Answer::Foreign => {
                self.counters.quic_packets_foreign.increment();
                return;
            }
            Answer::TooSmall => return,
        };
        if !one_of(&self.resets, RESETS_PER_SECOND_MAX, Instant::now()) {
            self.counters.stateless_resets_suppressed.increment();
            return;
        }
        self.counters.stateless_resets_sent.increment();
        self.answer(&answer, way);
    }

    /// Handles the first packet of a connection (RFC 9000 section 5.2.2).
    pub(super) fn begin_handshake(self: &Rc<Self>, data: &mut [u8], way: Way) {
        let Ok(header) = quiche::Header::from_slice(data, CID_LEN) else {
            self.counters.quic_packets_invalid.increment();
            return;
        };
        // Small packets get no answer, which must not be larger than the question (RFC 9000 section
        // 6.1).
        if data.len() < quiche::MIN_CLIENT_INITIAL_LEN {
            self.counters.quic_packets_unknown.increment();
            return;
        }
        if !quiche::version_is_supported(header.version) {
            self.negotiate_version(&header, way);
            return;
        }
        if header.ty != quiche::Type::Initial || header.dcid.len() < INITIAL_DCID_BYTES_MIN {
            self.counters.quic_packets_unknown.increment();
            return;
        }
        let now = Instant::now();
        let original = header
            .token
            .as_deref()
            .filter(|token| !token.is_empty())
            .and_then(|token| self.retry_key.verify(way.peer, &header.dcid, token, now))
            .map(quiche::ConnectionId::from_ref);
        // TCP has shown that the peer receives there.
        let receives = original.is_some() || way.tls.is_some();
        let Some(admission) = &self.admission else {
            return; // Nobody begins lanes here: `unknown_packet` sees to it.
        };
        let verdict = admission.borrow_mut().judge(way.peer.ip(), receives, now);
        match verdict {
            Verdict::Begin { displaces } => {
                if let Some(lane) = displaces {
                    self.displace(lane);
                }
            }
            Verdict::Retry => {
                self.ask_for_address(&header, way, now);
                return;
            }
            Verdict::Refuse(why) => {
                self.refuse_handshake(why, now);
                return;
            }
        }
        let Some(lane) = self.accept_lane(&header, original.as_ref(), way) else {
            self.counters.handshakes_failed.increment();
            return;
        };
        self.feed(&lane, data, way);
        if lane.conn.borrow().stats().recv == 0 {
            // It was not a packet of QUIC after all: nobody is told of the lane, and it leaves
            // nothing behind.
            self.counters.initials_invalid.increment();
            self.forget(&lane);
            return;
        }
        if let Some(owner) = self.owner.borrow().clone() {
            owner.lane_accepted(&lane);
        }
    }

    /// Makes a lane for a client whose first packet has this `header`. After a Retry, `original` is
    /// the client's first destination connection id.
    fn accept_lane(
        self: &Rc<Self>,
        header: &quiche::Header<'_>,
        original: Option<&quiche::ConnectionId<'_>>,
        way: Way,
    ) -> Option<Rc<Lane>> {
        let local_ip = self.local_ip(way.local);
        // After a Retry the client uses the connection id that we gave it, as its token says.
        let scid = match <[u8; CID_LEN]>::try_from(header.dcid.as_ref()) {
            Ok(id) if original.is_some() => id,
            _ => self.new_cid(local_ip),
        };
        if let Some(key) = &self.reset_key {
            self.config
                .borrow_mut()
                .set_stateless_reset_token(Some(key.token(&scid, local_ip)));
        }
        self.fit_packets_to(way);
        let conn = quiche::accept_with_buf_factory(
            &quiche::ConnectionId::from_ref(&scid),
            original,
            self.local_addr(way.local),
            way.peer,
            &mut self.config.borrow_mut(),
        )
        .ok()?;
        let lane = self.adopt(conn, scid, way);
        let initial_id: Box<[u8]> = header.dcid.as_ref().into();
        *lane.initial_id.borrow_mut() = Some(initial_id.clone());
        self.by_initial
            .borrow_mut()
            .insert(initial_id, Rc::clone(&lane));
        Some(lane)
    }

    /// Gives up a lane that has had its place for long, because another one needs it.
    fn displace(&self, lane: u64) {
        self.counters.handshakes_displaced.increment();
        if let Some(admission) = &self.admission {
            admission.borrow_mut().give_back(lane);
        }
        if let Some(lane) = self.lane(lane) {
            lane.give_up();
        }
    }

    /// Refuses a handshake without an answer. The client repeats its first packet after a second
    /// (RFC 9002 section 6.2.2), and gets in when as many handshakes as a core completes meanwhile
    /// are over.
    fn refuse_handshake(&self, why: Refused, now: Instant) {
        let (counter, text) = match why {
            Refused::NoPlace => (
                &self.counters.handshakes_refused,
                "more clients at once than one core shakes hands with; the others try again \
                 (counter handshakes_refused)",
            ),
            Refused::NoPlaceForNetwork => (
                &self.counters.handshakes_refused_network,
                "one network has begun so many handshakes that only places for others are left \
                 (counter handshakes_refused_network)",
            ),
            Refused::Handshakes => (
                &self.counters.handshakes_refused_rate,
                "more handshakes per second than one core begins; the others try again \
                 (counter handshakes_refused_rate)",
            ),
            Refused::Answers => (
                &self.counters.initials_dropped,
                "a flood of first packets; some are not answered (counter initials_dropped)",
            ),
        };
        counter.increment();
        let due = |at: Instant| now.saturating_duration_since(at) >= CROWDED_LOG_PAUSE;
        if self.crowded_logged_at.get().is_none_or(due) {
            self.crowded_logged_at.set(Some(now));
            tracing::warn!(
                core = self.core,
                addr = %self.socket.local_addr(),
                places = self.admission.as_ref().map(|it| it.borrow().places()),
                places_max = PLACES_MAX,
                "{text}"
            );
        }
    }

    /// Answers with a Retry: a client that receives it comes back with a token.
    fn ask_for_address(self: &Rc<Self>, header: &quiche::Header<'_>, way: Way, now: Instant) {
        let id = self.new_cid(self.local_ip(way.local));
        let token = self.retry_key.token(way.peer, &id, &header.dcid, now);
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
            self.answer(&answer[..written], way);
        }
    }

    fn negotiate_version(self: &Rc<Self>, header: &quiche::Header<'_>, way: Way) {
        let (ip, now) = (way.peer.ip(), Instant::now());
        let admission = self.admission.as_ref();
        if !admission.is_some_and(|it| it.borrow_mut().may_answer(ip, now)) {
            self.counters.initials_dropped.increment();
            return;
        }
        let mut answer = [0u8; 128];
        if let Ok(written) = quiche::negotiate_version(&header.scid, &header.dcid, &mut answer) {
            self.counters.versions_negotiated.increment();
            self.answer(&answer[..written], way);
        }
    }

    /// Sends an answer if there is room; otherwise the peer asks again.
    fn answer(self: &Rc<Self>, answer: &[u8], way: Way) {
        if let Some(id) = way.tls {
            let ways = self.tls_ways.borrow();
            if ways.get(&id).is_some_and(|way| way.has_waiting()) {
                // A peer that reads nothing is not answered without end.
                self.counters.stateless_answers_lost.increment();
                return;
            }
            drop(ways);
            let (bytes, segment) = (answer, answer.len());
            self.send_tls(
                id,
                &Ready {
                    bytes,
                    segment,
                    way,
                    turned_round: false,
                },
            );
            return;
        }
        let sent: io::Result<()> = self
            .socket
            .try_send(answer, answer.len(), way.peer, way.local);
        if sent.is_err() {
            self.counters.stateless_answers_lost.increment();
        }
    }
}
