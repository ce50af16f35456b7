//! The life of a registered lane on the server: heartbeats, probes, and what the client says.
//!
//! **Liveness.** One lane of each client probes the client whenever nothing was heard for a while
//! ([`Liveness`]), unless the client probes the server, which makes that needless. When an answer
//! stays away, or any lane falls silent, all lanes of that client on every core ask for a sign of
//! life. So all of them know within a second that a client has died, and a client whose other lanes
//! answer keeps those.
//!
//! **Lost TLS connections.** When the process of a client dies, the TLS connections of its lanes
//! are closed, which says more than silence does: a client that lives dials again at once. So such
//! a lane waits for its client no longer than [`BACK_WITHIN`], unless another lane of the client is
//! answered. (A proxy on the way can end a connection as well; one that stays away for longer costs
//! the flows.)

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_proto::LaneError;
use qmux_proto::control::{
    GoAway, GoAwayReason, Heartbeat, Message, NoMoreFlows, ServiceHealth, WayFails,
};

use super::Door;
use super::lane::{ServerLane, address};
use super::presence;
use crate::jitter::jittered;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::liveness::{Duty, Liveness};
use crate::quic::loss_watch::LossWatch;
use crate::quic::path_numbers::LossTold;
use crate::server::pool::lanes::CarriesFlows as _;

/// A client from which nothing was heard for this long is asked for a sign of life. Clients ask the
/// server as often (`probe_interval`).
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long a lane waits for a client that has ended its TLS connection: several round trips of two
/// handshakes, and the attempts of a client whose proxy is restarting, every 0.5 s.
pub(super) const BACK_WITHIN: Duration = Duration::from_secs(5);

/// How often to check whether another lane of the client is still answered.
const OTHERS_LOOK: Duration = Duration::from_secs(1);

/// A deadline that is noticed this much too late shows that the process stood still, and that what
/// came meanwhile has yet to be read.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// The least time between two reports of hand-overs to a client, which counts them over the same
/// time.
const HAND_OVERS_PAUSE: Duration = Duration::from_secs(1);

/// One registered lane.
pub(crate) struct Session<'a> {
    lane: &'a Rc<ServerLane>,
    door: &'a Rc<Door>,
    reader: &'a mut ControlReader,
    next_beat: Instant,
    next_ping: Instant,
    /// Numbers of heartbeats sent and heard.
    sent: u64,
    heard: u64,
    liveness: Liveness,
    loss_told: LossTold,
    losses: LossWatch,
    /// The time at which hand-overs may be reported again.
    next_hand_overs: Instant,
}

impl Session<'_> {
    /// The session of a lane that has just been registered.
    pub(crate) fn begin<'a>(
        lane: &'a Rc<ServerLane>,
        door: &'a Rc<Door>,
        reader: &'a mut ControlReader,
    ) -> Session<'a> {
        let now = Instant::now();
        let session = Session {
            next_beat: now + jittered(door.settings().server().heartbeat_interval),
            next_ping: now + door.keep_alive_period(),
            sent: 0,
            heard: 0,
            liveness: Liveness::new(jittered(PROBE_INTERVAL)),
            lane,
            door,
            reader,
            loss_told: LossTold::default(),
            losses: LossWatch::new(now, lane.quic.packets_sent_and_lost()),
            next_hand_overs: now + HAND_OVERS_PAUSE,
        };
        session.note_path();
        session
    }

    /// Runs the session until the lane ends.
    pub(crate) async fn serve(mut self) {
        self.claim_probing();
        loop {
            self.tell_hand_overs(Instant::now());
            let health_timeout = self.door.settings().server().health_timeout;
            let deadline = [
                Some(self.next_beat),
                Some(self.next_ping),
                Some(self.lane.last_heard.get() + health_timeout),
                self.liveness.next(),
                self.lane.back_until(),
                self.looks_for_losses().then(|| self.losses.next()),
                self.lane
                    .has_hand_overs_to_tell()
                    .then_some(self.next_hand_overs),
            ]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.next_beat);
            match self.next(deadline).await {
                Some(ControlEvent::Message(message)) => self.message(message),
                Some(ControlEvent::Deadline) => {
                    if !self.deadlines(Instant::now()) {
                        return;
                    }
                }
                Some(ControlEvent::Ended) => return,
                None => self.alarmed(),
            }
        }
    }

    /// The next event of the control stream. `None` if the lane was alarmed, or has hand-overs to
    /// report.
    async fn next(&mut self, deadline: Instant) -> Option<ControlEvent> {
        let mut next = pin!(self.reader.next(deadline));
        let wake = &self.lane.wake;
        // Reading is cancel-safe: what was read stays in the decoder.
        poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(event) => Poll::Ready(Some(event)),
            Poll::Pending => wake.poll(cx).map(|()| None),
        })
        .await
    }

    fn message(&mut self, message: Message) {
        let Self { lane, door, .. } = self;
        lane.last_heard.set(Instant::now());
        match message {
            Message::Heartbeat(beat) => {
                self.heard = beat.sequence;
                door.counters().heartbeats_received.increment();
            }
            Message::FlowClosed(closed) => {
                if let Some(udp) = &lane.udp
                    && let Some(unserved) = udp.flow_closed(closed.flow_id, closed.reason)
                    && let Some(membership) = lane.membership.get()
                    && let Some(member) = membership.member(unserved.service)
                {
                    member.udp_refused(unserved.is_down, Instant::now());
                }
            }
            Message::Finished(finished) => lane.quic.announced(finished),
            Message::PathResponse(response) => {
                // A response that comes too late, or for an earlier address, proves nothing.
                let _proved = lane.quic.path_response(response.nonce);
            }
            Message::GoAway(away) => {
                say_drains(lane, door, &away);
                door.lane_takes_no_more(lane);
                lane.quic.send_control(&Message::NoMoreFlows(NoMoreFlows {
                    flows_opened: lane.quic.streams_opened(),
                }));
            }
            Message::ServiceHealth(health) => service_health(lane, door, &health),
            other => tracing::debug!(?other, "message without meaning here"),
        }
    }

    /// Does everything that is due. Returns false if the lane was closed.
    fn deadlines(&mut self, now: Instant) -> bool {
        let Self { lane, door, .. } = self;
        let settings = door.settings();
        let server = settings.server();
        if now >= lane.last_heard.get() + server.health_timeout {
            door.counters().lanes_unhealthy.increment();
            tracing::debug!(
                client = lane.client_id(),
                peer = address(&lane.quic),
                "nothing heard within health_timeout; lane closed"
            );
            door.lane_takes_no_more(lane);
            lane.quic.close(LaneError::HealthTimeout, "");
            return false;
        }
        if lane.back_until().is_some_and(|until| now >= until) && !self.stays_without_way(now) {
            return false;
        }
        self.tell_losses(now);
        let Self { lane, door, .. } = self;
        if now >= self.next_ping {
            lane.quic.ping();
            self.next_ping = now + door.keep_alive_period();
        }
        if now >= self.next_beat {
            self.next_ping = now + door.keep_alive_period();
            self.sent += 1;
            lane.quic.send_control(&Message::Heartbeat(Heartbeat {
                sequence: self.sent,
                acknowledged: self.heard,
            }));
            self.next_beat = now + jittered(server.heartbeat_interval);
            self.note_path();
            // If the lane that probed has ended without having probed, this one takes over here.
            self.claim_probing();
        }
        if self.liveness.next().is_some_and(|next| now >= next) {
            let quic = &self.lane.quic;
            let duty = self.liveness.due(now, quic.packets_received(), quic.rtt());
            self.perform(duty, now);
        }
        true
    }

    /// Handles a lane whose client has ended its TLS connection and is not back. Returns false if
    /// the lane was closed.
    fn stays_without_way(&self, now: Instant) -> bool {
        let Self { lane, door, .. } = self;
        let Some(until) = lane.back_until() else {
            return true;
        };
        let others = lane.membership.get();
        if !lane.quic.is_silent() {
            lane.must_be_back(None);
        } else if now >= until + STOOD_STILL {
            lane.must_be_back(Some(now + BACK_WITHIN));
        } else if others.is_some_and(|it| it.client().answers()) {
            lane.must_be_back(Some(now + OTHERS_LOOK));
        } else {
            door.counters().lanes_hung_up.increment();
            tracing::debug!(
                client = lane.client_id(),
                peer = address(&lane.quic),
                "its TLS connection has ended, and the client is not back; lane closed"
            );
            door.lane_takes_no_more(lane);
            lane.quic.close(LaneError::HealthTimeout, "");
            return false;
        }
        true
    }

    /// Whether to watch for losses: over UDP, while there are flows to lose.
    fn looks_for_losses(&self) -> bool {
        self.lane.flows() > 0 && self.lane.quic.tls().is_none()
    }

    /// Tells the client when most of what is sent to it is lost, because it may have another path.
    fn tell_losses(&mut self, now: Instant) {
        if self.looks_for_losses()
            && now >= self.losses.next()
            && let Some(lost_percent) = self
                .losses
                .look(now, self.lane.quic.packets_sent_and_lost())
        {
            self.door.counters().lanes_losing_most.increment();
            self.lane
                .quic
                .send_control(&Message::WayFails(WayFails { lost_percent }));
        }
    }

    /// Publishes the numbers of the path to the client for operators.
    fn note_path(&self) {
        let sample = self.lane.quic.path_sample();
        let newly_lost = self.loss_told.news(&sample);
        sample.count(newly_lost, &self.door.context().core);
        if let Some(membership) = self.lane.membership.get() {
            membership.client().path.note(&sample, newly_lost);
        }
    }

    /// Reports to the client what was handed over to this lane, if that is due.
    fn tell_hand_overs(&mut self, now: Instant) {
        if self.lane.has_hand_overs_to_tell() && now >= self.next_hand_overs {
            self.next_hand_overs = now + HAND_OVERS_PAUSE;
            let hand_overs = self.lane.take_hand_overs();
            self.lane.quic.send_control(&Message::HandOvers(hand_overs));
        }
    }

    /// Handles an alarm: the client may be gone.
    fn alarmed(&mut self) {
        if self.lane.take_alarm() {
            self.claim_probing();
            let now = Instant::now();
            let quic = &self.lane.quic;
            let duty = self
                .liveness
                .alarm(now, quic.packets_received(), quic.rtt());
            self.perform(duty, now);
        }
    }

    fn perform(&self, duty: Duty, now: Instant) {
        let counters = self.door.counters();
        if duty.ping {
            counters.probes_sent.increment();
            self.lane.quic.ping();
            self.lane.quic.asked(now);
        }
        if duty.alarm {
            counters.probes_unanswered.increment();
            self.door.client_may_be_gone(self.lane, now);
        }
    }

    fn claim_probing(&mut self) {
        if self.liveness.wants_to_probe()
            && let Some(membership) = self.lane.membership.get()
            && membership.claim_probing()
        {
            let heard = self.lane.quic.packets_received();
            self.liveness.probe(Instant::now(), heard);
        }
    }
}

/// Logs a client that stops, in one line. A lane that ends for another reason is not logged here.
fn say_drains(lane: &ServerLane, door: &Door, away: &GoAway) {
    let (client, reason) = (lane.client_id(), away.reason);
    tracing::debug!(client, peer = address(&lane.quic), %reason, "no new flow goes to this lane");
    let membership = lane.membership.get();
    if away.reason == GoAwayReason::Shutdown
        && membership.is_some_and(|membership| membership.client().begins_to_drain())
        && let Some(suppressed) = door.context().lane_log.pass(Instant::now())
    {
        tracing::info!(client, suppressed, "client drains; it gets no new flow");
    }
}

/// Takes up a client's word on whether it reaches one of its services.
fn service_health(lane: &Rc<ServerLane>, door: &Door, health: &ServiceHealth) {
    let Some(membership) = lane.membership.get() else {
        return;
    };
    let Some(service) = door.service(&health.service) else {
        return;
    };
    if !membership.service_health(service.number, health.healthy) {
        return;
    }
    presence::say_health(door, lane.client_id(), &service, health.healthy);
}
