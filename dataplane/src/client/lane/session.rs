//! The life of a registered lane: heartbeats, probes, and what the server says.
//!
//! A lane serves until it ends, or until it is left ([`super::leaving`]) because its server drains
//! or because it is not wanted any more. Then its supervisor goes on without it.
//!
//! A lane whose questions nobody answers goes on asking, and its supervisor dials a second one
//! beside it from a new port ([`super::beside`]), because there may be another server behind the
//! address now.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_config::{Lanes, Transport};
use qmux_proto::LaneError;
use qmux_proto::control::{
    GoAwayReason, HandOvers, Heartbeat, Message, PathChallenge, PathResponse, RegisterAck,
};

use super::ClientLane;
use super::attempt::CloseOnDrop;
use super::ending::{AttemptEnd, Causes};
use super::supervisor::Supervisor;
use super::transports::Transports;
use crate::client::presence;
use crate::client::servers::demand::Work;
use crate::client::servers::server;
use crate::client::services::answers;
use crate::client::{ClientCore, ClientMail, going_away};
use crate::jitter::jittered;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::liveness::{Duty, Liveness};
use crate::quic::loss_watch::LossWatch;
use crate::quic::path_numbers::LossTold;
use crate::ready::RegisteredLane;

/// A second lane is dialled beside a lane whose questions have been unanswered for this long.
const UNANSWERED_MAX: Duration = Duration::from_secs(2);

/// How often a lane that is not the one that probes asks for itself while it carries flows. The
/// silence of its own path must be noticed, so that the lane can move to another transport.
const ASKS_ALONE: Duration = Duration::from_secs(1);

/// The phase of a registered lane's life. Before it is registered, a lane is a
/// [`Dialed`](super::attempt).
enum Phase {
    /// The lane serves, and is answered. The client is ready while there is such a lane.
    Answered(RegisteredLane),
    /// The lane serves, but nobody has answered its questions for [`UNANSWERED_MAX`].
    Unanswered(RegisteredLane),
    /// The lane has ended, or is left to the flows that it has. Another one is to take its place.
    Left,
}

impl Phase {
    /// Notes that the lane is answered, or is not any more. Returns true if that is news, which it
    /// never is of a lane that is left.
    fn turns(&mut self, unanswered: bool) -> bool {
        let (next, news) = match (std::mem::replace(self, Phase::Left), unanswered) {
            (Phase::Answered(registered), true) => (Phase::Unanswered(registered), true),
            (Phase::Unanswered(registered), false) => (Phase::Answered(registered), true),
            (same, _) => (same, false),
        };
        *self = next;
        news
    }
}

/// One registered lane.
pub(super) struct Session {
    pub(super) core: Rc<ClientCore>,
    pub(super) lane: Rc<ClientLane>,
    reader: ControlReader,
    _guard: CloseOnDrop,
    phase: Phase,
    heartbeat_interval: Duration,
    health_timeout: Duration,
    pub(super) drain_timeout: Duration,
    keep_alive_period: Duration,
    last_heard: Instant,
    next_beat: Instant,
    next_ping: Instant,
    /// Numbers of heartbeats: sent, heard, and acknowledged of those sent.
    pub(super) sent: u64,
    heard: u64,
    pub(super) acknowledged: u64,
    liveness: Liveness,
    losses: LossWatch,
    transports: Transports,
    /// The number of the server instance that the lane is registered with.
    instance: u64,
    loss_told: LossTold,
    /// Whether the number of lanes follows the load.
    adapts: bool,
    /// All work that the server, as it has said, had to hand over to this lane.
    handed_over: Option<Work>,
    /// All work that this lane has reported to have carried.
    carried: Work,
}

impl Session {
    /// The session of a lane that `ack` has accepted.
    pub(super) fn begin(
        core: &Rc<ClientCore>,
        lane: Rc<ClientLane>,
        reader: ControlReader,
        guard: CloseOnDrop,
        ack: &RegisterAck,
    ) -> Option<Session> {
        let settings = Arc::clone(&lane.settings);
        let client = settings.client()?;
        let now = Instant::now();
        let mut session = Session {
            reader,
            _guard: guard,
            phase: Phase::Answered(core.shared.lane_registered()),
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
            liveness: Liveness::new(jittered(client.probe_interval)),
            losses: LossWatch::new(now, lane.quic.packets_sent_and_lost()),
            transports: Transports::new(core, &lane),
            loss_told: LossTold::default(),
            adapts: client.lanes == Lanes::Auto,
            handed_over: None,
            carried: Work::default(),
            instance: server::instance_number(&ack.server_instance_id),
            core: Rc::clone(core),
            lane,
        };
        if client.probe_interval.is_zero() {
            session.ask_alone();
        } else if session.has_other_transports() {
            let (every, heard) = (jittered(ASKS_ALONE), session.lane.quic.answers());
            session.liveness.asks_aside(every, now, heard);
        }
        let server = &session.lane.server;
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
        // The lane is added after the alarm, which it need not hear.
        core.lanes
            .borrow_mut()
            .insert(session.lane.serial, Rc::clone(&session.lane));
        session.note_path();
        session.lane.tell_health();
        if core.context.draining.get() {
            // The servers have been told that this client stops, but not on this lane, and a flow
            // may be on its way.
            session
                .lane
                .quic
                .send_control(&Message::GoAway(going_away(client.drain_timeout)));
        }
        Some(session)
    }

    /// The lane of this session.
    pub(super) fn lane(&self) -> &Rc<ClientLane> {
        &self.lane
    }

    /// Whether both lanes are registered with the same instance of a server.
    pub(super) fn has_server_of(&self, other: &Session) -> bool {
        self.instance == other.instance
    }

    /// Serves until the lane ends or is to be left. `None` if nobody has answered it for
    /// [`UNANSWERED_MAX`], so that another lane may be dialled beside it (not before
    /// `beside_from`).
    pub(super) async fn serve(
        &mut self,
        supervisor: &Supervisor,
        beside_from: Instant,
    ) -> Option<AttemptEnd> {
        self.claim_probing();
        loop {
            if supervisor.is_retired() {
                return Some(AttemptEnd::Retired);
            }
            let now = Instant::now();
            self.note_unanswered(now);
            if now >= beside_from && self.may_be_dialed_beside() {
                return None;
            }
            if let Some(end) = self.serving_step().await {
                return Some(end);
            }
        }
    }

    /// Serves on while another lane is dialled beside this one, until this one ends or is to be
    /// left. `None` if it is heard again.
    pub(super) async fn serve_unanswered(&mut self, supervisor: &Supervisor) -> Option<AttemptEnd> {
        loop {
            if supervisor.is_retired() {
                return Some(AttemptEnd::Retired);
            }
            self.note_unanswered(Instant::now());
            if !self.is_unanswered() {
                return None;
            }
            if let Some(end) = self.serving_step().await {
                return Some(end);
            }
        }
    }

    async fn serving_step(&mut self) -> Option<AttemptEnd> {
        let over = self.step(None).await?;
        if let AttemptEnd::Ended(end) = &over {
            self.stop_counting(end);
            if Causes::of(end).alarm {
                self.core.alarm(&self.lane.server);
            }
        }
        Some(over)
    }

    /// Notes whether nobody has answered for [`UNANSWERED_MAX`].
    fn note_unanswered(&mut self, now: Instant) {
        let since = self.unanswered_since();
        let unanswered = since.is_some_and(|since| now >= since + UNANSWERED_MAX);
        if self.phase.turns(unanswered) {
            let server = &self.lane.server;
            server.lane_unanswered(unanswered);
            let nobody = server.is_unanswered();
            if nobody == unanswered && self.core.shared.server_unanswered(server, nobody) {
                self.core.tell_all(&ClientMail::Plan);
            }
        }
    }

    /// Whether another lane may be dialled beside this one. While no lane to the server is
    /// answered, only the lane that probes the server does so, and finds out for all whether there
    /// is another server.
    fn may_be_dialed_beside(&self) -> bool {
        let server = &self.lane.server;
        let probes = server.is_prober(self.lane.serial);
        self.is_unanswered() && (probes || server.is_heard_elsewhere(self.instance))
    }

    /// Waits for the next event, until `until` at the latest, and handles it. If it returns
    /// something, the lane has ended, or the server gives it no new flow.
    pub(super) async fn step(&mut self, until: Option<Instant>) -> Option<AttemptEnd> {
        let now = Instant::now();
        let since = self.unanswered_since();
        self.transports.mind(now, since);
        let losses = self.looks_for_losses().then(|| self.losses.next());
        let deadline = [
            until,
            self.liveness.next(),
            self.transports.deadline(),
            losses,
        ]
        .into_iter()
        .flatten()
        .fold(self.next_beat.min(self.next_ping), Instant::min)
        .min(self.last_heard + self.health_timeout);
        let event = {
            let mut next = pin!(self.reader.next(deadline));
            let wake = &self.lane.wake;
            // Reading is cancel-safe: what was read stays in the decoder.
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
            Some(ControlEvent::Ended) => Some(AttemptEnd::Ended(self.lane.quic.ended().await)),
            None => {
                if self.lane.take_alarm() {
                    self.claim_probing();
                    let quic = &self.lane.quic;
                    let (heard, rtt) = (quic.answers(), quic.rtt());
                    let duty = self.liveness.alarm(Instant::now(), heard, rtt);
                    self.perform(duty);
                }
                None
            }
        }
    }

    fn looks_for_losses(&self) -> bool {
        self.transports.minds_losses() && self.lane.has_flows()
    }

    fn is_unanswered(&self) -> bool {
        matches!(self.phase, Phase::Unanswered(_))
    }

    fn message(&mut self, message: Message) -> Option<AttemptEnd> {
        let lane = &self.lane;
        match message {
            Message::Heartbeat(beat) => {
                self.heard = beat.sequence;
                self.acknowledged = beat.acknowledged;
                lane.context.counters.heartbeats_received.increment();
                // A server that knows services by name has answered before this.
                lane.answers_are_due();
                if self.adapts && self.handed_over.is_none() {
                    self.handed_over = Some(Work::default());
                    if let Some(change) = lane.server.tells_nothing() {
                        self.core.lanes_change(&lane.server, change);
                    }
                }
            }
            Message::HandOvers(said) if self.adapts => self.hear_hand_overs(said),
            Message::ServiceAnswers(said) => {
                lane.answered(answers::standings(&lane.settings.services, &said));
            }
            Message::FlowClosed(closed) => {
                lane.udp.flow_closed(closed.flow_id, closed.reason);
            }
            Message::WayFails(said) => {
                let percent = said.lost_percent;
                self.transports
                    .loses_most("the server", percent, Instant::now());
            }
            Message::Finished(finished) => lane.quic.announced(finished),
            Message::NoMoreFlows(no_more) => lane.no_more_flows(no_more.flows_opened),
            Message::PathChallenge(PathChallenge { nonce }) => lane
                .quic
                .send_control(&Message::PathResponse(PathResponse { nonce })),
            Message::GoAway(away) => {
                tracing::debug!(server = %lane.server, reason = %away.reason, "this lane gets no new flow");
                match away.reason {
                    GoAwayReason::Replaced => {}
                    GoAwayReason::Withdrawn => presence::say_withdrawn(&self.core, &lane.server),
                    _ => presence::say_drains(&self.core, &lane.server),
                }
                return Some(match away.reason {
                    GoAwayReason::Replaced => AttemptEnd::Superseded,
                    _ => AttemptEnd::ServerDrains,
                });
            }
            other => tracing::debug!(?other, "message without meaning here"),
        }
        None
    }

    /// Takes the server's report of what it had to hand over to this lane, in all.
    fn hear_hand_overs(&mut self, said: HandOvers) {
        let said = Work {
            visitors: said.visitors,
            datagrams: said.datagrams,
        };
        let before = self.handed_over.replace(said).unwrap_or_default();
        let server = &self.lane.server;
        if let Some(change) = server.handed_over(said.since(before), Instant::now()) {
            self.core.lanes_change(server, change);
        }
    }

    /// Reports what this lane has carried since the last report.
    fn say_carried(&mut self, now: Instant) {
        if !self.adapts {
            return;
        }
        let carried = self.lane.carried();
        let news = carried.since(std::mem::replace(&mut self.carried, carried));
        let server = &self.lane.server;
        if let Some(change) = server.carried(news, self.heartbeat_interval, now) {
            self.core.lanes_change(server, change);
        }
    }

    fn deadlines(&mut self, now: Instant) -> Option<AttemptEnd> {
        if now >= self.last_heard + self.health_timeout {
            self.lane.context.counters.lanes_unhealthy.increment();
            self.lane.quic.close(LaneError::HealthTimeout, "");
            let end = LaneEnd::ClosedByUs(LaneError::HealthTimeout);
            return Some(AttemptEnd::Ended(end));
        }
        if now >= self.next_ping {
            self.lane.quic.ping();
            self.next_ping = now + self.keep_alive_period;
        }
        if now >= self.next_beat {
            self.lane.tell_health();
            self.beat(now);
            self.note_path();
            self.say_carried(now);
            // If the lane that probed has ended without having probed, this one takes over here.
            self.claim_probing();
        }
        if self.looks_for_losses()
            && now >= self.losses.next()
            && let Some(percent) = self
                .losses
                .look(now, self.lane.quic.packets_sent_and_lost())
        {
            self.transports.loses_most("this side", percent, now);
        }
        if self.liveness.next().is_some_and(|next| now >= next) {
            let quic = &self.lane.quic;
            let (heard, rtt) = (quic.answers(), quic.rtt());
            if self.liveness.is_for_itself() && !self.lane.has_flows() {
                self.liveness.skip(now, heard);
            }
            let duty = self.liveness.due(now, heard, rtt);
            self.perform(duty);
        }
        None
    }

    /// Publishes the numbers of the path to the server for operators.
    fn note_path(&self) {
        let sample = self.lane.quic.path_sample();
        let newly_lost = self.loss_told.news(&sample);
        sample.count(newly_lost, &self.core.context.core);
        self.lane.server.path.note(&sample, newly_lost);
    }

    pub(super) fn beat(&mut self, now: Instant) {
        self.next_ping = now + self.keep_alive_period;
        self.next_beat = now + jittered(self.heartbeat_interval);
        self.sent += 1;
        self.lane.quic.send_control(&Message::Heartbeat(Heartbeat {
            sequence: self.sent,
            acknowledged: self.heard,
        }));
    }

    fn perform(&self, duty: Duty) {
        let counters = &self.lane.context.counters;
        if duty.ping {
            counters.probes_sent.increment();
            self.lane.quic.ping();
        }
        if duty.alarm {
            counters.probes_unanswered.increment();
            self.core.alarm(&self.lane.server);
        }
    }

    fn unanswered_since(&mut self) -> Option<Instant> {
        let quic = &self.lane.quic;
        self.liveness.unanswered_since(|| quic.answers())
    }

    /// Whether the lane can move to another transport.
    fn has_other_transports(&self) -> bool {
        self.transports.transport() != Transport::Quic
    }

    /// Asks the server for this lane alone, if the lane that probes does not ask for it and it can
    /// move to another transport.
    fn ask_alone(&mut self) {
        let quic = &self.lane.quic;
        self.liveness = if quic.is_open() && self.has_other_transports() {
            Liveness::alone(jittered(ASKS_ALONE), Instant::now(), quic.answers())
        } else {
            Liveness::new(Duration::ZERO)
        };
    }

    fn claim_probing(&mut self) {
        if !matches!(self.phase, Phase::Left)
            && self.liveness.wants_to_probe()
            && self.lane.server.claim_probing(self.lane.serial)
        {
            self.liveness
                .probe(Instant::now(), self.lane.quic.answers());
        }
    }

    /// Takes the lane off the server's count: another one is to take its place, and its probing.
    pub(super) fn stop_counting(&mut self, why: &dyn Display) {
        let was_unanswered = self.is_unanswered();
        if matches!(std::mem::replace(&mut self.phase, Phase::Left), Phase::Left) {
            return;
        }
        self.ask_alone();
        self.transports.stop_counting();
        let server = &self.lane.server;
        if was_unanswered {
            server.lane_unanswered(false);
        }
        if server.lane_ended() {
            if !server.rests() {
                presence::say_down(&self.core, server, why);
            }
            // Lanes to other addresses that wait long because this one has served should try now.
            for other in self.core.shared.other_addresses(server) {
                self.core.found(&other);
            }
        }
        if self.core.shared.lane_ended(server) {
            self.core.tell_all(&ClientMail::Plan);
        }
        if server.leave_probing(self.lane.serial) {
            self.core.tell_all(&ClientMail::Alarm {
                server: server.number,
            });
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_counting(&"its lane was given up");
        self.core.lanes.borrow_mut().remove(&self.lane.serial);
    }
}
