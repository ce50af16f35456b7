//! A lane on the client: dialled, registered, served, and dialled again when it ends.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::ServerTarget;
use qmux_proto::PROTOCOL_VERSION;
use qmux_proto::control::{
    Capabilities, Message, Register, RegisterAck, RegisterOutcome, ServiceOffer,
};
use quinn::{Connection, Endpoint, SendStream};
use tokio::net::lookup_host;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::udp_service::UdpService;
use super::{Shared, dial};
use crate::control::{self, ControlError, ControlReader};
use crate::endpoint;
use crate::lane::{self, Lane};
use crate::udp_flow;

/// A lane that lived this long shows that its server works: the next wait is short.
const STABLE: Duration = Duration::from_secs(5);

/// How long a closed connection may take to tell its server.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no lane.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error("no UDP socket: {0}")]
    Socket(io::Error),
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("{}", lane::describe_end(.0))]
    Handshake(quinn::ConnectionError),
    #[error("no answer: the handshake did not complete in time")]
    HandshakeTimeout,
    #[error("registration: {0}")]
    Control(#[from] ControlError),
    #[error("the server refused the lane: {0}")]
    Refused(String),
    #[error(
        "the server asks for a token, which quinn-dp does not support; it must have method = \"mtls\""
    )]
    TokenAsked,
}

/// A registered lane that nobody serves yet.
struct Registered {
    endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
    reader: ControlReader,
}

/// Keeps a lane to a server for as long as it runs.
pub(super) async fn keep(server: ServerTarget, index: u64, shared: Arc<Shared>) {
    let mut backoff = Backoff::new();
    loop {
        match register(&server, index, &shared).await {
            Ok(registered) => {
                info!(server = server.address, lane = index, "lane registered");
                let since = Instant::now();
                let (going_away, gone) = oneshot::channel();
                // A task of its own: the lane outlives its replacement when its server drains, and
                // this task when the client does.
                tokio::spawn(serve(registered, index, Arc::clone(&shared), going_away));
                // An error means that the lane has ended without a GoAway before.
                let _ended = gone.await;
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
            }
            Err(error) => warn!(server = server.address, lane = index, %error, "no lane"),
        }
        let wait = backoff.next(rand::random());
        debug!(
            server = server.address,
            lane = index,
            ?wait,
            "dialling again"
        );
        sleep(wait).await;
    }
}

async fn register(
    server: &ServerTarget,
    index: u64,
    shared: &Shared,
) -> Result<Registered, DialError> {
    let limit = shared.settings.handshake_timeout();
    let mut last = DialError::NoAddress;
    let addresses = lookup_host((server.host.as_str(), server.port)).await;
    for address in addresses.map_err(DialError::Resolve)? {
        let endpoint = endpoint::client(&shared.settings, address).map_err(DialError::Socket)?;
        let connecting =
            endpoint.connect_with(shared.quinn.clone(), address, &server.server_name)?;
        match timeout(limit, connecting).await {
            Ok(Ok(connection)) => {
                return register_on(endpoint, connection, index, shared).await;
            }
            Ok(Err(error)) => last = DialError::Handshake(error),
            Err(_) => last = DialError::HandshakeTimeout,
        }
    }
    Err(last)
}

async fn register_on(
    endpoint: Endpoint,
    connection: Connection,
    index: u64,
    shared: &Shared,
) -> Result<Registered, DialError> {
    let (mut send, recv) = connection
        .open_bi()
        .await
        .map_err(ControlError::LaneEnded)?;
    let register = Message::Register(Register {
        protocol_version: PROTOCOL_VERSION,
        client_id: shared.client_id.clone(),
        instance_id: shared.instance_id,
        lane_index: index,
        lane_count: shared.lane_count,
        capabilities: Capabilities::TCP | Capabilities::UDP | Capabilities::FRAGMENTATION,
        services: vec![ServiceOffer::new("")],
    });
    control::write(&mut send, &register).await?;
    let mut reader = ControlReader::new(recv);
    match reader.next(shared.settings.handshake_timeout()).await? {
        Message::RegisterAck(RegisterAck {
            outcome: RegisterOutcome::Accepted,
            server_cores,
            lane_core,
            ..
        }) => {
            debug!(server_cores, lane_core, "accepted");
            Ok(Registered {
                endpoint,
                connection,
                send,
                reader,
            })
        }
        Message::RegisterAck(RegisterAck {
            outcome: RegisterOutcome::Refused { reason, text },
            ..
        }) => Err(DialError::Refused(format!("{reason}: {text}"))),
        Message::AuthChallenge(_) => Err(DialError::TokenAsked),
        _ => Err(ControlError::Unexpected("the first one must be RegisterAck").into()),
    }
}

/// Serves a lane until it ends. `going_away` is told, or dropped, when it is time to dial the next
/// one.
async fn serve(
    registered: Registered,
    index: u64,
    shared: Arc<Shared>,
    going_away: oneshot::Sender<()>,
) {
    let Registered {
        endpoint,
        connection,
        send,
        reader,
    } = registered;
    let (lane, messages) = Lane::new(connection);
    let lane = Arc::new(lane);
    shared.add_lane(&lane);
    let udp = Arc::new(UdpService::new(Arc::clone(&lane), Arc::clone(&shared)));

    let interval = shared.timing.heartbeat_interval;
    let end = tokio::select! {
        read = read_messages(&lane, reader, &shared, &udp, going_away) => read,
        written = control::write_messages(&lane, send, messages, interval) => written,
        () = dial::accept_flows(&lane, &shared) => Ok(()),
        () = udp_flow::deliver(&lane, &udp) => Ok(()),
    };
    shared.remove_lane(&lane);
    udp.end_flows();
    let reason = match end {
        Err(error) => {
            lane.close(error.lane_error(), &error.to_string());
            error.to_string()
        }
        // A task that has no words for it saw the end first.
        Ok(()) => lane::describe_end(&lane.connection.closed().await),
    };
    info!(lane = index, reason, "lane ended");
    lane::log_path(&lane.connection);
    // The server may not hear of it: then its idle timeout tells.
    let _in_time = timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
}

/// Handles the server's messages until the lane ends.
async fn read_messages(
    lane: &Lane,
    mut reader: ControlReader,
    shared: &Shared,
    udp: &UdpService,
    going_away: oneshot::Sender<()>,
) -> Result<(), ControlError> {
    let mut going_away = Some(going_away);
    loop {
        match reader.next(shared.timing.health_timeout).await? {
            Message::Heartbeat(heartbeat) => lane.hear(heartbeat.sequence),
            Message::FlowClosed(closed) => {
                debug!(flow = closed.flow_id, reason = %closed.reason, "UDP flow closed");
                udp.end_flow(closed.flow_id);
            }
            Message::Finished(finished) => lane.receivers.announced(finished),
            Message::GoAway(go_away) => {
                info!(reason = %go_away.reason, "the server drains: dialling another lane");
                if let Some(going_away) = going_away.take() {
                    // Nobody waits any more: the client drains itself.
                    let _draining = going_away.send(());
                }
            }
            // Its own GoAway was heard; this client stops by the clock. It opens a fixed number of
            // lanes.
            Message::NoMoreFlows(_) | Message::HandOvers(_) | Message::WayFails(_) => {}
            Message::RegisterAck(_)
            | Message::Register(_)
            | Message::AuthChallenge(_)
            | Message::PathChallenge(_)
            | Message::PathResponse(_)
            | Message::AuthProof(_)
            | Message::ServiceAnswers(_)
            | Message::ServiceHealth(_) => {
                return Err(ControlError::Unexpected("not for a server to say now"));
            }
        }
    }
}
