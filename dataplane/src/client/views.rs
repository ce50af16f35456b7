//! Servers and services of a client as operators see them: plain values, read on request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use qmux_config::Lanes;

use super::servers::server::ServerState;
use super::servers::transport::Carried;
use super::services::Service;
use super::shared::ClientShared;

/// One address of a server.
#[derive(Debug)]
pub(crate) struct ServerView {
    /// The address.
    pub(crate) address: SocketAddr,
    /// Lanes registered with it now.
    pub(crate) lanes: usize,
    /// The transport that carries the lanes, since when and why.
    pub(crate) carried: Carried,
    /// Lanes among them that ride TLS.
    pub(crate) lanes_over_tls: usize,
    /// Round trip time as a lane last measured it; 0 if none has.
    pub(crate) rtt_us: u64,
    /// The state of the server, in a word.
    pub(crate) state: &'static str,
}

/// One service of this client.
#[derive(Debug)]
pub(crate) struct LocalServiceView {
    /// The service's name; empty for that of `[client.local]`.
    pub(crate) name: String,
    /// The host and port, as in dp.toml.
    pub(crate) address: String,
    /// Whether the service can be reached, as far as is known.
    pub(crate) up: bool,
    /// Flows that the service has now.
    pub(crate) flows: usize,
}

impl ServerState {
    fn view(&self) -> ServerView {
        let lanes = self.lanes();
        let state = if lanes == 0 && self.rests() {
            "resting"
        } else if lanes == 0 {
            "down"
        } else if self.is_draining() {
            "draining"
        } else if self.is_unanswered() {
            "silent"
        } else {
            "up"
        };
        ServerView {
            address: self.address,
            lanes,
            carried: self.transport.carried(),
            lanes_over_tls: self.transport.lanes_over_tls(),
            rtt_us: self.path.rtt_us(),
            state,
        }
    }
}

impl ClientShared {
    /// All servers that are known.
    pub(crate) fn server_views(&self) -> Vec<ServerView> {
        let servers = self.servers.load();
        servers.iter().map(|server| server.view()).collect()
    }

    /// Number of lanes that ride TLS.
    pub(crate) fn lanes_over_tls(&self) -> usize {
        let servers = self.servers.load();
        let over_tls = servers.iter().map(|it| it.transport.lanes_over_tls());
        over_tls.sum()
    }

    /// Number of lanes that there are to be to all servers.
    pub(crate) fn lanes_wanted(&self) -> usize {
        let settings = self.settings();
        let lanes = settings.client().map_or(Lanes::Auto, |client| client.lanes);
        let servers = self.servers.load();
        let kept = servers.iter().filter(|server| !server.rests());
        kept.map(|server| server.lanes_wanted(lanes)).sum()
    }

    /// All services, in the order of the configuration.
    pub(crate) fn service_views(&self) -> Vec<LocalServiceView> {
        let now = Instant::now();
        let view = |service: &Arc<Service>| LocalServiceView {
            name: service.name().to_owned(),
            address: service.place(),
            up: service.is_up(now),
            flows: service.flows(),
        };
        self.settings().services.all().iter().map(view).collect()
    }
}
