//! The server's end of a control stream until the lane is registered: authentication, admission and
//! refusals.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Admission, LANES_MAX, ServerAuth};
use qmux_proto::control::{
    Capabilities, Message, RefuseReason, Register, RegisterAck, RegisterOutcome,
};
use qmux_proto::{LaneError, PROTOCOL_VERSION};

use super::Door;
use super::auth::{self, Admitted, Judged, Unauthentic};
use super::lane::{ServerLane, address};
use super::offers::Offers;
use super::presence;
use super::session::Session;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::token;
use crate::server::pool::client::Client;
use crate::server::pool::registry::{Applicant, Claim, INSTANCES_MAX, NotJoined, Replaced};
use crate::server::shared::ServerSettings;

/// A client that has completed the handshake must register within this time.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a refused lane is kept. A client closes the lane when it has read why it was refused;
/// after this time the server does. It is enough for a path of 750 ms.
const REFUSED_PATIENCE: Duration = Duration::from_secs(2);

/// Refused lanes that are kept in this way, per core and door. Further ones are closed at once, and
/// their clients learn less.
const REFUSED_LANES_MAX: usize = 64;

/// Lanes that one client may have at a door: as many as it can be told to open, and as many again
/// that have died without the server's knowledge.
const LANES_OF_CLIENT_MAX: usize = 2 * LANES_MAX as usize;

/// Handles the control stream until the lane ends.
pub(crate) async fn run(lane: Rc<ServerLane>) {
    let mut reader = ControlReader::new(Rc::clone(&lane.quic));
    let Some(door) = lane.door.upgrade() else {
        return;
    };
    if register(&lane, &door, &mut reader).await {
        Session::begin(&lane, &door, &mut reader).serve().await;
    }
}

/// Registers the lane. Returns true once that has succeeded.
async fn register(lane: &Rc<ServerLane>, door: &Rc<Door>, reader: &mut ControlReader) -> bool {
    let deadline = Instant::now() + REGISTER_TIMEOUT;
    let request = match reader.next(deadline).await {
        ControlEvent::Message(Message::Register(request)) => request,
        ControlEvent::Message(_) => {
            lane.quic.close(
                LaneError::ProtocolViolation,
                "the first message must be Register",
            );
            return false;
        }
        ControlEvent::Deadline => {
            lane.quic
                .close(LaneError::Unauthenticated, "no Register message came");
            return false;
        }
        ControlEvent::Ended => return false,
    };
    // Sending a challenge grants nothing, and a client that resumes answers it together with the
    // end of its handshake. The settings are read once for the whole registration; if they change
    // on the way, the client tries again.
    let settings = door.settings();
    let challenge = match &settings.server().auth {
        ServerAuth::Token { .. } => Some(token::challenge()),
        ServerAuth::Mtls { .. } => None,
    };
    if let Some(challenge) = challenge {
        lane.quic.send_control(&Message::AuthChallenge(challenge));
    }
    // Anyone who saw early data can replay it, so nothing is granted before the handshake is
    // complete.
    if lane.quic.established().await.is_err() {
        return false;
    }
    if request.protocol_version != PROTOCOL_VERSION {
        let text = format!("this server speaks protocol version {PROTOCOL_VERSION}");
        return refuse(
            lane,
            door,
            &request,
            RefuseReason::UnsupportedVersion,
            &text,
        );
    }
    if door.is_draining() {
        return refuse_draining(lane, door, &request);
    }
    let authentic = match challenge {
        Some(challenge) => {
            let proof = reader.next(deadline).await;
            auth::by_token(lane, door, &settings, &challenge, proof)
        }
        None => auth::by_certificate(lane, door, &settings),
    };
    match authentic {
        // The drain may have begun while the proof was waited for. A lane that is accepted now
        // would miss the GoAway.
        Ok(_) if door.is_draining() => refuse_draining(lane, door, &request),
        Ok(admission) => accept(lane, door, &settings, &request, admission),
        Err(Unauthentic::Gone) => false,
        Err(Unauthentic::Refused(reason, text)) => refuse(lane, door, &request, reason, &text),
    }
}

fn refuse_draining(lane: &Rc<ServerLane>, door: &Rc<Door>, request: &Register) -> bool {
    let text = "this server is shutting down";
    refuse(lane, door, request, RefuseReason::Draining, text)
}

fn refuse(
    lane: &Rc<ServerLane>,
    door: &Rc<Door>,
    request: &Register,
    reason: RefuseReason,
    text: &str,
) -> bool {
    door.counters().registrations_refused.increment();
    // Duplicates are logged once, with both addresses, where they are found.
    if reason != RefuseReason::DuplicateClient
        && let Some(suppressed) = door.context().handshake_log.pass(Instant::now())
    {
        tracing::warn!(claims = request.client_id, peer = address(&lane.quic), %reason, suppressed, "registration refused");
    }
    lane.quic
        .send_control(&Message::RegisterAck(door.ack(RegisterOutcome::Refused {
            reason,
            text: text.into(),
        })));
    // The lane belongs to no client any more, and must not take a place from those that may be let
    // in.
    lane.quic.give_place_back();
    if !door.let_linger(lane, REFUSED_LANES_MAX) {
        door.counters().refusals_cut_short.increment();
        lane.quic.close(LaneError::Refused, text);
        return false;
    }
    // The endpoint is not kept alive, not even its memory: a peer that comes, is refused and goes
    // must leave nothing behind.
    let Some(endpoint) = door.endpoint(lane.address).map(Rc::downgrade) else {
        return false; // It has come through that endpoint.
    };
    let key = lane.quic.key();
    // The client closes the lane when it has read the answer; if it does not, the server does.
    crate::core::task::spawn(async move {
        crate::core::time::sleep(REFUSED_PATIENCE).await;
        if let Some(refused) = endpoint.upgrade().and_then(|endpoint| endpoint.lane(key)) {
            refused.close(LaneError::Refused, "");
        }
    });
    false
}

/// Accepts the lane if its client may serve. Returns true if the lane is registered now.
fn accept(
    lane: &Rc<ServerLane>,
    door: &Rc<Door>,
    settings: &ServerSettings,
    request: &Register,
    admission: Admission,
) -> bool {
    let offers = Offers::judge(door, &admission, request);
    if offers.are_pointless() {
        let text = "this client offers the service without a name, which is not for it to serve here: \
                    give it [[client.services]], and a version that knows them";
        return refuse(lane, door, request, RefuseReason::BadRequest, text);
    }
    let is_of_entry = |name: &str| settings.server().clients.iter().any(|it| it.name == name);
    if admission.identity().is_none() && is_of_entry(&request.client_id) {
        let text = "this client's client_id is the name of another client: give it another one, \
                    or none";
        return refuse(lane, door, request, RefuseReason::BadRequest, text);
    }
    let admitted = admitted(lane, settings, admission, &offers);
    let identity = admitted.claim.admission.identity();
    let applicant = Applicant {
        name: identity.unwrap_or(&request.client_id),
        has_entry: identity.is_some(),
        instance_id: request.instance_id,
        address: lane.quic.peer_addr(),
        services: offers.accepted(),
        claim: Some(&admitted.claim),
        generation: settings.generation,
    };
    if door.lanes_of(&applicant) >= LANES_OF_CLIENT_MAX {
        let text = format!("this client has {LANES_OF_CLIENT_MAX} lanes already");
        return refuse_limit(lane, door, request, &text);
    }
    let joined = match door.join(&applicant) {
        Ok(joined) => joined,
        Err(NotJoined::Duplicate { address, first }) => {
            return refuse_duplicate(lane, door, request, address, first);
        }
        Err(NotJoined::TooManyInstances) => {
            let text = format!("this client has {INSTANCES_MAX} instances already");
            return refuse_limit(lane, door, request, &text);
        }
        Err(NotJoined::Outdated) => {
            // This reason has clients try again within some seconds, however often they were
            // refused.
            let text = "the configuration of this server has just changed";
            return refuse(lane, door, request, RefuseReason::Draining, text);
        }
    };
    if lane.membership.set(joined.membership).is_err() {
        return false; // A second Register on one lane is read by `serve`, never here.
    }
    let _first = lane.admitted.set(admitted);
    meet_others(lane, door, &joined.replaced, &joined.beside);
    registered(lane, door, request, &offers);
    true
}

/// The grounds on which the lane is let in.
fn admitted(
    lane: &ServerLane,
    settings: &ServerSettings,
    admission: Admission,
    offers: &Offers,
) -> Admitted {
    let by_shared_token = admission.identity().is_none();
    let token = settings.matcher.shared_token().filter(|_| by_shared_token);
    let shows_certificate = matches!(settings.server().auth, ServerAuth::Mtls { .. });
    Admitted {
        claim: Arc::new(Claim {
            admission,
            token: token.cloned(),
            offers: offers.offers().to_vec(),
        }),
        is_told: offers.is_told(),
        by_certificate: shows_certificate,
        expiry_s: shows_certificate.then(|| auth::expiry_of(lane)).flatten(),
        judged: Cell::new(Judged::by(settings)),
    }
}

/// Deals with other instances of the same name when a new one registers.
fn meet_others(lane: &ServerLane, door: &Rc<Door>, replaced: &[Replaced], beside: &[Arc<Client>]) {
    for old in replaced {
        if let Some(suppressed) = door.context().lane_log.pass(Instant::now()) {
            tracing::info!(
                client = lane.client_id(),
                new = address(&lane.quic),
                old = old.address.map(tracing::field::display),
                old_drains = old.drains,
                old_is_silent = old.silent,
                suppressed,
                "a new instance of this client takes over"
            );
        }
        door.evict_everywhere(old.client);
    }
    // An instance that has died silently would get its share of the visitors until its death is
    // noticed.
    for client in beside {
        door.alarm_everywhere(client, Instant::now());
    }
}

/// Starts what follows from the registration of a lane.
fn registered(lane: &Rc<ServerLane>, door: &Rc<Door>, request: &Register, offers: &Offers) {
    let capabilities = request.capabilities;
    door.counters().registrations_accepted.increment();
    lane.quic.admit();
    if capabilities.contains(Capabilities::PATH_CHALLENGE) {
        lane.quic.peer_answers_challenges();
    }
    if capabilities.contains(Capabilities::BUNDLES) {
        lane.quic.peer_takes_bundles();
    }
    if capabilities.contains(Capabilities::NAMED_SERVICES)
        && let Some(udp) = &lane.udp
    {
        udp.peer_reads_traffic_addresses();
    }
    lane.last_heard.set(Instant::now());
    door.lane_registered(lane);
    lane.quic
        .send_control(&Message::RegisterAck(door.ack(RegisterOutcome::Accepted)));
    offers.answer(lane);
    if capabilities.contains(Capabilities::HAND_OVERS) {
        lane.tell_hand_overs();
    }
    tracing::debug!(
        client = lane.client_id(),
        instance = request.client_id,
        peer = address(&lane.quic),
        lane = request.lane_index,
        lanes = request.lane_count,
        services = offers.accepted().len(),
        core = door.core(),
        "lane registered"
    );
    if let Some(membership) = lane.membership.get()
        && membership.is_first()
    {
        offers.tell_operator(lane, door);
        presence::say_up(&door.context().core, membership.client());
    }
}

fn refuse_limit(lane: &Rc<ServerLane>, door: &Rc<Door>, request: &Register, text: &str) -> bool {
    door.counters().registrations_limited.increment();
    refuse(lane, door, request, RefuseReason::LimitReached, text)
}

/// Refuses one of two programs that live and share one name; the one that came later keeps the
/// name.
fn refuse_duplicate(
    lane: &Rc<ServerLane>,
    door: &Rc<Door>,
    request: &Register,
    other: Option<SocketAddr>,
    first: bool,
) -> bool {
    door.counters().registrations_duplicate.increment();
    let other = other.map_or_else(|| "elsewhere".into(), |address| address.to_string());
    if first && let Some(suppressed) = door.context().handshake_log.pass(Instant::now()) {
        tracing::warn!(
            client = request.client_id,
            refused = address(&lane.quic),
            serving = other,
            suppressed,
            "two clients use one client_id at the same time; the one that came later serves: give each its own client_id, or leave it empty"
        );
    }
    let text = format!("a newer client with this client_id is connected from {other}");
    refuse(lane, door, request, RefuseReason::DuplicateClient, &text)
}

impl Door {
    fn ack(&self, outcome: RegisterOutcome) -> RegisterAck {
        RegisterAck {
            outcome,
            server_instance_id: self.server_instance_id(),
            server_cores: self.cores() as u64,
            lane_core: self.core() as u64,
        }
    }
}
