//! A lane: one QUIC connection, owned by one core, with the tasks that wait for its streams.
//!
//! The lane owns the quiche connection. Flows read and write streams through it, never keep a
//! borrow across an `await`, and learn by [`Event`]s when to try again. Whatever a call leaves to
//! be sent is flushed by the endpoint, which is told by [`Lane::mark_dirty`].

mod ack_delay;
mod bundles;
mod closing;
mod coalesce;
mod connection;
mod datagrams;
mod dispatch;
mod ended;
mod events;
mod held_back;
mod path;
mod peek;
mod room;
mod silence;
mod streams;
mod turn;
mod unsent;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use qmux_proto::control::Finished;
use qmux_proto::{FlowError, LaneError};
use rustc_hash::FxBuildHasher;

use super::end::LaneEnd;
use super::endpoint::Endpoint;
use super::handshake::Handshake;
use super::roaming::Way;
use crate::buffer::{Holdings, PooledBuffers};
use crate::core::event::Event;
use crate::core::memory::LaneAllowance;
use ack_delay::AckDelay;
pub(in crate::quic) use ack_delay::Brought;
use bundles::Bundles;
use coalesce::Coalesced;
use connection::ConnectionCell;
pub(crate) use datagrams::DatagramRefused;
use datagrams::Tally;
use ended::EndedStreams;
pub(crate) use events::LaneEvents;
use held_back::HeldBack;
pub(crate) use peek::StreamFront;
use room::{RoomQueue, Share};
use silence::Silence;
pub(crate) use silence::Silent;
use unsent::Unsent;

/// quiche's connection with our buffers.
pub(crate) type Connection = quiche::Connection<PooledBuffers>;

/// The control stream (client-initiated, bidirectional; RFC 9000 section 2.1).
pub(crate) const CONTROL_STREAM: u64 = 0;

/// The urgency of the control stream, the highest (RFC 9218): control messages are small and must
/// not wait for flows.
const URGENCY_FIRST: u8 = 0;

/// Bytes that flows may leave unsent in quiche, per lane. More costs cache misses (15 to 25 % of
/// throughput) and makes the other flows of the lane wait; less starves GSO batches (measured: 128
/// to 256 KB).
pub(in crate::quic) const QUEUE_BYTES_MAX: usize = 256 << 10;

/// Bytes of a packet that are certainly not payload: header with a connection id, one byte of
/// packet number, tag, the smallest stream frame header. Subtracting less than the real number
/// keeps the estimate of what is queued from growing.
const PACKET_OVERHEAD_MIN: usize = 1 + qmux_proto::CID_LEN + 1 + 16 + 2;

/// Bytes of datagrams that may wait to be sent on a lane: about 30 ms at 1 Gbit/s. Newer ones are
/// dropped and counted.
pub(crate) const DATAGRAM_QUEUE_BYTES_MAX: usize = 4 << 20;

/// Bytes of datagrams that may wait while the socket of the lane's TLS connection is full: they are
/// late already, and TCP may take seconds to make room.
const DATAGRAM_QUEUE_BYTES_MAX_FULL: usize = 64 << 10;

/// Control messages that may wait for the peer to read its control stream: 64 KB is 4,000
/// FlowClosed messages.
const CONTROL_BACKLOG_BYTES_MAX: usize = 64 << 10;

/// How long the repetition of a FIN on the control stream is delayed, so that it is sent together
/// with others.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(50);

/// The state of one stream, and of the flow that waits for it.
#[derive(Debug, Default)]
pub(crate) struct StreamWaiters {
    /// The id of the stream.
    stream: u64,
    /// Set when there may be something to read (also: FIN, reset, end of the lane).
    pub(crate) readable: Event,
    /// Set when there may be room to write (also: stopped, end of the lane).
    pub(crate) writable: Event,
    /// The time at which `readable` was last set because bytes came.
    told_readable: Cell<Option<Instant>>,
    /// Whether `readable` will be set soon (see [`coalesce`]).
    coalesced: Cell<bool>,
    /// The flow's share of the room in the lane.
    share: Share,
    /// Bytes that quiche has of the flow and that the peer has not acknowledged.
    holds: Rc<Holdings>,
    /// Whether the flow waits for memory.
    held_back: Cell<bool>,
    /// Whether the direction towards the peer was reset, so that nothing of it is to be delivered
    /// any more.
    was_reset: Cell<bool>,
    /// Bytes written to the stream.
    written: Cell<u64>,
    /// Bytes read from the stream.
    received: Cell<u64>,
    /// The final size of the stream, if the peer has told it ([`Finished`]).
    announced: Cell<Option<u64>>,
}

/// Outcome of reading a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamRead {
    /// This many bytes were read; the flag says that no more will come (FIN).
    Bytes(usize, bool),
    /// There is nothing now: wait for `readable`.
    Blocked,
    /// The peer reset the stream, or the lane has ended.
    Reset(FlowError),
}

/// Outcome of asking for room in a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamRoom {
    /// This many bytes may be written now (at least 1).
    Bytes(usize),
    /// There is no room now: wait for `writable`.
    Blocked,
    /// The peer does not want more (STOP_SENDING), or the lane has ended.
    Stopped(FlowError),
}

/// One QUIC connection of this core.
pub(crate) struct Lane {
    key: u64,
    endpoint: Weak<Endpoint>,
    pub(super) conn: ConnectionCell,
    waiters: RefCell<HashMap<u64, Rc<StreamWaiters>, FxBuildHasher>>,
    /// Flows that wait for room.
    room: RoomQueue,
    /// Readable streams whose flows are told soon.
    coalesced: Coalesced,
    /// Flows that wait for memory.
    held_back: HeldBack,
    /// The handler. It is removed at the lane's end, because it holds the lane, which would
    /// otherwise live for ever.
    events: RefCell<Option<Rc<dyn LaneEvents>>>,
    pub(super) dirty: Cell<bool>,
    pub(super) touched: Cell<bool>,
    /// The earliest entry in the endpoint's timers.
    pub(super) armed: Cell<Option<Instant>>,
    /// The earliest entry among the endpoint's deadlines of delayed acknowledgements.
    pub(super) acks_armed: Cell<Option<Instant>>,
    /// Whether the lane has just moved to another path, so that the next packets are not paced.
    pub(super) hurries: Cell<bool>,
    /// The time at which pacing lets the next packet go.
    pub(super) release_at: Cell<Option<Instant>>,
    /// The time at which the lane is given up if by then it has not completed its handshake or (on
    /// a server) not registered.
    pub(super) admission_deadline: Cell<Option<Instant>>,
    /// Whether the lane was given up at that deadline.
    pub(super) given_up: Cell<bool>,
    /// The error for which it was given up, if nobody can be reached.
    unreachable: Cell<Option<std::io::ErrorKind>>,
    /// Whether the endpoint counts this lane among those of strangers.
    pub(super) counted_unadmitted: Cell<bool>,
    /// Whether the endpoint has counted this lane as established.
    pub(super) counted_opened: Cell<bool>,
    /// The destination connection id of the client's first packet, until the handshake is complete.
    pub(super) initial_id: RefCell<Option<Box<[u8]>>>,
    /// The bytes that wait in quiche to be sent.
    pub(super) unsent: Unsent,
    established: Event,
    was_established: Cell<bool>,
    end: RefCell<Option<LaneEnd>>,
    closed_by_us: Cell<Option<LaneError>>,
    /// Whether it has been closed since it was flushed for the last time. The peer is to be told
    /// before timers fire.
    pub(in crate::quic) closes: Cell<bool>,
    next_stream: Cell<u64>,
    /// Control messages that stream 0 has not taken yet.
    control_backlog: RefCell<Vec<u8>>,
    /// Whether a FIN without data waits to be sent.
    pub(super) bare_fin: Cell<bool>,
    /// FINs to be repeated on the control stream.
    announcements: RefCell<Vec<Finished>>,
    ended: EndedStreams,
    silence: Silence,
    datagrams: Tally,
    bundles: Bundles,
    ack_delay: AckDelay,
    /// What the turn of receiving that is under way has brought.
    pub(super) turn: turn::Turn,
    /// The state of the path.
    path: path::PathState,
    _allowance: LaneAllowance,
    this: Weak<Lane>,
}

impl Lane {
    pub(super) fn new(
        key: u64,
        endpoint: Weak<Endpoint>,
        conn: Connection,
        handshake_deadline: Instant,
        way: Way,
    ) -> Rc<Lane> {
        // Streams that we open are bidirectional: types 0 (client) and 1 (server); RFC 9000 section
        // 2.1.
        let next_stream = u64::from(conn.is_server());
        Rc::new_cyclic(|this| Lane {
            key,
            endpoint,
            conn: ConnectionCell::new(conn),
            waiters: RefCell::default(),
            room: RoomQueue::default(),
            coalesced: Coalesced::default(),
            held_back: HeldBack::default(),
            events: RefCell::new(None),
            dirty: Cell::new(false),
            touched: Cell::new(false),
            armed: Cell::new(None),
            acks_armed: Cell::new(None),
            hurries: Cell::new(false),
            release_at: Cell::new(None),
            admission_deadline: Cell::new(Some(handshake_deadline)),
            given_up: Cell::new(false),
            unreachable: Cell::new(None),
            counted_unadmitted: Cell::new(true),
            counted_opened: Cell::new(false),
            initial_id: RefCell::new(None),
            unsent: Unsent::default(),
            established: Event::default(),
            was_established: Cell::new(false),
            end: RefCell::new(None),
            closed_by_us: Cell::new(None),
            closes: Cell::new(false),
            next_stream: Cell::new(next_stream),
            control_backlog: RefCell::default(),
            bare_fin: Cell::new(false),
            announcements: RefCell::default(),
            ended: EndedStreams::default(),
            silence: Silence::default(),
            datagrams: Tally::default(),
            bundles: Bundles::default(),
            ack_delay: AckDelay::default(),
            turn: turn::Turn::default(),
            path: path::PathState::new(way),
            _allowance: LaneAllowance::new(),
            this: Weak::clone(this),
        })
    }

    /// Number of this lane, unique within its endpoint.
    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// Sets the handler of this lane's events; called once, right after the lane was made.
    pub(crate) fn handle_events(&self, events: Rc<dyn LaneEvents>) {
        let earlier = self.events.borrow_mut().replace(events);
        debug_assert!(earlier.is_none(), "a lane has one handler");
    }

    /// Replaces the handler.
    #[cfg(test)]
    pub(super) fn handle_events_anew(&self, events: Rc<dyn LaneEvents>) {
        *self.events.borrow_mut() = Some(events);
    }

    fn events(&self) -> Option<Rc<dyn LaneEvents>> {
        self.events.borrow().clone()
    }

    /// The peer's current address.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        let peer = self.way().peer;
        // A socket of both families has IPv4 addresses mapped into IPv6.
        Some(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
    }

    /// Returns true once the handshake is complete, with the peer authenticated as far as TLS does
    /// it.
    pub(crate) fn is_established(&self) -> bool {
        self.was_established.get()
    }

    /// Waits until the handshake is complete or the lane has ended.
    pub(crate) async fn established(&self) -> Result<(), LaneEnd> {
        loop {
            if let Some(end) = self.end() {
                return Err(end);
            }
            if self.was_established.get() {
                return Ok(());
            }
            self.established.wait().await;
        }
    }

    /// Notes that the peer has registered, so that the lane no longer counts among those of
    /// strangers.
    pub(crate) fn admit(&self) {
        self.admission_deadline.set(None);
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.admitted(self);
        }
    }

    /// Notes that the peer was refused, so that the lane, which is about to end, takes no place
    /// from others.
    pub(crate) fn give_place_back(&self) {
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.admitted(self);
        }
    }

    /// Runs `with` on the TLS session (for keying material and certificates).
    pub(crate) fn with_tls<R>(&self, with: impl FnOnce(&mut boring::ssl::SslRef) -> R) -> R {
        with(self.conn.borrow_mut().as_mut())
    }

    /// The kind of the handshake, once it is complete.
    pub(crate) fn handshake(&self) -> Handshake {
        Handshake::of(&self.conn.borrow())
    }

    /// The newest session that the peer has given, to be resumed later; `None` before one has come.
    pub(crate) fn session(&self) -> Option<Vec<u8>> {
        self.conn.borrow().session().map(<[u8]>::to_vec)
    }

    /// Whether any packet of the peer has arrived.
    pub(crate) fn was_answered(&self) -> bool {
        self.conn.borrow().stats().recv > 0
    }

    /// Number of genuine packets received so far: more of them are a sign of life.
    pub(crate) fn packets_received(&self) -> u64 {
        self.genuine_packets()
    }

    /// The round trip time of the path in use.
    pub(crate) fn rtt(&self) -> Duration {
        self.conn
            .borrow()
            .path_stats()
            .find(|path| path.active)
            .map_or(Duration::ZERO, |path| path.rtt)
    }

    /// The shortest round trip time of the last minutes; zero before the first. It may be that of a
    /// path that the lane has left.
    pub(in crate::quic) fn rtt_min(&self) -> Duration {
        self.conn
            .borrow()
            .path_stats()
            .find(|path| path.active)
            .and_then(|path| path.min_rtt)
            .unwrap_or_default()
    }

    /// Makes the endpoint flush this lane after the tasks that are ready now have run.
    pub(crate) fn mark_dirty(&self) {
        if !self.dirty.replace(true)
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint.push_dirty(self.key);
        }
    }

    /// Sends a PING with the next flush, so that NATs and the peer's idle timer know that the lane
    /// is in use.
    pub(crate) fn ping(&self) {
        if self.is_open() {
            // This fails only on a connection that is closing.
            let _closing = self.conn.borrow_mut().send_ack_eliciting();
            self.mark_dirty();
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lane({})", self.key)
    }
}
