//! The client role: lanes to every server, and the service behind them.

mod backoff;
mod dial;
mod lane;
mod udp_service;

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use qmux_config::{
    Client, Lanes, ListenerProtocol, LocalService, ProxyProtocol, ServerTarget, Udp,
};
use qmux_proto::control::{INSTANCE_ID_BYTES, is_valid_client_id};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::info;

use crate::control::Timing;
use crate::flows::FlowCount;
use crate::lane::Lane;
use crate::shutdown::Shutdown;
use crate::start_error::StartError;
use crate::tls;
use crate::transport::Settings;

/// Lanes to one server unless the config says otherwise: a quinn server has one endpoint.
const LANES_AUTO: u64 = 1;

/// Flows that a server opened before it heard of the draining arrive within this time.
const GO_AWAY_GRACE: Duration = Duration::from_millis(250);

/// How long closed connections may take to tell their servers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What every task of the client knows.
#[derive(Debug)]
struct Shared {
    client_id: String,
    instance_id: [u8; INSTANCE_ID_BYTES],
    lane_count: u64,
    /// Host and port of the service.
    local: (String, u16),
    quinn: quinn::ClientConfig,
    settings: Settings,
    timing: Timing,
    udp: Udp,
    /// TCP flows of all lanes: those that draining waits for.
    tcp_flows: Arc<FlowCount>,
    /// Every lane that is registered.
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// Whether a lane was ever registered.
    ready: AtomicBool,
}

/// Whether a service is one that this program knows.
fn is_plain(service: &LocalService) -> bool {
    service.name.is_empty()
        && service.protocol == ListenerProtocol::Both
        && service.proxy_protocol == ProxyProtocol::Off
}

/// The client with its certificates read, before it runs.
pub(crate) struct Prepared {
    shared: Shared,
    servers: Vec<ServerTarget>,
    drain_timeout: Duration,
}

impl Prepared {
    pub(crate) fn new(config: &Client, udp: &Udp, settings: Settings) -> Result<Self, StartError> {
        let mut quinn = quinn::ClientConfig::new(Arc::new(tls::client(config)?));
        quinn.transport_config(settings.client());
        let instance = uuid::Uuid::new_v4();
        let local = match &config.services[..] {
            [service] if is_plain(service) => service.clone(),
            _ => return Err(StartError::NamedServices),
        };
        let port = local.check_port().ok_or(StartError::NamedServices)?;
        let client_id = match &config.client_id {
            Some(id) if is_valid_client_id(id) => id.clone(),
            Some(id) => return Err(StartError::ClientId(id.clone())),
            None => instance.to_string(),
        };
        let lane_count = match config.lanes {
            Lanes::Auto => LANES_AUTO,
            Lanes::Count(count) => u64::from(count.get()),
        };
        Ok(Self {
            shared: Shared {
                client_id,
                instance_id: instance.into_bytes(),
                lane_count,
                local: (local.host, port),
                quinn,
                settings,
                timing: Timing {
                    heartbeat_interval: config.heartbeat_interval,
                    health_timeout: config.health_timeout,
                },
                udp: udp.clone(),
                tcp_flows: Arc::default(),
                lanes: Mutex::default(),
                ready: AtomicBool::new(false),
            },
            servers: config.servers.clone(),
            drain_timeout: config.drain_timeout,
        })
    }

    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        let (lanes, local) = (self.shared.lane_count, &self.shared.local);
        for server in &self.servers {
            let (host, port) = local;
            // Writing to a String cannot fail.
            let _ok = writeln!(
                text,
                "client: service {host}:{port}, {lanes} lane(s) to {} as {}",
                server.address, server.server_name
            );
        }
        text
    }

    /// Runs until a signal stops the process and the flows have ended.
    pub(crate) async fn run(self, mut shutdown: Shutdown) -> io::Result<()> {
        let shared = Arc::new(self.shared);
        let mut keeping = JoinSet::new();
        for server in &self.servers {
            for index in 0..shared.lane_count {
                keeping.spawn(lane::keep(server.clone(), index, Arc::clone(&shared)));
            }
        }
        shutdown.started().await;
        keeping.shutdown().await;
        shared.drain(self.drain_timeout).await;
        info!("client stopped");
        Ok(())
    }
}

impl Shared {
    /// Notes that a lane is registered; the first one makes the client ready.
    fn add_lane(&self, lane: &Arc<Lane>) {
        self.lanes().push(Arc::clone(lane));
        if !self.ready.swap(true, Ordering::Relaxed) {
            info!(client = self.client_id, server = %lane.connection.remote_address(), "client ready");
        }
    }

    fn remove_lane(&self, lane: &Arc<Lane>) {
        self.lanes().retain(|other| !Arc::ptr_eq(other, lane));
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn drain(&self, drain_timeout: Duration) {
        for lane in self.lanes().iter() {
            lane.send_go_away(drain_timeout);
        }
        sleep(GO_AWAY_GRACE.min(drain_timeout)).await;
        let error = self.tcp_flows.drain(drain_timeout).await;
        let lanes = self.lanes().clone();
        for lane in &lanes {
            lane.close(error, "the client stops");
        }
        self.tcp_flows.drained(CLOSE_TIMEOUT).await;
        // One round for the closes to leave; a server that misses it finds out by its idle timeout.
        sleep(Duration::from_millis(50)).await;
    }
}
