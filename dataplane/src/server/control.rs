//! The server's end of a control stream until the lane is registered: authentication, admission,
//! refusals.

use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_config::{LANES_MAX, ServerAuth};
use qmux_proto::control::{
    Capabilities, Message, RefuseReason, Register, RegisterAck, RegisterOutcome,
};
use qmux_proto::{LaneError, PROTOCOL_VERSION};

use super::auth::{self, Unauthentic};
use super::lane::{ServerLane, address};
use super::listener::ListenerCore;
use super::presence;
use super::registry::{Duplicate, Joined};
use super::session::Session;
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
        Session::begin(&this, &listener, &mut reader).serve().await;
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
        (ServerAuth::Token { token: Some(token) }, Some(challenge)) => {
            let proof = reader.next(deadline).await;
            auth::by_token(this, listener, token, &challenge, proof)
        }
        (ServerAuth::Token { .. }, _) => Err(Unauthentic::Refused),
        (ServerAuth::Mtls { .. }, _) => auth::by_certificate(this, listener),
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
                old_is_silent = old.silent,
                suppressed,
                "a new instance of this client takes over"
            );
        }
        listener.evict_everywhere(old.client);
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
