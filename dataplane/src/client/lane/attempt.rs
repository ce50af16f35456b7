//! One attempt to bring up a lane: socket, handshake, registration. Then the lane is a session.

use std::fmt::Display;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_config::{Client, Lanes};
use qmux_proto::control::{
    Capabilities, Message, RefuseReason, Register, RegisterAck, RegisterOutcome,
};
use qmux_proto::{LaneError, PROTOCOL_VERSION};

use super::aim;
use super::beside;
use super::ending::AttemptEnd;
use super::leaving::Leaving;
use super::reach::{self, Reaching, Watch};
use super::resumption::Resumption;
use super::session::Session;
use super::supervisor::Supervisor;
use super::{ClientLane, ClientLaneEvents};
use crate::client::ClientCore;
use crate::client::servers::server::ServerState;
use crate::client::services::answers::LaneAnswers;
use crate::client::udp::ClientFlows;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::endpoint::{Endpoint, EndpointSetup};
use crate::quic::explain::{self, ClientView};
use crate::quic::lane::Lane;
use crate::quic::over_tls::TlsConnection;
use crate::quic::{settings, tls, token};
use crate::sys::bind;
use crate::sys::udp::{Purpose, UdpSocket};

/// Runs one attempt for the lane of `supervisor` to its end.
pub(super) async fn run(core: &Rc<ClientCore>, supervisor: &Supervisor) -> AttemptEnd {
    let watch = Rc::<Watch>::default();
    let mut reaching = another(core, &supervisor.server, supervisor.lane, &watch);
    let session = match supervisor.unless_retired(reaching.as_mut()).await {
        Some(Ok(session)) => session,
        Some(Err(end)) => return end,
        None => {
            // The server may have accepted the lane already and opened a flow, so the lane is left
            // as one that was registered before.
            reach::leave_once_registered(reaching, &watch, supervisor.leaving());
            return AttemptEnd::Retired;
        }
    };
    let end = beside::serve(core, supervisor, session).await;
    supervisor.serves(None);
    end
}

/// Dials another lane beside the one of this supervisor, and registers it.
pub(super) fn another(
    core: &Rc<ClientCore>,
    server: &Arc<ServerState>,
    lane_index: usize,
    watch: &Rc<Watch>,
) -> Reaching {
    Box::pin(reach::server(
        Rc::clone(core),
        Arc::clone(server),
        lane_index,
        Rc::clone(watch),
    ))
}

/// A lane that is not registered yet.
pub(super) struct Dialed {
    core: Rc<ClientCore>,
    lane: Rc<ClientLane>,
    guard: CloseOnDrop,
    reader: ControlReader,
    resumption: Resumption,
    lane_index: usize,
    /// The first byte of the connection id by which the lane was aimed.
    aim: u8,
    began: Instant,
}

impl Dialed {
    /// Dials a lane, over UDP or along a TLS connection.
    pub(super) fn begin(
        core: &Rc<ClientCore>,
        server: &Arc<ServerState>,
        lane_index: usize,
        over: Option<TlsConnection>,
        watch: &Watch,
    ) -> Result<Dialed, AttemptEnd> {
        let settings = core.shared.settings();
        let Some(client) = settings.client() else {
            return Err(no_client_section());
        };
        let began = Instant::now();
        let (endpoint, quic, aim, resumption) = dial(core, client, server, lane_index, over)?;
        let answers = Rc::<LaneAnswers>::default();
        let lane = ClientLane::new(
            Rc::clone(&quic),
            ClientFlows::new(Rc::clone(&quic), &core.udp, &settings.services, &answers),
            answers,
            core,
            Arc::clone(server),
            Arc::clone(&settings),
        );
        quic.handle_events(Rc::new(ClientLaneEvents(Rc::clone(&lane))));
        // The endpoint lives as long as its one lane, and the lane as long as this attempt or what
        // it leaves behind.
        endpoint.stop_when_empty();
        watch.dialed(&quic);
        if resumption.is_offered() {
            // Register is sent as early data, if the session allows it.
            send_register(core, client, &lane, lane_index);
        }
        Ok(Dialed {
            core: Rc::clone(core),
            guard: CloseOnDrop(Rc::clone(&quic)),
            reader: ControlReader::new(quic),
            lane,
            resumption,
            lane_index,
            aim,
            began,
        })
    }

    /// Completes the handshake and registers the lane.
    pub(super) async fn complete(self, watch: &Watch) -> Result<Session, AttemptEnd> {
        let quic = Rc::clone(&self.lane.quic);
        if let Err(end) = quic.established().await {
            return Err(self.failed(&end));
        }
        if watch.is_given_up() && !self.may_be_registered() {
            // The ticket has been shown to nobody, and is kept.
            self.failed(&LaneEnd::ClosedByUs(LaneError::Shutdown));
            return Err(AttemptEnd::Retired);
        }
        self.register().await
    }

    /// Ends an attempt whose handshake has failed.
    fn failed(mut self, end: &LaneEnd) -> AttemptEnd {
        self.resumption.failed(&self.lane.quic, end);
        let why = explained(&self.core, &self.lane, end);
        match end {
            LaneEnd::Unreachable(kind) if explain::is_without_route(*kind) => {
                AttemptEnd::NoRoute(why)
            }
            _ => AttemptEnd::Failed(why),
        }
    }

    /// Whether the server may consider the lane registered: it has received Register and the end of
    /// the handshake.
    fn may_be_registered(&self) -> bool {
        self.resumption.is_offered() && self.lane.quic.is_established()
    }

    /// Registers the lane, once the handshake is complete.
    async fn register(mut self) -> Result<Session, AttemptEnd> {
        let core = Rc::clone(&self.core);
        let server = Arc::clone(&self.lane.server);
        let settings = Arc::clone(&self.lane.settings);
        let Some(client) = settings.client() else {
            return Err(no_client_section());
        };
        let quic = Rc::clone(&self.lane.quic);
        self.resumption.check(&quic)?;
        if !self.resumption.is_offered() {
            if core.context.draining.get() {
                return Err(AttemptEnd::Retired);
            }
            send_register(&core, client, &self.lane, self.lane_index);
        }
        let registering = Registering::new(&self.lane, &core);
        let ack = match registered(&core, client, &self.lane, &mut self.reader).await {
            Ok(ack) => ack,
            Err(end) => {
                self.resumption.not_registered(&quic, &end);
                return Err(end);
            }
        };
        let handshake = quic.handshake();
        let took_us = self.began.elapsed().as_micros() as u64;
        self.resumption.keep_next(&quic);
        let server_cores = usize::try_from(ack.server_cores)
            .unwrap_or(1)
            .clamp(1, crate::sys::CORES_MAX);
        let right = aim::first_byte(core.shared.begins_at, self.lane_index, server_cores);
        let misaimed = aim::core_of(self.aim, server_cores) != aim::core_of(right, server_cores);
        if !misaimed {
            tracing::debug!(
                server = core.shared.title(&server),
                lane = self.lane_index,
                core = core.context.index,
                server_core = ack.lane_core,
                server_cores = ack.server_cores,
                resumed = handshake.resumed,
                early_data = %handshake.early_data,
                took_us,
                "lane registered"
            );
        }
        let session = Session::begin(&core, self.lane, self.reader, self.guard, &ack)
            .ok_or_else(no_client_section)?;
        drop(registering);
        core.server_has_cores(&server, server_cores);
        if misaimed {
            // The lane is registered, so a visitor may be on its way to it.
            crate::core::task::spawn(session.leave(Leaving::Unwanted));
            return Err(AttemptEnd::Misaimed);
        }
        Ok(session)
    }
}

/// The end of a lane in words for the operator.
fn explained(core: &ClientCore, lane: &ClientLane, end: &LaneEnd) -> String {
    let Some(client) = lane.settings.client() else {
        return end.to_string();
    };
    let cert = client.tls.client_cert.as_ref();
    explain::at_client(
        end,
        &ClientView {
            server: lane.server.address,
            server_name: &lane.server.configured().server_name,
            ca_cert: &client.tls.ca_cert,
            client_cert: cert.map(|pair| &pair.cert),
            handshake_timeout: core.shared.settings().config.quic.handshake_idle_timeout,
            was_answered: lane.quic.was_answered(),
        },
    )
}

fn no_client_section() -> AttemptEnd {
    AttemptEnd::Failed("no [client] section".into())
}

/// Lists a lane among those that are registering, until this is dropped, so that the core knows
/// that a flow may be on its way.
struct Registering {
    core: Rc<ClientCore>,
    serial: u64,
}

impl Registering {
    fn new(lane: &Rc<ClientLane>, core: &Rc<ClientCore>) -> Registering {
        let serial = lane.serial;
        core.registering
            .borrow_mut()
            .insert(serial, Rc::clone(lane));
        Registering {
            core: Rc::clone(core),
            serial,
        }
    }
}

impl Drop for Registering {
    fn drop(&mut self) {
        self.core.registering.borrow_mut().remove(&self.serial);
    }
}

/// Closes the lane when the attempt is over or given up, unless it has ended.
pub(super) struct CloseOnDrop(Rc<Lane>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if self.0.end().is_none() {
            self.0.close(LaneError::Shutdown, "");
        }
    }
}

/// Dials a lane that is never registered, to find out whether QUIC gets through.
pub(super) fn dial_scout(
    core: &Rc<ClientCore>,
    server: &ServerState,
) -> Result<Rc<Lane>, AttemptEnd> {
    let settings = core.shared.settings();
    let client = settings.client().ok_or_else(no_client_section)?;
    let endpoint = open_endpoint(core, client, server)?;
    let name = &server.configured().server_name;
    let dialed = endpoint.dial(server.address, name, 0, None);
    endpoint.stop_when_empty();
    dialed.map_err(|error| AttemptEnd::Failed(error.to_string()))
}

/// Opens a socket for one lane to the server.
fn open_endpoint(
    core: &Rc<ClientCore>,
    client: &Client,
    server: &ServerState,
) -> Result<Rc<Endpoint>, AttemptEnd> {
    let kept = core.shared.settings();
    let quic = &kept.config.quic;
    let peer = server.address;
    let failed = |error: &dyn Display| AttemptEnd::Failed(error.to_string());
    let socket = bind::udp_towards(peer).map_err(|error| no_socket(&error, peer))?;
    // The operator was warned at the start if the buffers are smaller than asked for.
    let _granted = bind::raise_udp_buffers(&socket);
    // The credentials are those that were read last: renewed certificates are picked up, and no
    // core waits for a file.
    let credentials = core.shared.credentials.get(client);
    let tls = credentials.and_then(|credentials| tls::client_with(&credentials));
    let tls = tls.map_err(|error| failed(&error))?;
    let config = settings::transport(quic, tls).map_err(|error| failed(&error))?;
    let socket = UdpSocket::adopt(socket, Purpose::Quic).map_err(|error| failed(&error))?;
    // Where these errors cannot be had, a handshake in vain takes its whole time.
    let _heard = socket.hear_unreachable(true);
    Ok(Endpoint::start(
        EndpointSetup {
            socket,
            core: core.context.index,
            group: 1,
            config,
            packet_bytes_max: settings::packet_bytes_max(quic),
            accepts: false,
            handshake_timeout: quic.handshake_idle_timeout,
            reset_key: None,
            counters: Arc::clone(&core.context.counters),
        },
        None,
    ))
}

fn dial(
    core: &Rc<ClientCore>,
    client: &Client,
    server: &ServerState,
    lane_index: usize,
    over: Option<TlsConnection>,
) -> Result<(Rc<Endpoint>, Rc<Lane>, u8, Resumption), AttemptEnd> {
    let endpoint = open_endpoint(core, client, server)?;
    let failed = |error: &dyn Display| {
        endpoint.stop_when_empty();
        AttemptEnd::Failed(error.to_string())
    };
    let way = match over.map(|connection| endpoint.adopt_tls(connection)) {
        None => None,
        Some(Ok(id)) => endpoint.tls_way(id),
        Some(Err(error)) => return Err(failed(&error)),
    };
    let aim = aim::first_byte(core.shared.begins_at, lane_index, server.cores());
    let mut resumption = Resumption::prepare(core, client, server);
    let (peer, name) = (server.address, &resumption.server_name().to_owned());
    let dial = |session: Option<&[u8]>| endpoint.dial_along(peer, way, name, aim, session);
    let mut dialed = dial(resumption.session());
    if dialed.is_err() && resumption.is_offered() {
        resumption.unusable();
        dialed = dial(None);
    }
    let lane = dialed.map_err(|error| failed(&error))?;
    Ok((endpoint, lane, aim, resumption))
}

/// The error when there is no socket for packets to `peer`. If the host lacks the address family,
/// there never will be one.
fn no_socket(error: &std::io::Error, peer: SocketAddr) -> AttemptEnd {
    let kind = if bind::is_family_missing(error) {
        ErrorKind::NetworkUnreachable
    } else {
        error.kind()
    };
    if explain::is_without_route(kind) {
        AttemptEnd::NoRoute(explain::unreachable(ErrorKind::NetworkUnreachable, peer))
    } else {
        AttemptEnd::Failed(format!("no UDP socket: {error}"))
    }
}

fn send_register(core: &ClientCore, client: &Client, lane: &ClientLane, lane_index: usize) {
    let shared = &core.shared;
    let mut capabilities = Capabilities::TCP
        .union(Capabilities::UDP)
        .union(Capabilities::FRAGMENTATION)
        .union(Capabilities::SERVICE_HEALTH)
        .union(Capabilities::NAMED_SERVICES)
        .union(Capabilities::BUNDLES)
        .union(Capabilities::PATH_CHALLENGE);
    if client.lanes == Lanes::Auto {
        capabilities = capabilities.union(Capabilities::HAND_OVERS);
    }
    lane.quic.send_control(&Message::Register(Register {
        protocol_version: PROTOCOL_VERSION,
        client_id: shared.client_id.clone(),
        instance_id: shared.instance_id,
        lane_index: lane_index as u64,
        lane_count: lane.server.lanes_wanted(client.lanes) as u64,
        capabilities,
        services: lane.settings.services.offers(),
    }));
}

/// Waits for the server's answer to Register, and sends the proof that it asks for on the way.
async fn registered(
    core: &ClientCore,
    client: &Client,
    lane: &ClientLane,
    reader: &mut ControlReader,
) -> Result<RegisterAck, AttemptEnd> {
    let deadline = Instant::now()
        + lane.settings.config.quic.handshake_idle_timeout
        + client.heartbeat_interval;
    let mut proved = false;
    loop {
        match reader.next(deadline).await {
            ControlEvent::Message(Message::RegisterAck(ack)) => match ack.outcome {
                RegisterOutcome::Accepted => return Ok(ack),
                RegisterOutcome::Refused { reason, text } => {
                    lane.quic.close(LaneError::Refused, "");
                    // The server gives no hint, but it cannot mean anything else.
                    let text = match reason {
                        RefuseReason::Unauthenticated if proved => explain::WRONG_TOKEN.into(),
                        RefuseReason::Unauthenticated if lane.quic.handshake().resumed => {
                            explain::STALE_SESSION.into()
                        }
                        _ => text,
                    };
                    return Err(AttemptEnd::Refused(reason, text));
                }
            },
            ControlEvent::Message(Message::AuthChallenge(challenge)) => {
                let Some(token) = &client.auth.token else {
                    lane.quic.close(LaneError::Unauthenticated, "");
                    return Err(AttemptEnd::Refused(
                        RefuseReason::Unauthenticated,
                        explain::TOKEN_WANTED.into(),
                    ));
                };
                match token::prove(&lane.quic, token, &challenge) {
                    Ok(proof) => {
                        proved = true;
                        lane.quic.send_control(&Message::AuthProof(proof));
                    }
                    Err(error) => return Err(AttemptEnd::Failed(error.to_string())),
                }
            }
            ControlEvent::Message(_) => {}
            ControlEvent::Deadline => {
                lane.quic
                    .close(LaneError::HealthTimeout, "no answer to Register");
                return Err(AttemptEnd::Failed(
                    "the server did not answer the registration".into(),
                ));
            }
            ControlEvent::Ended => {
                let end = ended(lane).await;
                return Err(AttemptEnd::Failed(explained(core, lane, &end)));
            }
        }
    }
}

/// Waits for the end of a lane, which follows its last event closely.
async fn ended(lane: &ClientLane) -> LaneEnd {
    lane.quic.ended().await
}
