//! Servers and services of a client as operators see them: plain values, read on request.

use std::sync::Arc;
use std::time::Instant;

use qmux_config::{Lanes, Transport};

use super::servers::server::ServerState;
use super::servers::stand_in;
use super::servers::take_up::Generation;
use super::servers::transport::{Carried, Riding};
use super::services::Service;
use super::services::answers::{Standing, complaint};
use super::shared::{ClientShared, TLS_IS_CONFIGURED, Target};

/// One address of a server, or a server whose name has none yet.
#[derive(Debug)]
pub(crate) struct ServerView {
    /// The server as configured: its host and port.
    pub(crate) name: String,
    /// The address; the name where this host knows none.
    pub(crate) address: String,
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
    /// Why no lane can be had by the present configuration, if lanes of an earlier one serve.
    pub(crate) outdated_why: Option<Arc<str>>,
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
    fn view(&self, shared: &ClientShared) -> ServerView {
        let lanes = self.lanes();
        let targets = shared.targets();
        let name = targets.get(self.target()).map(|it| it.name.to_string());
        let name = name.unwrap_or_else(|| self.address.to_string());
        let carried = self.transport.carried();
        let outdated_why = shared.outdated_why(self);
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
            address: if stand_in::is_one(self.address) {
                name.clone()
            } else {
                self.address.to_string()
            },
            name,
            lanes,
            carried: match shared.tls_alone(self) {
                Some(why) if outdated_why.is_none() => over_tls_alone(carried.since, why),
                _ => carried,
            },
            lanes_over_tls: self.transport.lanes_over_tls(),
            rtt_us: self.path.rtt_us(),
            state,
            outdated_why,
        }
    }
}

/// Lanes that nothing but TLS may carry, whether there are any now or not.
fn over_tls_alone(since: Instant, why: &str) -> Carried {
    Carried {
        by: Riding::Tls,
        since,
        why: why.into(),
    }
}

impl Target {
    /// The view of a server whose name has not been resolved to an address.
    fn view(&self) -> ServerView {
        let now = Instant::now();
        let is_tls = self.configured.transport == Transport::Tls;
        ServerView {
            name: self.name.to_string(),
            address: self.name.to_string(),
            lanes: 0,
            carried: if is_tls {
                over_tls_alone(now, TLS_IS_CONFIGURED)
            } else {
                Carried {
                    by: Riding::Udp,
                    since: now,
                    why: String::new(),
                }
            },
            lanes_over_tls: 0,
            rtt_us: 0,
            state: "unresolved",
            outdated_why: None,
        }
    }
}

impl ClientShared {
    /// Why no lane to `server` can be had by the present configuration, if lanes of an earlier one
    /// serve.
    fn outdated_why(&self, server: &ServerState) -> Option<Arc<str>> {
        let present = Generation::of(self.settings().generation, server);
        let served = server.lanes() > 0;
        served.then(|| server.take_up.judged(present))??
    }

    /// The servers whose lanes serve by an earlier configuration, a sentence for each.
    pub(crate) fn outdated(&self) -> Vec<String> {
        let settings = self.settings();
        let servers = self.servers.load();
        let sentence = |server: &Arc<ServerState>| {
            let present = Generation::of(settings.generation, server);
            let why = match server.take_up.judged(present) {
                Some(None) => return None,
                Some(Some(why)) => why,
                None => "no answer so far".into(),
            };
            Some(format!(
                "server {}: no lane can be had by its changed configuration ({why}); its lanes of \
                 before go on until there is one",
                self.title(server)
            ))
        };
        let served = servers.iter().filter(|server| server.lanes() > 0);
        served.filter_map(sentence).collect()
    }

    /// All servers: each address, and each configured server that has none yet.
    pub(crate) fn server_views(&self) -> Vec<ServerView> {
        let servers = self.servers.load();
        let mut views: Vec<_> = servers.iter().map(|server| server.view(self)).collect();
        let targets = self.targets();
        let targets = targets.iter().enumerate();
        let lacks_address = |(index, target): &(usize, &Arc<Target>)| {
            !target.name.is_given_up()
                && target.name.addresses().is_empty()
                && servers.iter().all(|server| server.target() != *index)
        };
        views.extend(targets.filter(lacks_address).map(|(_, it)| it.view()));
        views
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

    /// Why no server lets this client serve the service with this name, in the words of each server
    /// that has lanes. Empty if one of them does, or has not said.
    pub(crate) fn service_is_taken_nowhere(&self, name: &str) -> Vec<String> {
        let (settings, servers) = (self.settings(), self.servers.load());
        let mut services = settings.services.all().iter();
        let Some(service) = services.find(|it| it.name() == name) else {
            return Vec::new();
        };
        let mut complaints = Vec::new();
        for server in servers.iter().filter(|server| server.lanes() > 0) {
            let standing = server.told.standing(settings.generation, service.index);
            if standing == Standing::Unsaid
                && let Some(why) = self.outdated_why(server)
            {
                complaints.push(format!(
                    "{}: no lane can be had by its changed configuration ({why})",
                    self.title(server)
                ));
                continue;
            }
            if standing.is_accepted() || standing == Standing::Unsaid {
                return Vec::new();
            }
            complaints.extend(complaint(&self.title(server), service, standing));
        }
        complaints
    }
}
