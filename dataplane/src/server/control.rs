//! The server's end of a control stream: registration, authentication, heartbeats, GoAway.

use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_config::{LANES_MAX, ServerAuth};
use qmux_proto::control::{
    Capabilities, GoAway, GoAwayReason, Heartbeat, Message, NoMoreFlows, RefuseReason, Register,
    RegisterAck, RegisterOutcome, ServiceHealth,
};
use qmux_proto::{LaneError, PROTOCOL_VERSION};

use super::auth::{self, Unauthentic};
use super::lane::{ServerLane, address};
use super::listener::ListenerCore;
use super::presence;
use super::registry::{Duplicate, Joined};
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::token;

/// A client that has completed the handshake must register within this time.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// A client closes a lane when it has read why it was refused; after this time the server does, on
/// a path of 750 ms too.
const REFUSED_PATIENCE: Duration = Duration::from_secs(2);

/// Refused lanes that wait for that, per core and listener. What is more is closed at once: its
/// client learns less.
const REFUSED_LANES_MAX: usize = 64;

/// Lanes that one client may have with a listener: as many as it can be told to open, and those of
/// before that their server does not know to be dead yet.
const LANES_OF_CLIENT_MAX: usize = 2 * LANES_MAX as usize;

/// Runs until the lane ends.
pub(super) async fn run(this: Rc<ServerLane>) {
    let mut reader = ControlReader::new(Rc::clone(&this.lane));
    let Some(listener) = this.listener.upgrade() else {
        return;
    };
    if register(&this, &listener, &mut reader).await {
        serve(&this, &listener, &mut reader).await;
    }
}

/// True once the lane is registered.
async fn register(
    this: &Rc<ServerLane>,
    listener: &Rc<ListenerCore>,
    reader: &mut ControlReader,
) -> bool {
    let deadline = Instant::now() + REGISTER_TIMEOUT;
    let request = match reader.next(deadline).await {
        ControlEvent::Message(Message::Register(request)) => request,
        ControlEvent::Message(_) => {
            this.lane.close(
                LaneError::ProtocolViolation,
                "the first message must be Register",
            );
            return false;
        }
        ControlEvent::Deadline => {
            this.lane
                .close(LaneError::Unauthenticated, "no Register message came");
            return false;
        }
        ControlEvent::Ended => return false,
    };
    // A challenge grants nothing, and a client that resumes answers it together with the end of its handshake.
    let challenge = match &listener.server().auth {
        ServerAuth::Token { .. } => Some(token::challenge()),
        ServerAuth::Mtls { .. } => None,
    };
    if let Some(challenge) = challenge {
        this.lane.send_control(&Message::AuthChallenge(challenge));
    }
    // Early data can be replayed by anyone who saw it: nothing is granted before the handshake is complete.
    if this.lane.established().await.is_err() {
        return false;
    }
    if request.protocol_version != PROTOCOL_VERSION {
        let text = format!("this server speaks protocol version {PROTOCOL_VERSION}");
        return refuse(
            this,
            listener,
            &request,
            RefuseReason::UnsupportedVersion,
            &text,
        );
    }
    if listener.is_draining() {
        return refuse_draining(this, listener, &request);
    }
    let authentic = match (&listener.server().auth, challenge) {
        (ServerAuth::Token { token }, Some(challenge)) => {
            let proof = reader.next(deadline).await;
            auth::by_token(this, listener, token, &challenge, proof)
        }
        _ => auth::by_certificate(this, listener),
    };
    match authentic {
        // The stop may have come while the proof was waited for: a lane accepted now would miss the GoAway.
        Ok(()) if listener.is_draining() => refuse_draining(this, listener, &request),
        Ok(()) => accept(this, listener, &request),
        Err(Unauthentic::Gone) => false,
        // One attempt per lane, and no hint at what was wrong.
        Err(Unauthentic::Refused) => {
            refuse(this, listener, &request, RefuseReason::Unauthenticated, "")
        }
    }
}

fn refuse_draining(this: &Rc<ServerLane>, listener: &Rc<ListenerCore>, request: &Register) -> bool {
    let text = "this server is shutting down";
    refuse(this, listener, request, RefuseReason::Draining, text)
}

fn refuse(
    this: &Rc<ServerLane>,
    listener: &Rc<ListenerCore>,
    request: &Register,
    reason: RefuseReason,
    text: &str,
) -> bool {
    listener.counters().registrations_refused.increment();
    // Duplicates are told once, with both addresses, where they are found.
    if reason != RefuseReason::DuplicateClient
        && let Some(suppressed) = listener.context().handshake_log.pass(Instant::now())
    {
        tracing::warn!(client = request.client_id, peer = address(&this.lane), %reason, suppressed, "registration refused");
    }
    this.lane.send_control(&Message::RegisterAck(listener.ack(
        RegisterOutcome::Refused {
            reason,
            text: text.into(),
        },
    )));
    // It is nobody's any more, and takes no place from those who may be let in.
    this.lane.give_place_back();
    if !listener.let_linger(this, REFUSED_LANES_MAX) {
        listener.counters().refusals_cut_short.increment();
        this.lane.close(LaneError::Refused, text);
        return false;
    }
    // Not held, not even its memory: a peer that comes, is refused and goes must leave nothing behind.
    let (endpoint, key) = (Rc::downgrade(listener.endpoint()), this.lane.key());
    // The client closes when it has read the answer; should it not, the server does.
    crate::core::task::spawn(async move {
        crate::core::time::sleep(REFUSED_PATIENCE).await;
        if let Some(lane) = endpoint.upgrade().and_then(|endpoint| endpoint.lane(key)) {
            lane.close(LaneError::Refused, "");
        }
    });
    false
}

/// True if the lane is registered now.
fn accept(this: &Rc<ServerLane>, listener: &Rc<ListenerCore>, request: &Register) -> bool {
    if listener.lanes_of(request) >= LANES_OF_CLIENT_MAX {
        listener.counters().registrations_limited.increment();
        let text = format!("this client has {LANES_OF_CLIENT_MAX} lanes already");
        return refuse(this, listener, request, RefuseReason::LimitReached, &text);
    }
    let Joined {
        membership,
        replaced,
    } = match listener.join(request, this.lane.peer_addr()) {
        Ok(joined) => joined,
        Err(duplicate) => return refuse_duplicate(this, listener, request, &duplicate),
    };
    if let Some(old) = replaced {
        if let Some(suppressed) = listener.context().lane_log.pass(Instant::now()) {
            tracing::info!(
                client = request.client_id,
                new = address(&this.lane),
                old = old.address.map(tracing::field::display),
                old_drains = old.drains,
                suppressed,
                "a new instance of this client takes over"
            );
        }
        if !old.drains {
            listener.evict_everywhere(old.client);
        }
    }
    if this.membership.set(membership).is_err() {
        return false; // A second Register on one lane is read by `serve`, never here.
    }
    listener.counters().registrations_accepted.increment();
    this.lane.admit();
    if request.capabilities.contains(Capabilities::PATH_CHALLENGE) {
        this.lane.peer_answers_challenges();
    }
    this.last_heard.set(Instant::now());
    listener.lane_registered(this);
    this.lane.send_control(&Message::RegisterAck(
        listener.ack(RegisterOutcome::Accepted),
    ));
    tracing::debug!(
        client = request.client_id,
        peer = address(&this.lane),
        lane = request.lane_index,
        lanes = request.lane_count,
        core = listener.core(),
        "lane registered"
    );
    if let Some(membership) = this.membership.get()
        && membership.is_first()
    {
        presence::say_up(listener.context(), membership.client());
    }
    true
}

/// Two programs that live share one id. The one that came later has it.
fn refuse_duplicate(
    this: &Rc<ServerLane>,
    listener: &Rc<ListenerCore>,
    request: &Register,
    duplicate: &Duplicate,
) -> bool {
    listener.counters().registrations_duplicate.increment();
    let other = duplicate
        .address
        .map_or_else(|| "elsewhere".into(), |address| address.to_string());
    if duplicate.first
        && let Some(suppressed) = listener.context().handshake_log.pass(Instant::now())
    {
        tracing::warn!(
            client = request.client_id,
            refused = address(&this.lane),
            serving = other,
            suppressed,
            "two clients use one client_id at the same time; the one that came later serves: give each its own client_id, or leave it empty"
        );
    }
    let text = format!("a newer client with this client_id is connected from {other}");
    refuse(
        this,
        listener,
        request,
        RefuseReason::DuplicateClient,
        &text,
    )
}

async fn serve(this: &Rc<ServerLane>, listener: &Rc<ListenerCore>, reader: &mut ControlReader) {
    let interval = listener.server().heartbeat_interval;
    let mut next_beat = Instant::now() + interval;
    let keep_alive = listener.keep_alive_period();
    let mut next_ping = Instant::now() + keep_alive;
    let (mut sent, mut heard) = (0, 0);
    loop {
        let unhealthy_at = this.last_heard.get() + listener.server().health_timeout;
        match reader
            .next(next_beat.min(next_ping).min(unhealthy_at))
            .await
        {
            ControlEvent::Message(message) => {
                this.last_heard.set(Instant::now());
                match message {
                    Message::Heartbeat(beat) => {
                        heard = beat.sequence;
                        listener.counters().heartbeats_received.increment();
                    }
                    Message::FlowClosed(closed) => {
                        if let Some(udp) = &this.udp
                            && udp.flow_closed(closed.flow_id, closed.reason)
                            && let Some(membership) = this.membership.get()
                        {
                            membership.client().udp_refused(Instant::now());
                        }
                    }
                    Message::Finished(finished) => this.lane.announced(finished),
                    Message::PathResponse(response) => {
                        // One that comes too late, or for an address before the last one, proves nothing.
                        let _proved = this.lane.path_response(response.nonce);
                    }
                    Message::GoAway(away) => {
                        say_drains(this, listener, &away);
                        listener.lane_takes_no_more(this);
                        this.lane.send_control(&Message::NoMoreFlows(NoMoreFlows {
                            flows_opened: this.lane.streams_opened(),
                        }));
                    }
                    Message::ServiceHealth(health) => service_health(this, listener, &health),
                    other => tracing::debug!(?other, "message without meaning here"),
                }
            }
            ControlEvent::Deadline => {
                let now = Instant::now();
                if now >= this.last_heard.get() + listener.server().health_timeout {
                    listener.counters().lanes_unhealthy.increment();
                    tracing::debug!(
                        client = this.client_id(),
                        peer = address(&this.lane),
                        "nothing heard within health_timeout; lane closed"
                    );
                    listener.lane_takes_no_more(this);
                    this.lane.close(LaneError::HealthTimeout, "");
                    return;
                }
                if now >= next_ping {
                    this.lane.ping();
                    next_ping = now + keep_alive;
                }
                if now >= next_beat {
                    next_ping = now + keep_alive;
                    sent += 1;
                    this.lane.send_control(&Message::Heartbeat(Heartbeat {
                        sequence: sent,
                        acknowledged: heard,
                    }));
                    next_beat = now + interval;
                }
            }
            ControlEvent::Ended => return,
        }
    }
}

/// One line for a client that stops; a lane that is left for another reason is no news.
fn say_drains(this: &ServerLane, listener: &ListenerCore, away: &GoAway) {
    let (client, reason) = (this.client_id(), away.reason);
    tracing::debug!(client, peer = address(&this.lane), %reason, "no new flow goes to this lane");
    let membership = this.membership.get();
    if away.reason == GoAwayReason::Shutdown
        && membership.is_some_and(|membership| membership.client().begins_to_drain())
        && let Some(suppressed) = listener.context().lane_log.pass(Instant::now())
    {
        tracing::info!(client, suppressed, "client drains; it gets no new flow");
    }
}

/// A client says whether it reaches its service. Today there is one, without a name.
fn service_health(this: &Rc<ServerLane>, listener: &ListenerCore, health: &ServiceHealth) {
    let Some(membership) = this.membership.get() else {
        return;
    };
    if !health.service.is_empty() || !membership.service_health(health.healthy) {
        return;
    }
    if health.healthy {
        listener.counters().services_up.increment();
    } else {
        listener.counters().services_down.increment();
    }
    let client = this.client_id();
    let Some(suppressed) = listener.context().health_log.pass(Instant::now()) else {
        return;
    };
    if health.healthy {
        tracing::info!(client, suppressed, "the client reaches its service again");
    } else {
        tracing::warn!(
            client,
            suppressed,
            "the client cannot reach its service; visitors go to others while there are any"
        );
    }
}

impl ListenerCore {
    fn ack(&self, outcome: RegisterOutcome) -> RegisterAck {
        RegisterAck {
            outcome,
            server_instance_id: self.server_instance_id(),
            server_cores: self.cores() as u64,
            lane_core: self.core() as u64,
        }
    }
}
