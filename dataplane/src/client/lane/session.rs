//! The life of a registered lane: heartbeats, probes, and the way out.
//!
//! A lane serves until it ends, or until it is to be left: because its server drains, or because it is not wanted any
//! more. Then its supervisor goes on without it, and the lane lives until its flows have ended.
//!
//! A lane whose questions nobody answers goes on asking, and its supervisor dials beside it from a
//! new port ([`super::beside`]): behind the server's address there may be another server now.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_config::Lanes;
use qmux_proto::LaneError;
use qmux_proto::control::{
    GoAway, GoAwayReason, HandOvers, Heartbeat, Message, PathChallenge, PathResponse, RegisterAck,
};

use super::ClientLane;
use super::attempt::CloseOnDrop;
use super::supervisor::Supervisor;
use crate::client::presence;
use crate::client::servers::demand::Work;
use crate::client::servers::server::{self, ServerState};
use crate::client::services::answers;
use crate::client::{ClientCore, ClientMail, going_away};
use crate::jitter::jittered;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::path_numbers::LossTold;
use crate::quic::vigil::{Duty, Vigil};
use crate::ready::RegisteredLane;

/// A lane that is left must have been idle for this long: a flow, or the end of one, may be on its way.
const LINGER: Duration = Duration::from_millis(250);

/// A lane without any answer to its questions for this long is dialled beside.
const UNANSWERED_MAX: Duration = Duration::from_secs(2);

/// Where another server answers at the address, the lane to the one before must be heard within
/// this time. The path is good: if that server lived, it would have answered several questions.
const PREDECESSOR_GRACE: Duration = Duration::from_millis(1_500);

/// Why a lane has stopped serving, or what it waits for.
#[derive(Debug)]
pub(super) enum Served {
    /// It has ended.
    Ended(LaneEnd),
    /// The server gives it no new flow: it drains.
    ServerDrains,
    /// The server gives it no new flow: a newer instance has this client's id.
    Superseded,
    /// Its supervisor was retired.
    Retired,
    /// Nobody has answered it for [`UNANSWERED_MAX`], and it may be dialled beside.
    Unanswered,
    /// It was unanswered and is heard again.
    HeardAgain,
}

/// How a lane is left to its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Its server drains, and decides how long they may go on.
    ServerDecides,
    /// It is not wanted any more: they get `drain_timeout`.
    Unwanted,
    /// Its server is to have fewer lanes: they get all the time they take.
    Surplus,
    /// Another lane has taken its place, registered with what this client serves now: they get all
    /// the time they take.
    Renewed,
    /// Another lane to the same server has taken its place because it was not answered. It may be
    /// heard again.
    TakenOver,
    /// The same, with another server at this address: the one before is probably gone.
    ServerReplaced,
}

/// One thing that happened to a lane.
enum Happened {
    Ended(LaneEnd),
    GoAway(GoAwayReason),
    /// Something that was dealt with, or the time that was waited for.
    Other,
}

/// One registered lane.
pub(super) struct Session {
    core: Rc<ClientCore>,
    this: Rc<ClientLane>,
    reader: ControlReader,
    _guard: CloseOnDrop,
    /// The client is ready while there is one; not for a lane that is left.
    registered: Option<RegisteredLane>,
    heartbeat_interval: Duration,
    health_timeout: Duration,
    drain_timeout: Duration,
    keep_alive_period: Duration,
    last_heard: Instant,
    next_beat: Instant,
    next_ping: Instant,
    /// Heartbeats sent, heard, and of those sent: acknowledged.
    sent: u64,
    heard: u64,
    acknowledged: u64,
    vigil: Vigil,
    /// It counts among the lanes that its server has.
    counted: bool,
    /// It counts among those of them that nobody answers.
    unanswered: bool,
    /// Which run of the server it is registered with.
    instance: u64,
    loss_told: LossTold,
    /// The number of lanes follows what they are needed for.
    adapts: bool,
    /// What the server has said that it had to hand over to this lane.
    handed_over: Option<Work>,
    /// What this lane has said that it has carried.
    carried: Work,
}

impl Session {
    /// Begins the life of a lane that `ack` has accepted.
    pub(super) fn begin(
        core: &Rc<ClientCore>,
        this: Rc<ClientLane>,
        reader: ControlReader,
        guard: CloseOnDrop,
        ack: &RegisterAck,
    ) -> Option<Session> {
        let settings = Arc::clone(&this.settings);
        let client = settings.client()?;
        let now = Instant::now();
        let session = Session {
            reader,
            _guard: guard,
            registered: Some(core.shared.lane_registered()),
            heartbeat_interval: client.heartbeat_interval,
            health_timeout: client.health_timeout,
            drain_timeout: client.drain_timeout,
            keep_alive_period: settings.config.quic.keep_alive_period,
            last_heard: now,
            next_beat: now + jittered(client.heartbeat_interval),
            next_ping: now + settings.config.quic.keep_alive_period,
            sent: 0,
            heard: 0,
            acknowledged: 0,
            vigil: Vigil::new(jittered(client.probe_interval)),
            counted: true,
            loss_told: LossTold::default(),
            adapts: client.lanes == Lanes::Auto,
            handed_over: None,
            carried: Work::default(),
            unanswered: false,
            instance: server::instance_number(&ack.server_instance_id),
            core: Rc::clone(core),
            this,
        };
        let server = &session.this.server;
        let registered = server.lane_registered(session.instance);
        if registered.other_instance {
            core.alarm(server);
        }
        if registered.back {
            core.found(server);
            presence::say_up(core, server);
        }
        if core.shared.registered_with(server, ack.server_instance_id) {
            core.tell_all(&ClientMail::Plan);
        }
        // After the alarm, which this lane need not hear.
        core.lanes
            .borrow_mut()
            .insert(session.this.serial, Rc::clone(&session.this));
        session.note_path();
        session.this.tell_health();
        if core.context.draining.get() {
            // The servers have been told already, but not on this lane, and a flow may be on its way.
            session
                .this
                .lane
                .send_control(&Message::GoAway(going_away(client.drain_timeout)));
        }
        Some(session)
    }

    /// The lane.
    pub(super) fn lane(&self) -> &Rc<ClientLane> {
        &self.this
    }

    /// Whether both lanes are registered with the same run of a server.
    pub(super) fn has_server_of(&self, other: &Session) -> bool {
        self.instance == other.instance
    }

    /// Serves until the lane ends or is to be left, or until it is to be dialled beside (not before
    /// `beside_from`).
    pub(super) async fn serve(&mut self, supervisor: &Supervisor, beside_from: Instant) -> Served {
        self.claim_probing();
        loop {
            if supervisor.is_retired() {
                return Served::Retired;
            }
            let now = Instant::now();
            self.note_unanswered(now);
            if now >= beside_from && self.may_be_dialed_beside() {
                return Served::Unanswered;
            }
            if let Some(served) = self.serving_step().await {
                return served;
            }
        }
    }

    /// Serves on while another lane is dialled beside: until it is heard again, ends, or is to be
    /// left.
    pub(super) async fn serve_unanswered(&mut self, supervisor: &Supervisor) -> Served {
        loop {
            if supervisor.is_retired() {
                return Served::Retired;
            }
            self.note_unanswered(Instant::now());
            if !self.unanswered {
                return Served::HeardAgain;
            }
            if let Some(served) = self.serving_step().await {
                return served;
            }
        }
    }

    async fn serving_step(&mut self) -> Option<Served> {
        match self.step(None).await {
            Happened::Ended(end) => {
                self.stop_counting(&end);
                if raises_alarm(&end) {
                    self.core.alarm(&self.this.server);
                }
                Some(Served::Ended(end))
            }
            Happened::GoAway(GoAwayReason::Replaced) => Some(Served::Superseded),
            Happened::GoAway(_) => Some(Served::ServerDrains),
            Happened::Other => None,
        }
    }

    /// Notes whether nobody has answered for [`UNANSWERED_MAX`].
    fn note_unanswered(&mut self, now: Instant) {
        let (heard, _) = self.signs_of_life();
        let since = self.vigil.unanswered_since(heard);
        let unanswered = self.counted && since.is_some_and(|since| now >= since + UNANSWERED_MAX);
        if std::mem::replace(&mut self.unanswered, unanswered) != unanswered {
            let server = &self.this.server;
            server.lane_unanswered(unanswered);
            let nobody = server.is_unanswered();
            if nobody == unanswered && self.core.shared.server_unanswered(server, nobody) {
                self.core.tell_all(&ClientMail::Plan);
            }
        }
    }

    /// While no lane to the server is answered, the one that probes it finds out for all whether
    /// another server is there.
    fn may_be_dialed_beside(&self) -> bool {
        let server = &self.this.server;
        let probes = server.is_prober(self.this.serial);
        self.unanswered && (probes || server.is_heard_elsewhere(self.instance))
    }

    /// Leaves the lane to the flows that it has: it ends with the last of them, at the latest when
    /// `leaving` says so.
    pub(super) async fn leave(mut self, leaving: Leaving) {
        self.stop_counting(match leaving {
            Leaving::ServerDecides => &"it drains",
            Leaving::Unwanted => &"its lanes are not wanted any more",
            Leaving::Surplus => &"its server needs fewer lanes",
            Leaving::Renewed => &"this client's configuration has changed",
            Leaving::TakenOver => &"another lane has taken its place",
            Leaving::ServerReplaced => &"another server has taken its place",
        });
        if !self.this.lane.is_open() {
            return;
        }
        self.this.context.counters.lanes_left.increment();
        let _surplus = (leaving == Leaving::Surplus).then(|| Surplus::new(&self.this.server));
        let began = Instant::now();
        let (heard_before, _) = self.signs_of_life();
        let farewell = (leaving != Leaving::ServerDecides).then(|| self.say_farewell());
        let deadline = (leaving == Leaving::Unwanted).then(|| began + self.drain_timeout);
        let mut idle_since = None;
        loop {
            let now = Instant::now();
            // The server reads a lane's control stream in order: it has stopped before it acknowledges the heartbeat.
            let server_has_stopped = farewell.is_none_or(|beat| self.acknowledged >= beat);
            if server_has_stopped && self.this.is_idle() {
                if now >= *idle_since.get_or_insert(now) + LINGER {
                    break;
                }
            } else {
                idle_since = None;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                break;
            }
            let unheard = self.signs_of_life().0 == heard_before;
            if leaving == Leaving::ServerReplaced && unheard {
                if now >= began + PREDECESSOR_GRACE {
                    self.this.context.counters.lanes_unhealthy.increment();
                    self.this.lane.close(LaneError::HealthTimeout, "");
                    return;
                }
                self.this.lane.ping();
            }
            if let Happened::Ended(_) = self.step(Some(now + LINGER)).await {
                return;
            }
        }
        self.this.lane.close(LaneError::Shutdown, "");
    }

    /// Tells the server to give this lane no new flow. Returns the heartbeat whose acknowledgement says that it knows.
    fn say_farewell(&mut self) -> u64 {
        self.this.lane.send_control(&Message::GoAway(GoAway {
            reason: GoAwayReason::Replaced,
            drain_timeout_ms: u64::try_from(self.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        }));
        self.beat(Instant::now());
        self.sent
    }

    /// Waits for the next thing to happen, until `until` at the latest, and deals with it.
    async fn step(&mut self, until: Option<Instant>) -> Happened {
        let deadline = [until, self.vigil.next()]
            .into_iter()
            .flatten()
            .fold(self.next_beat.min(self.next_ping), Instant::min)
            .min(self.last_heard + self.health_timeout);
        let event = {
            let mut next = pin!(self.reader.next(deadline));
            let wake = &self.this.wake;
            // Reading is cancel-safe: what was read is in the decoder.
            poll_fn(|cx| match next.as_mut().poll(cx) {
                Poll::Ready(event) => Poll::Ready(Some(event)),
                Poll::Pending => wake.poll(cx).map(|()| None),
            })
            .await
        };
        match event {
            Some(ControlEvent::Message(message)) => {
                self.last_heard = Instant::now();
                self.message(message)
            }
            Some(ControlEvent::Deadline) => self.deadlines(Instant::now()),
            Some(ControlEvent::Ended) => Happened::Ended(self.this.lane.ended().await),
            None => {
                if self.this.take_alarm() {
                    self.claim_probing();
                    let (heard, rtt) = self.signs_of_life();
                    let duty = self.vigil.alarm(Instant::now(), heard, rtt);
                    self.perform(duty);
                }
                Happened::Other
            }
        }
    }

    fn message(&mut self, message: Message) -> Happened {
        let this = &self.this;
        match message {
            Message::Heartbeat(beat) => {
                self.heard = beat.sequence;
                self.acknowledged = beat.acknowledged;
                this.context.counters.heartbeats_received.increment();
                // A server that knows services with names has said so before.
                this.answers_are_due();
                if self.adapts && self.handed_over.is_none() {
                    self.handed_over = Some(Work::default());
                    if let Some(change) = this.server.tells_nothing() {
                        self.core.lanes_change(&this.server, change);
                    }
                }
            }
            Message::HandOvers(said) if self.adapts => self.hear_hand_overs(said),
            Message::ServiceAnswers(said) => {
                this.answered(answers::standings(&this.settings.services, &said));
            }
            Message::FlowClosed(closed) => {
                this.udp.flow_closed(closed.flow_id, closed.reason);
            }
            Message::Finished(finished) => this.lane.announced(finished),
            Message::NoMoreFlows(no_more) => this.no_more_flows(no_more.flows_opened),
            Message::PathChallenge(PathChallenge { nonce }) => this
                .lane
                .send_control(&Message::PathResponse(PathResponse { nonce })),
            Message::GoAway(away) => {
                tracing::debug!(server = %this.server, reason = %away.reason, "this lane gets no new flow");
                if away.reason != GoAwayReason::Replaced {
                    presence::say_drains(&self.core, &this.server);
                }
                return Happened::GoAway(away.reason);
            }
            other => tracing::debug!(?other, "message without meaning here"),
        }
        Happened::Other
    }

    /// The server says what it had to hand over to this lane, in all.
    fn hear_hand_overs(&mut self, said: HandOvers) {
        let said = Work {
            visitors: said.visitors,
            datagrams: said.datagrams,
        };
        let before = self.handed_over.replace(said).unwrap_or_default();
        let server = &self.this.server;
        if let Some(change) = server.handed_over(said.since(before), Instant::now()) {
            self.core.lanes_change(server, change);
        }
    }

    /// Says what this lane has carried since it last did.
    fn say_carried(&mut self, now: Instant) {
        if !self.adapts {
            return;
        }
        let carried = self.this.carried();
        let news = carried.since(std::mem::replace(&mut self.carried, carried));
        let server = &self.this.server;
        if let Some(change) = server.carried(news, self.heartbeat_interval, now) {
            self.core.lanes_change(server, change);
        }
    }

    fn deadlines(&mut self, now: Instant) -> Happened {
        if now >= self.last_heard + self.health_timeout {
            self.this.context.counters.lanes_unhealthy.increment();
            self.this.lane.close(LaneError::HealthTimeout, "");
            return Happened::Ended(LaneEnd::ClosedByUs(LaneError::HealthTimeout));
        }
        if now >= self.next_ping {
            self.this.lane.ping();
            self.next_ping = now + self.keep_alive_period;
        }
        if now >= self.next_beat {
            self.this.tell_health();
            self.beat(now);
            self.note_path();
            self.say_carried(now);
            // A role that was given back unseen is taken up here.
            self.claim_probing();
        }
        if self.vigil.next().is_some_and(|next| now >= next) {
            let (heard, rtt) = self.signs_of_life();
            let duty = self.vigil.due(now, heard, rtt);
            self.perform(duty);
        }
        Happened::Other
    }

    /// Writes down what operators see of the way to the server.
    fn note_path(&self) {
        let sample = self.this.lane.path_sample();
        let newly_lost = self.loss_told.news(&sample);
        sample.count(newly_lost, &self.core.context.core);
        self.this.server.path.note(&sample, newly_lost);
    }

    fn beat(&mut self, now: Instant) {
        self.next_ping = now + self.keep_alive_period;
        self.next_beat = now + jittered(self.heartbeat_interval);
        self.sent += 1;
        self.this.lane.send_control(&Message::Heartbeat(Heartbeat {
            sequence: self.sent,
            acknowledged: self.heard,
        }));
    }

    fn perform(&self, duty: Duty) {
        let counters = &self.this.context.counters;
        if duty.ping {
            counters.probes_sent.increment();
            self.this.lane.ping();
        }
        if duty.alarm {
            counters.probes_unanswered.increment();
            self.core.alarm(&self.this.server);
        }
    }

    fn signs_of_life(&self) -> (u64, Duration) {
        (self.this.lane.packets_received(), self.this.lane.rtt())
    }

    fn claim_probing(&mut self) {
        if self.counted
            && self.vigil.wants_to_probe()
            && self.this.server.claim_probing(self.this.serial)
        {
            let (heard, _) = self.signs_of_life();
            self.vigil.probe(Instant::now(), heard);
        }
    }

    /// The lane is no longer one that its server has: another one is to take its place, and the probing.
    fn stop_counting(&mut self, why: &dyn Display) {
        if !std::mem::replace(&mut self.counted, false) {
            return;
        }
        self.registered = None;
        self.vigil = Vigil::new(Duration::ZERO);
        let server = &self.this.server;
        if std::mem::take(&mut self.unanswered) {
            server.lane_unanswered(false);
        }
        if server.lane_ended() {
            if !server.rests() {
                presence::say_down(&self.core, server, why);
            }
            // Those that wait long, because this one has served, try now.
            for other in self.core.shared.other_addresses(server) {
                self.core.found(&other);
            }
        }
        if self.core.shared.lane_ended(server) {
            self.core.tell_all(&ClientMail::Plan);
        }
        if server.leave_probing(self.this.serial) {
            self.core.tell_all(&ClientMail::Alarm {
                server: server.number,
            });
        }
    }
}

/// Counts a lane that its server was not to have any more, until it has ended.
struct Surplus(Arc<ServerState>);

impl Surplus {
    fn new(server: &Arc<ServerState>) -> Surplus {
        server.lane_left(true);
        Surplus(Arc::clone(server))
    }
}

impl Drop for Surplus {
    fn drop(&mut self) {
        self.0.lane_left(false);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_counting(&"its lane was given up");
        self.core.lanes.borrow_mut().remove(&self.this.serial);
    }
}

/// Whether this end of a lane makes the others doubtful.
fn raises_alarm(end: &LaneEnd) -> bool {
    match end {
        LaneEnd::StatelessReset
        | LaneEnd::IdleTimeout
        | LaneEnd::TransportErrorByPeer(..)
        | LaneEnd::ClosedByPeer(LaneError::Shutdown | LaneError::Internal, _)
        | LaneEnd::ClosedByUs(LaneError::HealthTimeout) => true,
        LaneEnd::ClosedByPeer(..)
        | LaneEnd::ClosedByUs(_)
        | LaneEnd::TransportErrorByUs(..)
        | LaneEnd::BadCertificate(_)
        | LaneEnd::NotRegistered
        | LaneEnd::HandshakeTimeout
        | LaneEnd::Unreachable(_)
        | LaneEnd::Broken => false,
    }
}
