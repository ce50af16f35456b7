//! An endpoint: one UDP socket with its lanes, on one core.
//!
//! Two tasks drive it. The receive task drains the socket in GRO batches, feeds quiche, and wakes
//! the flows that can go on. The flush task runs after those flows and sends GSO batches for every
//! lane that has something to send; it also owns the timers. Where many flows of a lane write in
//! one turn, the lane is flushed before the turn ends ([`Endpoint::flush_early`]). An endpoint ends
//! when it was asked to and its last lane is gone.

#[cfg(test)]
mod ack_tests;
#[cfg(test)]
mod batch_tests;
mod broken;
#[cfg(test)]
mod closing_tests;
#[cfg(test)]
mod datagram_tests;
mod early;
mod flush;
mod moderation;
mod over_tls;
#[cfg(test)]
mod over_tls_tests;
#[cfg(test)]
mod panic_tests;
mod receive;
#[cfg(test)]
pub(crate) mod resumption_tests;
mod strangers;
#[cfg(test)]
pub(crate) mod tests;
mod tls_port;
#[cfg(test)]
mod window_tests;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boring::ssl::SslContext;
use qmux_proto::CID_LEN;
use qmux_proto::cid::{CID_RANDOM_LEN, ConnectionId};
use rand::Rng;
use rustc_hash::FxBuildHasher;

use super::admission::Admission;
use super::lane::{Connection, Lane};
use super::over_tls::TlsConnection;
use super::over_tls::way::TlsWay;
use super::reset::ResetKey;
use super::retry::RetryKey;
use super::roaming::{TlsId, Way};
use super::settings;
use super::timers::Timers;
use super::transmit::Batch;
use crate::core::counters::CoreCounters;
use crate::core::event::Event;
use crate::core::task::spawn_or;
use crate::sys::timer::FineTimer;
use crate::sys::udp::UdpSocket;
use moderation::Moderation;

/// The owner of an endpoint, which handles what concerns more than one lane.
pub(crate) trait EndpointOwner {
    /// A peer begins a handshake; the owner names the handler of the lane's events. Not called on
    /// endpoints that only dial.
    fn lane_accepted(&self, lane: &Rc<Lane>);
    /// A packet arrived whose connection id names another core. Returns false if it could not be
    /// handed over.
    fn hand_over(
        &self,
        core: usize,
        packet: &[u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) -> bool;
    /// Whether the process that had the socket before is still there.
    fn has_predecessor(&self) -> bool {
        false
    }
    /// A packet arrived for a lane that is not here, and may belong to the process that had the
    /// socket before. `None` if that process is gone; false if the packet was dropped.
    fn pass_on(&self, packet: &[u8], from: SocketAddr, to_ip: Option<IpAddr>) -> Option<bool> {
        let _nobody = (packet, from, to_ip);
        None
    }

    /// A TLS connection carries packets for another core. Returns false if it could not be handed
    /// over.
    fn hand_over_tls(&self, _core: usize, _connection: TlsConnection) -> bool {
        false
    }
}

/// The parameters of an endpoint.
pub(crate) struct EndpointSetup {
    /// The socket, which the endpoint owns.
    pub(crate) socket: UdpSocket,
    /// Index of this core: the first byte of the connection ids that the endpoint issues.
    pub(crate) core: usize,
    /// Number of cores that share the port (1 for an endpoint that dials).
    pub(crate) group: usize,
    /// Transport settings and TLS.
    pub(crate) config: quiche::Config,
    /// The largest packet that may be sent, whatever the path.
    pub(crate) packet_bytes_max: usize,
    /// Whether peers may begin lanes.
    pub(crate) accepts: bool,
    /// How long a handshake may take.
    pub(crate) handshake_timeout: Duration,
    /// Derives reset tokens; an endpoint that only dials has none.
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
    packet_bytes_max: usize,
    reset_key: Option<ResetKey>,
    /// Number of stateless resets sent in the current second.
    resets: Cell<(Instant, u32)>,
    /// Number of packets of unknown lanes passed on in the current second, whose connection ids are
    /// not of this server.
    passed_on: Cell<(Instant, u32)>,
    owner: RefCell<Option<Rc<dyn EndpointOwner>>>,
    lanes: RefCell<HashMap<u64, Rc<Lane>, FxBuildHasher>>,
    /// TLS connections that carry packets where UDP does not pass.
    tls_ways: RefCell<HashMap<TlsId, Rc<TlsWay>, FxBuildHasher>>,
    next_tls: Cell<u64>,
    /// Places of TLS connections that belong to strangers. Endpoints that only dial have none.
    tls_admission: Option<RefCell<Admission>>,
    /// Handshakes of TLS connections, each with the event that ends it.
    tls_handshakes: RefCell<HashMap<TlsId, Rc<Event>, FxBuildHasher>>,
    /// The context with which they are accepted.
    tls_context: RefCell<Option<SslContext>>,
    /// Set when no TLS connection is to be accepted any more.
    tls_stop: Event,
    /// Lanes by the connection ids that this side has issued. Only this side chooses the keys, so a
    /// fast hash is safe.
    by_cid: RefCell<HashMap<[u8; CID_LEN], Rc<Lane>, FxBuildHasher>>,
    /// Lanes by their first destination connection ids. Clients choose these, so the hash is one
    /// for which they cannot choose collisions.
    by_initial: RefCell<HashMap<Box<[u8]>, Rc<Lane>>>,
    /// Places of lanes that belong to strangers. Endpoints that only dial have none.
    admission: Option<RefCell<Admission>>,
    /// The time at which it was last logged that handshakes are refused.
    crowded_logged_at: Cell<Option<Instant>>,
    /// While set and not past, there is no GSO, because the kernel has refused it.
    no_gso_until: Cell<Option<Instant>>,
    /// Authenticates the tokens of Retry packets.
    retry_key: RetryKey,
    /// Whether packets are to gather in the socket.
    moderation: Moderation,
    /// A timer for the pauses in which they do; made for the first one.
    gather_timer: OnceCell<io::Result<FineTimer>>,
    /// Whether it was logged that there is none.
    gather_timer_missed: Cell<bool>,
    dirty: RefCell<VecDeque<u64>>,
    touched: RefCell<Vec<Rc<Lane>>>,
    flush: Event,
    /// The buffer in which packets are gathered, while no flush uses it.
    batch: Cell<Option<Box<Batch>>>,
    timers: RefCell<Timers>,
    /// When lanes must send delayed acknowledgements. These deadlines have a heap of their own,
    /// because they may be a step late and are not worth a system call each.
    delayed_acks: RefCell<Timers>,
    /// The deadline for which the flush task sleeps, while it does.
    sleeps_until: Cell<Option<Instant>>,
    /// A timer for deadlines that the runtime's timers are too coarse for; made when the first one
    /// comes.
    fine_timer: OnceCell<Option<Rc<FineTimer>>>,
    /// The time at which the fine timer will fire, until it has.
    fine_timer_at: Cell<Option<Instant>>,
    next_key: Cell<u64>,
    /// Whether the flush task was last woken by its event, and by nothing else.
    woke_by_event: Cell<bool>,
    /// Whether received packets must wait for a flush.
    flush_first: Cell<bool>,
    closing: Cell<bool>,
    /// Whether another process reads the socket.
    is_handed_over: Cell<bool>,
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
            packet_bytes_max: setup.packet_bytes_max,
            reset_key: setup.reset_key,
            resets: Cell::new((Instant::now(), 0)),
            passed_on: Cell::new((Instant::now(), 0)),
            owner: RefCell::new(owner),
            lanes: RefCell::default(),
            tls_ways: RefCell::default(),
            next_tls: Cell::new(0),
            tls_admission: setup
                .accepts
                .then(|| RefCell::new(Admission::new(rand::random(), Instant::now()))),
            tls_handshakes: RefCell::default(),
            tls_context: RefCell::default(),
            tls_stop: Event::default(),
            by_cid: RefCell::default(),
            by_initial: RefCell::default(),
            admission: setup
                .accepts
                .then(|| RefCell::new(Admission::new(rand::random(), Instant::now()))),
            crowded_logged_at: Cell::new(None),
            no_gso_until: Cell::new(None),
            retry_key: RetryKey::new(),
            moderation: Moderation::default(),
            gather_timer: OnceCell::new(),
            gather_timer_missed: Cell::new(false),
            dirty: RefCell::default(),
            touched: RefCell::default(),
            flush: Event::default(),
            batch: Cell::default(),
            timers: RefCell::default(),
            delayed_acks: RefCell::default(),
            sleeps_until: Cell::new(None),
            fine_timer: OnceCell::new(),
            fine_timer_at: Cell::new(None),
            next_key: Cell::new(0),
            woke_by_event: Cell::new(false),
            flush_first: Cell::new(false),
            closing: Cell::new(false),
            is_handed_over: Cell::new(false),
            stopped: Event::default(),
            counters: setup.counters,
        });
        let (receives, flushes) = (Rc::downgrade(&endpoint), Rc::downgrade(&endpoint));
        let panicked = |endpoint: &Weak<Endpoint>| {
            if let Some(endpoint) = endpoint.upgrade() {
                endpoint.task_panicked();
            }
        };
        let receive = Rc::clone(&endpoint).receive_task();
        spawn_or(receive, move || panicked(&receives));
        let flush = Rc::clone(&endpoint).flush_task();
        spawn_or(flush, move || panicked(&flushes));
        endpoint
    }

    /// Begins a lane to `peer`, aimed at the server core `aim` by the first byte of its connection
    /// id.
    ///
    /// A `session` is resumed if the server still can, and what is sent before the handshake is
    /// complete may travel as early data.
    ///
    /// # Errors
    /// If quiche refuses the parameters or the session.
    pub(crate) fn dial(
        self: &Rc<Self>,
        peer: SocketAddr,
        server_name: &str,
        aim: u8,
        session: Option<&[u8]>,
    ) -> Result<Rc<Lane>, quiche::Error> {
        self.dial_along(peer, None, server_name, aim, session)
    }

    /// Begins a lane like [`Endpoint::dial`], along one of this endpoint's TLS connections if that
    /// is open.
    ///
    /// # Errors
    /// As [`Endpoint::dial`].
    pub(crate) fn dial_along(
        self: &Rc<Self>,
        peer: SocketAddr,
        over_tls: Option<Way>,
        server_name: &str,
        aim: u8,
        session: Option<&[u8]>,
    ) -> Result<Rc<Lane>, quiche::Error> {
        let scid = self.new_cid(self.socket.local_addr().ip());
        let dcid = ConnectionId::new(aim, random_cid());
        let ip = server_name.parse::<IpAddr>().ok();
        self.fit_packets_to(over_tls.unwrap_or(Way::over_udp(peer, None)));
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
        if let Some(session) = session {
            conn.set_session(session)?;
        }
        let lane = self.adopt(conn, scid, Way::over_udp(peer, None));
        if let Some(way) = over_tls {
            lane.choose_way(way);
        }
        lane.mark_dirty();
        Ok(lane)
    }

    /// Sets the packet size of the next lane to the largest for this path.
    fn fit_packets_to(&self, way: Way) {
        let (mut config, bytes_max) = (self.config.borrow_mut(), self.packet_bytes_max);
        match way.tls {
            Some(_) => settings::fit_to_tls(&mut config, bytes_max),
            None => settings::fit_to_route(&mut config, bytes_max, way.peer),
        }
    }

    /// Ends the endpoint once its last lane is gone. Lanes are not closed by this.
    pub(crate) fn stop_when_empty(&self) {
        self.closing.set(true);
        self.tls_stop.set();
        self.flush.set();
    }

    /// Sets the transport settings and the TLS context of lanes that begin from now on.
    pub(crate) fn configure(&self, config: quiche::Config) {
        *self.config.borrow_mut() = config;
    }

    /// The lane with this number, if it has not ended.
    pub(crate) fn lane(&self, key: u64) -> Option<Rc<Lane>> {
        self.lanes.borrow().get(&key).cloned()
    }

    /// All lanes that have not ended.
    pub(crate) fn lanes(&self) -> Vec<Rc<Lane>> {
        self.lanes.borrow().values().cloned().collect()
    }

    /// Handles a packet that another core received.
    pub(crate) fn inject(
        self: &Rc<Self>,
        packet: &mut [u8],
        from: SocketAddr,
        to_ip: Option<IpAddr>,
    ) {
        self.packet(packet, Way::over_udp(from, to_ip), true);
        self.finish_turn();
    }

    /// A descriptor of the socket for a successor; `None` if there are too many open files.
    pub(crate) fn lend(&self) -> Option<OwnedFd> {
        self.socket.try_clone().ok()
    }

    /// Stops reading the socket, because the successor reads it. Packets for lanes that are here
    /// come by [`Self::inject`]. The successor has a socket of its own for TLS, which takes new
    /// connections from now on.
    pub(crate) fn receive_no_more(&self) {
        self.is_handed_over.set(true);
        self.stopped.set();
        self.tls_stop.set();
    }

    /// The core's counters.
    pub(super) fn counters(&self) -> &CoreCounters {
        &self.counters
    }

    /// Holds the next packets back until what is to be sent has been sent once (see
    /// [`Lane::finish`]).
    pub(super) fn flush_before_receiving(&self) {
        self.flush_first.set(true);
    }

    pub(super) fn push_dirty(&self, lane: u64) {
        self.dirty.borrow_mut().push_back(lane);
        self.flush.set();
    }

    fn adopt(self: &Rc<Self>, conn: Connection, scid: [u8; CID_LEN], way: Way) -> Rc<Lane> {
        let key = self.next_key.get();
        self.next_key.set(key + 1);
        let lane = Lane::new(
            key,
            Rc::downgrade(self),
            conn,
            Instant::now() + self.handshake_timeout,
            way,
        );
        self.lanes.borrow_mut().insert(key, Rc::clone(&lane));
        self.by_cid.borrow_mut().insert(scid, Rc::clone(&lane));
        if let Some(admission) = &self.admission {
            let ip = way.peer.ip();
            admission.borrow_mut().take(key, ip, Instant::now());
        }
        lane
    }

    /// A new connection id for a lane whose client sends to `local`.
    fn new_cid(&self, local: IpAddr) -> [u8; CID_LEN] {
        // The number of cores is at most 256 (`sys::CORES_MAX`).
        let core = u8::try_from(self.core).unwrap_or(u8::MAX);
        loop {
            let id: [u8; CID_LEN] = match &self.reset_key {
                Some(key) => key.issue(core, local),
                None => ConnectionId::new(core, random_cid()),
            }
            .into();
            // One in 10^17 is taken.
            if !self.by_cid.borrow().contains_key(&id) {
                return id;
            }
        }
    }

    /// The local address that a packet came to, for [`ResetKey`].
    fn local_ip(&self, to_ip: Option<IpAddr>) -> IpAddr {
        to_ip.unwrap_or_else(|| self.socket.local_addr().ip())
    }
}

fn random_cid() -> [u8; CID_RANDOM_LEN] {
    let mut random = [0; CID_RANDOM_LEN];
    rand::rng().fill_bytes(&mut random);
    random
}
