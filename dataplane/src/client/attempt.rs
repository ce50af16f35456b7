//! One attempt of a lane: socket, handshake, registration, service until the end.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_config::Client;
use qmux_proto::control::{
    Capabilities, Heartbeat, Message, RefuseReason, Register, RegisterAck, RegisterOutcome,
    ServiceOffer,
};
use qmux_proto::{LaneError, PROTOCOL_VERSION};

use super::lane::{ClientLane, ClientLaneEvents};
use super::{ClientCore, ClientShared, going_away};
use crate::flow::udp::UdpSettings;
use crate::flow::udp::client::ClientFlows;
use crate::quic::control::{ControlEvent, ControlReader};
use crate::quic::end::LaneEnd;
use crate::quic::endpoint::{Endpoint, EndpointSetup};
use crate::quic::lane::Lane;
use crate::quic::{settings, tls, token};
use crate::sys::bind;
use crate::sys::udp::{Purpose, UdpSocket};

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// There was no handshake.
    Failed(String),
    /// The server answered the registration with a refusal.
    Refused(RefuseReason, String),
    /// The server has another number of cores than the lane was aimed by: dial again, at once.
    Misaimed,
    /// The lane was registered and has ended.
    Ended(LaneEnd),
}

/// Runs one attempt of `lane_index` to `server` to its end. `number` counts the attempts.
pub(super) async fn run(
    core: &Rc<ClientCore>,
    server: usize,
    lane_index: usize,
    number: usize,
) -> AttemptEnd {
    let Some(client) = core.shared.client() else {
        return AttemptEnd::Failed("no [client] section".into());
    };
    let (endpoint, lane, aim) = match dial(core, client, server, lane_index, number) {
        Ok(dialed) => dialed,
        Err(why) => return AttemptEnd::Failed(why),
    };
    let this = Rc::new(ClientLane::new(
        Rc::clone(&lane),
        client_flows(core, &lane),
        Rc::clone(&core.context),
        Arc::clone(&core.shared),
    ));
    lane.handle_events(Rc::new(ClientLaneEvents(Rc::clone(&this))));
    // The endpoint lives as long as its one lane, and that as long as this attempt.
    endpoint.stop_when_empty();
    let _guard = CloseOnDrop(Rc::clone(&lane));
    if let Err(end) = lane.established().await {
        return AttemptEnd::Failed(end.to_string());
    }
    let mut reader = ControlReader::new(Rc::clone(&lane));
    let ack = match register(
        &core.shared,
        client,
        &this,
        &mut reader,
        server,
        lane_index,
        core,
    )
    .await
    {
        Ok(ack) => ack,
        Err(end) => return end,
    };
    let server_cores = usize::try_from(ack.server_cores)
        .unwrap_or(1)
        .clamp(1, crate::core::CORES_MAX);
    if aim != lane_index % server_cores {
        core.server_has_cores(server, server_cores);
        return AttemptEnd::Misaimed;
    }
    core.lanes
        .borrow_mut()
        .insert((server, lane_index), Rc::clone(&this));
    this.tell_service_health();
    if core.context.draining.get() {
        this.lane
            .send_control(&Message::GoAway(going_away(client.drain_timeout)));
    }
    tracing::info!(
        server = %core.shared.servers[server].name,
        lane = lane_index,
        core = core.context.index,
        server_core = ack.lane_core,
        server_cores = ack.server_cores,
        "lane registered"
    );
    core.shared.lane_registered();
    core.server_has_cores(server, server_cores);
    AttemptEnd::Ended(serve(client, &this, &mut reader).await)
}

/// Closes the lane when the attempt is over or given up; does nothing to one that has ended.
struct CloseOnDrop(Rc<Lane>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if self.0.end().is_none() {
            self.0.close(LaneError::Shutdown, "");
        }
    }
}

fn dial(
    core: &Rc<ClientCore>,
    client: &Client,
    server: usize,
    lane_index: usize,
    number: usize,
) -> Result<(Rc<Endpoint>, Rc<Lane>, usize), String> {
    let state = &core.shared.servers[server];
    let addresses = state.name.addresses();
    let peer = number
        .checked_rem(addresses.len())
        .and_then(|index| addresses.get(index))
        .ok_or_else(|| format!("{} cannot be resolved", state.name))?;
    let socket = bind::udp_towards(*peer).map_err(|error| format!("no UDP socket: {error}"))?;
    // A smaller buffer than asked for was warned of at the start.
    let _granted = bind::raise_udp_buffers(&socket);
    // Read again at each attempt: renewed certificates are picked up.
    let tls = tls::client(client).map_err(|error| error.to_string())?;
    let config =
        settings::transport(&core.shared.config.quic, tls).map_err(|error| error.to_string())?;
    let endpoint = Endpoint::start(
        EndpointSetup {
            socket: UdpSocket::adopt(socket, Purpose::Quic).map_err(|error| error.to_string())?,
            core: core.context.index,
            group: 1,
            config,
            accepts: false,
            handshake_timeout: core.shared.config.quic.handshake_idle_timeout,
            reset_key: None,
            counters: Arc::clone(&core.context.counters),
        },
        None,
    );
    let server_cores = state
        .cores
        .load(std::sync::atomic::Ordering::Relaxed)
        .max(1);
    let aim = lane_index % server_cores;
    let lane = endpoint
        .dial(*peer, &state.server_name, u8::try_from(aim).unwrap_or(0))
        .map_err(|error| {
            endpoint.stop_when_empty();
            error.to_string()
        })?;
    Ok((endpoint, lane, aim))
}

fn client_flows(core: &Rc<ClientCore>, lane: &Rc<Lane>) -> Rc<ClientFlows> {
    let udp = &core.shared.config.udp;
    let settings = UdpSettings {
        session_timeout: udp.session_timeout,
        fragmentation: udp.enable_fragmentation,
    };
    let service = Arc::clone(&core.shared.service);
    let address = Rc::new(move || service.addresses().first().copied());
    ClientFlows::new(
        Rc::clone(lane),
        address,
        settings,
        Arc::clone(&core.context.counters),
    )
}

async fn register(
    shared: &ClientShared,
    client: &Client,
    this: &ClientLane,
    reader: &mut ControlReader,
    server: usize,
    lane_index: usize,
    core: &Rc<ClientCore>,
) -> Result<RegisterAck, AttemptEnd> {
    let server_cores = shared.servers[server]
        .cores
        .load(std::sync::atomic::Ordering::Relaxed);
    this.lane.send_control(&Message::Register(Register {
        protocol_version: PROTOCOL_VERSION,
        client_id: shared.client_id.clone(),
        instance_id: shared.instance_id,
        lane_index: lane_index as u64,
        lane_count: shared.lane_count(server_cores, core.context.cluster.cores()) as u64,
        capabilities: Capabilities::TCP
            .union(Capabilities::UDP)
            .union(Capabilities::FRAGMENTATION)
            .union(Capabilities::SERVICE_HEALTH),
        services: vec![ServiceOffer {
            name: String::new(),
        }],
    }));
    let deadline =
        Instant::now() + shared.config.quic.handshake_idle_timeout + client.heartbeat_interval;
    loop {
        match reader.next(deadline).await {
            ControlEvent::Message(Message::RegisterAck(ack)) => match ack.outcome {
                RegisterOutcome::Accepted => return Ok(ack),
                RegisterOutcome::Refused { reason, text } => {
                    this.lane.close(LaneError::Refused, "");
                    return Err(AttemptEnd::Refused(reason, text));
                }
            },
            ControlEvent::Message(Message::AuthChallenge(challenge)) => {
                let Some(token) = &client.auth.token else {
                    this.lane.close(LaneError::Unauthenticated, "");
                    return Err(AttemptEnd::Refused(
                        RefuseReason::Unauthenticated,
                        "the server wants a token: set token in [client.auth]".into(),
                    ));
                };
                match token::prove(&this.lane, token, &challenge) {
                    Ok(proof) => this.lane.send_control(&Message::AuthProof(proof)),
                    Err(error) => return Err(AttemptEnd::Failed(error.to_string())),
                }
            }
            ControlEvent::Message(_) => {}
            ControlEvent::Deadline => {
                this.lane
                    .close(LaneError::HealthTimeout, "no answer to Register");
                return Err(AttemptEnd::Failed(
                    "the server did not answer the registration".into(),
                ));
            }
            ControlEvent::Ended => return Err(AttemptEnd::Failed(ended(this).await.to_string())),
        }
    }
}

/// Heartbeats until the lane ends.
async fn serve(client: &Client, this: &ClientLane, reader: &mut ControlReader) -> LaneEnd {
    let mut last_heard = Instant::now();
    let mut next_beat = last_heard + client.heartbeat_interval;
    let keep_alive = this.shared.config.quic.keep_alive_period;
    let mut next_ping = Instant::now() + keep_alive;
    let (mut sent, mut heard) = (0, 0);
    loop {
        let unhealthy_at = last_heard + client.health_timeout;
        match reader
            .next(next_beat.min(next_ping).min(unhealthy_at))
            .await
        {
            ControlEvent::Message(message) => {
                last_heard = Instant::now();
                match message {
                    Message::Heartbeat(beat) => {
                        heard = beat.sequence;
                        this.context.counters.heartbeats_received.increment();
                    }
                    Message::FlowClosed(closed) => {
                        this.udp.flow_closed(closed.flow_id, closed.reason);
                    }
                    Message::Finished(finished) => this.lane.announced(finished),
                    Message::NoMoreFlows(no_more) => this.no_more_flows(no_more.flows_opened),
                    Message::GoAway(away) => {
                        tracing::info!(peer = ?this.lane.peer_addr(), reason = %away.reason, "the server drains; this lane gets no new flow");
                    }
                    other => tracing::debug!(?other, "message without meaning here"),
                }
            }
            ControlEvent::Deadline => {
                let now = Instant::now();
                if now >= last_heard + client.health_timeout {
                    this.context.counters.lanes_unhealthy.increment();
                    this.lane.close(LaneError::HealthTimeout, "");
                    return LaneEnd::ClosedByUs(LaneError::HealthTimeout);
                }
                if now >= next_ping {
                    this.lane.ping();
                    next_ping = now + keep_alive;
                }
                if now >= next_beat {
                    this.tell_service_health();
                    next_ping = now + keep_alive;
                    sent += 1;
                    this.lane.send_control(&Message::Heartbeat(Heartbeat {
                        sequence: sent,
                        acknowledged: heard,
                    }));
                    next_beat = now + client.heartbeat_interval;
                }
            }
            ControlEvent::Ended => return ended(this).await,
        }
    }
}

/// The reason of a lane's end, which follows its last event closely.
async fn ended(this: &ClientLane) -> LaneEnd {
    this.lane.ended().await
}
