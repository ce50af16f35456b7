//! A lane on the server: from the handshake through the registration to its end.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use qmux_proto::control::{Message, RefuseReason, Register, RegisterAck, RegisterOutcome};
use qmux_proto::datagram::Header;
use qmux_proto::{LaneError, PROTOCOL_VERSION};
use quinn::{Endpoint, Incoming, SendStream};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::registry::Registry;
use super::{Listener, Shared};
use crate::cid::ONLY_CORE;
use crate::control::{self, ControlError, ControlReader};
use crate::lane::{self, Lane};
use crate::udp_flow::{self, FindFlow, UdpFlow};

/// The server's part of a lane.
#[derive(Debug)]
pub(super) struct ServerLane {
    pub(super) lane: Lane,
    register: Register,
    udp_flows: RwLock<HashMap<u64, Arc<UdpFlow>>>,
}

impl ServerLane {
    /// The index that the client gave it.
    pub(super) fn index(&self) -> u64 {
        self.register.lane_index
    }

    fn udp_flows(&self) -> RwLockWriteGuard<'_, HashMap<u64, Arc<UdpFlow>>> {
        let flows = self.udp_flows.write();
        flows.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_udp_flow(&self, flow: &Arc<UdpFlow>) {
        self.udp_flows().insert(flow.id, Arc::clone(flow));
    }

    pub(super) fn remove_udp_flow(&self, flow_id: u64) -> Option<Arc<UdpFlow>> {
        self.udp_flows().remove(&flow_id)
    }

    fn end_udp_flows(&self) {
        for (_, flow) in self.udp_flows().drain() {
            flow.end();
        }
    }
}

impl FindFlow for ServerLane {
    async fn find_flow(&self, header: &Header<'_>) -> Option<Arc<UdpFlow>> {
        let flows = self.udp_flows.read();
        let flows = flows.unwrap_or_else(PoisonError::into_inner);
        flows.get(&header.flow_id()).cloned()
    }
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(endpoint: Endpoint, listener: Arc<Listener>) -> io::Result<()> {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(serve(incoming, Arc::clone(&listener)));
    }
    Ok(())
}

async fn serve(incoming: Incoming, listener: Arc<Listener>) {
    let shared = &listener.shared;
    let peer = incoming.remote_address();
    let limit = shared.settings.handshake_timeout();
    let connection = match timeout(limit, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            warn!(%peer, error = lane::describe_end(&error), "handshake failed");
            return;
        }
        Err(_) => {
            warn!(%peer, "the handshake did not complete in time");
            return;
        }
    };
    let registering = async {
        let (send, recv) = connection
            .accept_bi()
            .await
            .map_err(ControlError::LaneEnded)?;
        let mut reader = ControlReader::new(recv);
        match reader.next(limit).await? {
            Message::Register(register) => Ok((send, reader, register)),
            _ => Err(ControlError::Unexpected("the first one must be Register")),
        }
    };
    let registered = timeout(limit, registering)
        .await
        .unwrap_or(Err(ControlError::Silent));
    match registered {
        Ok((send, reader, register)) => {
            if let Err((reason, text)) = judge(&register, shared) {
                refuse(connection, send, shared, reason, text).await;
            } else {
                run(connection, send, reader, register, &listener).await;
            }
        }
        Err(error) => {
            warn!(%peer, %error, "registration failed");
            lane::close(&connection, error.lane_error(), &error.to_string());
        }
    }
}

/// Whether a lane can be taken.
fn judge(register: &Register, shared: &Shared) -> Result<(), (RefuseReason, String)> {
    if register.protocol_version != PROTOCOL_VERSION {
        let text = format!(
            "this server speaks version {PROTOCOL_VERSION}, not {}",
            register.protocol_version
        );
        return Err((RefuseReason::UnsupportedVersion, text));
    }
    if register.lane_index >= register.lane_count {
        let text = format!(
            "lane index {} of {} lanes",
            register.lane_index, register.lane_count
        );
        return Err((RefuseReason::BadRequest, text));
    }
    if shared.shutdown.has_started() {
        return Err((RefuseReason::Draining, "the server stops".to_owned()));
    }
    Ok(())
}

fn ack(shared: &Shared, outcome: RegisterOutcome) -> Message {
    Message::RegisterAck(RegisterAck {
        outcome,
        server_instance_id: shared.instance_id,
        server_cores: 1,
        lane_core: u64::from(ONLY_CORE),
    })
}

async fn refuse(
    connection: quinn::Connection,
    mut send: SendStream,
    shared: &Shared,
    reason: RefuseReason,
    text: String,
) {
    warn!(peer = %connection.remote_address(), %reason, text, "lane refused");
    let message = ack(shared, RegisterOutcome::Refused { reason, text });
    let told = async {
        control::write(&mut send, &message).await?;
        // Each of these calls fails only if the connection does. The close must not overtake the
        // reason.
        let _ended = send.finish();
        let _acknowledged = send.stopped().await;
        Ok::<_, ControlError>(())
    };
    let _in_time = timeout(shared.settings.handshake_timeout(), told).await;
    lane::close(&connection, LaneError::Refused, "");
}

async fn run(
    connection: quinn::Connection,
    mut send: SendStream,
    reader: ControlReader,
    register: Register,
    listener: &Listener,
) {
    let (shared, registry) = (&listener.shared, &listener.registry);
    let peer = connection.remote_address();
    let (client, index) = (register.client_id.clone(), register.lane_index);
    if let Err(error) = control::write(&mut send, &ack(shared, RegisterOutcome::Accepted)).await {
        warn!(%peer, client, %error, "registration failed");
        return;
    }
    let (lane, messages) = Lane::new(connection);
    let lane = Arc::new(ServerLane {
        lane,
        register,
        udp_flows: RwLock::default(),
    });
    registry.add(&lane, &lane.register);
    info!(%peer, client, lane = index, "lane registered");

    let datagrams = listener.udp.is_some().then(|| {
        let lane = Arc::clone(&lane);
        tokio::spawn(async move { udp_flow::deliver(&lane.lane, &*lane).await })
    });
    let interval = shared.timing.heartbeat_interval;
    let end = tokio::select! {
        read = read_messages(&lane, reader, shared, registry) => read,
        written = control::write_messages(&lane.lane, send, messages, interval) => written,
    };
    registry.remove(&lane);
    let reason = match end {
        Err(error) => {
            lane.lane.close(error.lane_error(), &error.to_string());
            error.to_string()
        }
        // No sender of control messages is left.
        Ok(()) => lane::describe_end(&lane.lane.connection.closed().await),
    };
    if let Some(datagrams) = datagrams {
        datagrams.abort();
    }
    lane.end_udp_flows();
    info!(%peer, client, lane = index, reason, "lane ended");
    lane::log_path(&lane.lane.connection);
}

/// Handles the client's messages until the lane ends.
async fn read_messages(
    lane: &Arc<ServerLane>,
    mut reader: ControlReader,
    shared: &Shared,
    registry: &Registry,
) -> Result<(), ControlError> {
    loop {
        match reader.next(shared.timing.health_timeout).await? {
            Message::Heartbeat(heartbeat) => lane.lane.hear(heartbeat.sequence),
            Message::FlowClosed(closed) => {
                if let Some(flow) = lane.remove_udp_flow(closed.flow_id) {
                    debug!(flow = closed.flow_id, reason = %closed.reason, "UDP flow closed");
                    flow.end();
                }
            }
            Message::Finished(finished) => lane.lane.receivers.announced(finished),
            Message::GoAway(go_away) => {
                info!(client = lane.register.client_id, reason = %go_away.reason, "client drains");
                registry.retire(lane);
            }
            // The server does not ask for the service's health; the client reports it nevertheless.
            Message::ServiceHealth(_) => {}
            Message::Register(_) => return Err(ControlError::Unexpected("a second Register")),
            Message::RegisterAck(_)
            | Message::AuthChallenge(_)
            | Message::PathChallenge(_)
            | Message::PathResponse(_)
            | Message::AuthProof(_)
            | Message::ServiceAnswers(_)
            | Message::HandOvers(_)
            | Message::WayFails(_)
            | Message::NoMoreFlows(_) => {
                return Err(ControlError::Unexpected(
                    "not for a registered client to say",
                ));
            }
        }
    }
}
