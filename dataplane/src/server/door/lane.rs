//! A lane as the server sees it: which client it belongs to, whether it takes flows, and what to do
//! with its events.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::time::Instant;

use qmux_config::ServerAuth;
use qmux_proto::LaneError;
use qmux_proto::control::{HandOvers, Message};
use tracing::field::DisplayValue;

use super::Door;
use super::auth::Admitted;
use super::presence;
use super::session::BACK_WITHIN;
use crate::core::event::Event;
use crate::core::task::spawn_or;
use crate::quic::end::LaneEnd;
use crate::quic::explain;
use crate::quic::lane::{CONTROL_STREAM, Lane, LaneEvents};
use crate::quic::sessions::Identity;
use crate::server::pool::lanes::CarriesFlows;
use crate::server::pool::membership::LaneMembership;
use crate::server::tcp::opening::READ_FIRST;
use crate::server::udp::lane::LaneFlows;

/// One lane of one client.
pub(crate) struct ServerLane {
    pub(crate) quic: Rc<Lane>,
    pub(crate) door: Weak<Door>,
    /// The index of the door's address that the lane came to.
    pub(crate) address: usize,
    /// The digest of the CAs and revocation lists by which the lane's handshake checks the client.
    pub(crate) trusted: Identity,
    /// The lane's claim on its client; set by a successful registration.
    pub(crate) membership: OnceCell<LaneMembership>,
    /// The grounds on which the lane was let in; set together with the membership.
    pub(crate) admitted: OnceCell<Admitted>,
    /// Whether the lane gets no new flow because its client may not serve here any more.
    pub(crate) withdrawn: Cell<bool>,
    /// The lane's UDP flows, if visitors of UDP come to the door's entrances.
    pub(crate) udp: Option<Rc<LaneFlows>>,
    /// TCP flows on this lane: one [`LaneUse`] each.
    tcp_flows: Cell<usize>,
    /// The time at which anything was last read from the control stream.
    pub(crate) last_heard: Cell<Instant>,
    control_started: Cell<bool>,
    /// Wakes the lane's session when there was an alarm, or when there are hand-overs to report.
    pub(crate) wake: Event,
    alarmed: Cell<bool>,
    /// The deadline for a client that has ended the TLS connection of the lane to be back.
    back_until: Cell<Option<Instant>>,
    /// Visitors and datagrams that cores without a lane of the client have handed over to this
    /// lane.
    hand_overs: Cell<HandOvers>,
    /// Whether the client asks for reports of hand-overs.
    tells_hand_overs: Cell<bool>,
    /// Whether there are hand-overs that the client has not been told of.
    hand_overs_untold: Cell<bool>,
    /// Whether the lane was refused, and stays only until its client has read why.
    pub(crate) lingers: Cell<bool>,
}

impl ServerLane {
    pub(crate) fn new(
        lane: Rc<Lane>,
        door: Weak<Door>,
        address: usize,
        trusted: Identity,
        udp: Option<Rc<LaneFlows>>,
    ) -> Rc<ServerLane> {
        Rc::new(ServerLane {
            quic: lane,
            door,
            address,
            trusted,
            membership: OnceCell::new(),
            admitted: OnceCell::new(),
            withdrawn: Cell::new(false),
            udp,
            tcp_flows: Cell::new(0),
            last_heard: Cell::new(Instant::now()),
            control_started: Cell::new(false),
            wake: Event::default(),
            alarmed: Cell::new(false),
            back_until: Cell::new(None),
            hand_overs: Cell::default(),
            tells_hand_overs: Cell::new(false),
            hand_overs_untold: Cell::new(false),
            lingers: Cell::new(false),
        })
    }

    /// The key that tells this lane from the door's other lanes on this core.
    pub(crate) fn key(&self) -> (usize, u64) {
        (self.address, self.quic.key())
    }

    /// Raises an alarm: the client may be gone, and the session is to ask it.
    pub(crate) fn alarm(&self) {
        self.alarmed.set(true);
        self.wake.set();
    }

    /// Takes the alarm: true once after each.
    pub(crate) fn take_alarm(&self) -> bool {
        self.alarmed.take()
    }

    /// The time at which a client that has ended the TLS connection of its lane must be back.
    pub(super) fn back_until(&self) -> Option<Instant> {
        self.back_until.get()
    }

    /// Sets or clears the time by which the client must be back.
    pub(super) fn must_be_back(&self, until: Option<Instant>) {
        self.back_until.set(until);
    }

    /// The client asks for reports of hand-overs. The first report, which may be empty, is due at
    /// once and confirms this.
    pub(super) fn tell_hand_overs(&self) {
        self.tells_hand_overs.set(true);
        self.quic
            .send_control(&Message::HandOvers(self.hand_overs.get()));
    }

    /// Counts a visitor that a core without a lane of the client has handed over to this lane.
    pub(crate) fn visitor_handed_over(&self) {
        let mut hand_overs = self.hand_overs.get();
        hand_overs.visitors += 1;
        self.note_hand_overs(hand_overs);
    }

    /// Counts a datagram of a UDP visitor that was handed over in the same way.
    pub(crate) fn datagram_handed_over(&self) {
        let mut hand_overs = self.hand_overs.get();
        hand_overs.datagrams += 1;
        self.note_hand_overs(hand_overs);
    }

    /// Notes new hand-overs, which the lane's session reports when it is time.
    fn note_hand_overs(&self, hand_overs: HandOvers) {
        self.hand_overs.set(hand_overs);
        if self.tells_hand_overs.get() && !self.hand_overs_untold.replace(true) {
            self.wake.set();
        }
    }

    /// Whether there are hand-overs that the client is to be told of.
    pub(super) fn has_hand_overs_to_tell(&self) -> bool {
        self.hand_overs_untold.get()
    }

    /// Takes the hand-overs that are reported now.
    pub(super) fn take_hand_overs(&self) -> HandOvers {
        self.hand_overs_untold.set(false);
        self.hand_overs.get()
    }

    /// Whether the lane belongs to the client with this number.
    pub(crate) fn is_of(&self, client: u64) -> bool {
        self.membership
            .get()
            .is_some_and(|membership| membership.client().number == client)
    }

    /// The name of the client, for logs.
    pub(crate) fn client_id(&self) -> &str {
        self.membership
            .get()
            .map_or("(not registered)", |membership| {
                membership.client().client_id.as_str()
            })
    }
}

impl CarriesFlows for ServerLane {
    fn is_open(&self) -> bool {
        self.quic.is_open()
    }

    fn is_silent(&self) -> bool {
        self.quic.is_silent()
    }

    fn flows(&self) -> usize {
        self.tcp_flows.get() + self.udp.as_ref().map_or(0, |udp| udp.flow_count())
    }
}

/// A TCP flow's use of its lane, counted until this is dropped.
pub(crate) struct LaneUse(Rc<ServerLane>);

impl LaneUse {
    pub(crate) fn new(lane: &Rc<ServerLane>) -> LaneUse {
        lane.tcp_flows.set(lane.tcp_flows.get() + 1);
        LaneUse(Rc::clone(lane))
    }
}

impl Deref for LaneUse {
    type Target = ServerLane;

    fn deref(&self) -> &ServerLane {
        &self.0
    }
}

impl Drop for LaneUse {
    fn drop(&mut self) {
        self.0.tcp_flows.set(self.0.tcp_flows.get() - 1);
    }
}

/// The address of the lane's peer, as a field of a log line that is left out if there is none.
pub(crate) fn address(lane: &Lane) -> Option<DisplayValue<SocketAddr>> {
    lane.peer_addr().map(tracing::field::display)
}

/// Closes a lane of a replaced client, unless something has come meanwhile that shows that the
/// client lives: after this process stood still, its timers fire before it reads.
fn close_if_still_silent(lane: Rc<ServerLane>) {
    crate::core::task::spawn(async move {
        crate::core::time::sleep(READ_FIRST).await;
        if let Some(door) = lane.door.upgrade()
            && lane.quic.is_silent()
        {
            door.close_replaced(&lane);
        }
    });
}

/// The handler of the lane's events. It holds the lane's state until the lane has ended.
pub(crate) struct ServerLaneEvents(pub(crate) Rc<ServerLane>);

impl LaneEvents for ServerLaneEvents {
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64) {
        let ServerLaneEvents(this) = self;
        if stream != CONTROL_STREAM {
            lane.close(
                LaneError::ProtocolViolation,
                "a client opens no stream but the control stream",
            );
        } else if !this.control_started.replace(true) {
            let lane = Rc::clone(lane);
            spawn_or(super::register::run(Rc::clone(this)), move || {
                lane.panicked();
            });
        }
        // Otherwise the lane has been refused. What it says after that is not read, because the
        // refusal must reach the client first.
    }

    fn datagram(&self, _lane: &Rc<Lane>, data: &[u8]) {
        match &self.0.udp {
            Some(udp) if self.0.membership.get().is_some() => udp.datagram(data),
            _ => {
                if let Some(door) = self.0.door.upgrade() {
                    door.counters().udp_dropped_unregistered.increment();
                }
            }
        }
    }

    fn datagrams_done(&self, _lane: &Rc<Lane>) {
        if let Some(udp) = &self.0.udp {
            udp.datagrams_done();
        }
    }

    fn silence(&self, lane: &Rc<Lane>, silent: bool) {
        if !silent {
            self.0.must_be_back(None);
        }
        let Some(membership) = self.0.membership.get() else {
            return;
        };
        membership.silence(silent);
        if let Some(udp) = &self.0.udp {
            udp.note_silence(Instant::now());
        }
        if silent && let Some(door) = self.0.door.upgrade() {
            door.counters().lanes_silent.increment();
            if membership.client().is_replaced() {
                close_if_still_silent(Rc::clone(&self.0));
            } else {
                door.client_may_be_gone(&self.0, Instant::now());
            }
        }
        tracing::debug!(
            client = self.0.client_id(),
            peer = address(lane),
            silent,
            "silence of a client"
        );
    }

    fn hung_up(&self, lane: &Rc<Lane>) {
        let ServerLaneEvents(this) = self;
        tracing::debug!(
            client = this.client_id(),
            peer = address(lane),
            "its client has ended the TLS connection that the lane rode"
        );
        this.must_be_back(Some(Instant::now() + BACK_WITHIN));
        this.wake.set();
    }

    fn moved(&self, lane: &Rc<Lane>) {
        if let Some(membership) = self.0.membership.get() {
            membership.rides_tls(lane.tls().is_some());
        }
    }

    fn ended(&self, lane: &Rc<Lane>, end: &LaneEnd) {
        let this = &self.0;
        if let Some(udp) = &this.udp {
            udp.lane_ended();
        }
        let last = this
            .door
            .upgrade()
            .is_some_and(|door| door.lane_ended(this));
        let Some(door) = this.door.upgrade() else {
            return;
        };
        let context = door.context();
        if let Some(membership) = this.membership.get() {
            tracing::debug!(client = this.client_id(), peer = address(lane), %end, "lane ended");
            if last {
                presence::say_down(context, membership.client(), end);
            }
        } else if matches!(end, LaneEnd::ClosedByPeer(LaneError::Shutdown, _)) {
            // The client stops, or it has only tried whether QUIC gets through.
            tracing::debug!(peer = address(lane), %end, "lane left before it was registered");
        } else if let Some(suppressed) = context.handshake_log.pass(Instant::now()) {
            let what = if lane.is_established() {
                "lane ended before it was registered"
            } else {
                "handshake failed"
            };
            let settings = door.settings();
            let ca_cert = match &settings.server().auth {
                ServerAuth::Mtls { ca_cert, .. } => Some(ca_cert),
                ServerAuth::Token { .. } => None,
            };
            let end = explain::at_server(end, ca_cert);
            tracing::warn!(peer = address(lane), end, suppressed, "{what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use qmux_proto::control::Heartbeat;

    use super::*;
    use crate::quic::endpoint::tests::{run, setup, until};
    use crate::quic::endpoint::{Endpoint, EndpointOwner};

    /// Reads nothing, because the door of its lanes is gone.
    #[derive(Default)]
    struct Owner(std::cell::RefCell<Option<Rc<ServerLane>>>);

    impl EndpointOwner for Owner {
        fn lane_accepted(&self, lane: &Rc<Lane>) {
            let lane_of_server = ServerLane::new(Rc::clone(lane), Weak::new(), 0, [0; 32], None);
            lane.handle_events(Rc::new(ServerLaneEvents(Rc::clone(&lane_of_server))));
            *self.0.borrow_mut() = Some(lane_of_server);
        }
        fn hand_over(&self, _: usize, _: &[u8], _: SocketAddr, _: Option<IpAddr>) -> bool {
            false
        }
    }

    #[test]
    fn what_comes_on_the_control_stream_after_a_refusal_is_no_violation() {
        run(async |config| {
            let owner = Rc::new(Owner::default());
            let (mut accepting, mut dialing) = (setup(&config, true), setup(&config, false));
            // A busy machine needs its time.
            accepting.handshake_timeout = Duration::from_secs(20);
            dialing.handshake_timeout = Duration::from_secs(20);
            let address = accepting.socket.local_addr();
            let _server = Endpoint::start(accepting, Some(Rc::clone(&owner) as _));
            let client = Endpoint::start(dialing, None);
            let dialed = client.dial(address, "localhost", 0, None).expect("dial");
            dialed.established().await.expect("established");
            dialed.send_control(&Message::Heartbeat(Heartbeat {
                sequence: 1,
                acknowledged: 0,
            }));
            let lane = owner.0.borrow().clone().expect("accepted");
            until("the control task", || lane.control_started.get()).await;
            // More data comes for the control stream after the control task has ended and left it
            // unread.
            ServerLaneEvents(Rc::clone(&lane)).stream_opened(&lane.quic, CONTROL_STREAM);
            assert!(lane.is_open());
            // A stream with an id that no client may use.
            let stream = dialed.open_stream().expect("allowed by QUIC") + 4;
            let waiters = dialed.attach(stream);
            let bytes = crate::buffer::StreamBuf::copied(b"x");
            assert!(dialed.write(stream, bytes, false, &waiters).is_ok());
            until("the violation to be found", || !lane.is_open()).await;
        });
    }
}
