//! Servers and services of a client as operators see them: plain values, read when somebody asks.

use std::net::SocketAddr;
use std::sync::Arc;

use qmux_config::Lanes;

use super::servers::server::ServerState;
use super::services::Service;
use super::shared::ClientShared;

/// One address of a server.
#[derive(Debug)]
pub(crate) struct ServerView {
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// Lanes registered with it now.
    pub(crate) lanes: usize,
    /// Round trip time as a lane last told it; 0 if none has.
    pub(crate) rtt_us: u64,
    /// How it does, in a word.
    pub(crate) state: &'static str,
}

/// One service of this client.
#[derive(Debug)]
pub(crate) struct LocalServiceView {
    /// Empty for that of `[client.local]`.
    pub(crate) name: String,
    /// Its host and port, as in dp.toml.
    pub(crate) address: String,
    /// Whether it can be reached, as far as is known.
    pub(crate) up: bool,
    /// Flows that it has now.
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

    /// Lanes that there are to be to all servers.
    pub(crate) fn lanes_wanted(&self) -> usize {
        let settings = self.settings();
        let lanes = settings.client().map_or(Lanes::Auto, |client| client.lanes);
        let servers = self.servers.load();
        let kept = servers.iter().filter(|server| !server.rests());
        kept.map(|server| server.lanes_wanted(lanes)).sum()
    }

    /// All services, in the order of the configuration.
    pub(crate) fn service_views(&self) -> Vec<LocalServiceView> {
        let view = |service: &Arc<Service>| LocalServiceView {
            name: service.name().to_owned(),
            address: service.place(),
            up: service.is_healthy(),
            flows: service.flows(),
        };
        self.settings().services.all().iter().map(view).collect()
    }
}
