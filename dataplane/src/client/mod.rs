//! The client role on one core: its share of the lanes to every server.

mod attempt;
mod backoff;
mod flow;
mod lane;
mod seen;
mod service;
mod supervisor;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use qmux_config::{Client, Config, Lanes};
use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};

use crate::core::CoreContext;
use crate::core::mailbox::Mail;
use crate::ready::Readiness;
use crate::resolve::Name;
use lane::ClientLane;
use service::{Checker, ServiceState};
use supervisor::Supervisor;

/// One configured server, as all cores see it.
#[derive(Debug)]
pub(crate) struct ServerState {
    /// Where it is.
    pub(crate) name: Arc<Name>,
    /// What its certificate must be for.
    pub(crate) server_name: String,
    /// Its number of cores as it last said; 0 until then.
    cores: AtomicUsize,
}

/// What all cores of the client role share.
#[derive(Debug)]
pub(crate) struct ClientShared {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// The configured id, or one drawn at this start.
    pub(crate) client_id: String,
    /// Drawn at this start.
    pub(crate) instance_id: [u8; 16],
    /// In the order of the configuration.
    pub(crate) servers: Vec<ServerState>,
    /// The local service.
    pub(crate) service: Arc<Name>,
    /// Whether it can be reached.
    service_state: ServiceState,
    /// Told when the first lane is registered.
    pub(crate) readiness: Arc<Readiness>,
    registered_once: AtomicBool,
}

impl ClientShared {
    /// Resolves names and draws ids.
    pub(crate) fn new(
        config: &Arc<Config>,
        client: &Client,
        readiness: &Arc<Readiness>,
    ) -> ClientShared {
        ClientShared {
            config: Arc::clone(config),
            client_id: client
                .client_id
                .clone()
                .unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            instance_id: *uuid::Uuid::new_v4().as_bytes(),
            servers: client
                .servers
                .iter()
                .map(|target| ServerState {
                    name: Name::new(&target.host, target.port),
                    server_name: target.server_name.clone(),
                    cores: AtomicUsize::new(0),
                })
                .collect(),
            service: Name::new(&client.local.host, client.local.port),
            service_state: ServiceState::default(),
            readiness: Arc::clone(readiness),
            registered_once: AtomicBool::new(false),
        }
    }

    /// The `[client]` section. The role is only started if there is one.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.config.client.as_ref()
    }

    /// All names that must be kept fresh.
    pub(crate) fn names(&self) -> Vec<Arc<Name>> {
        self.servers
            .iter()
            .map(|server| Arc::clone(&server.name))
            .chain([Arc::clone(&self.service)])
            .collect()
    }

    fn lane_registered(&self) {
        if !self.registered_once.swap(true, Ordering::AcqRel) {
            self.readiness.role_ready("client");
        }
    }

    /// Lanes to open to a server of `server_cores` cores from `client_cores` cores: each core of either side gets at
    /// least one. Lane `k` joins server core `k % server_cores` and client core `k % client_cores`.
    fn lane_count(&self, server_cores: usize, client_cores: usize) -> usize {
        match self.client().map(|client| client.lanes) {
            // One lane first: it brings the number of cores, which the others need to aim.
            _ if server_cores == 0 => 1,
            Some(Lanes::Count(count)) => usize::from(count.get()),
            _ => server_cores.max(client_cores),
        }
    }
}

/// The client role on one core.
pub(crate) struct ClientCore {
    context: Rc<CoreContext>,
    shared: Arc<ClientShared>,
    supervisors: RefCell<HashMap<(usize, usize), Rc<Supervisor>>>,
    /// Lanes that are registered now, by server and lane index.
    lanes: RefCell<HashMap<(usize, usize), Rc<ClientLane>>>,
    /// Checks the service, if that is this core's part.
    checker: Option<Rc<Checker>>,
}

/// What servers are told when this process stops.
fn going_away(drain_timeout: Duration) -> GoAway {
    GoAway {
        reason: GoAwayReason::Shutdown,
        drain_timeout_ms: u64::try_from(drain_timeout.as_millis()).unwrap_or(u64::MAX),
    }
}

impl ClientCore {
    /// Starts this core's first lanes.
    pub(crate) fn start(context: &Rc<CoreContext>, shared: &Arc<ClientShared>) -> Rc<ClientCore> {
        let this = Rc::new(ClientCore {
            context: Rc::clone(context),
            shared: Arc::clone(shared),
            supervisors: RefCell::default(),
            lanes: RefCell::default(),
            checker: Checker::start(context, shared),
        });
        for server in 0..shared.servers.len() {
            this.plan(server);
        }
        this
    }

    /// Takes mail meant for the client role; gives back what is not.
    pub(crate) fn mail(self: &Rc<Self>, mail: Mail) -> Option<Mail> {
        match mail {
            Mail::Lanes { server } => self.plan(server),
            Mail::ServiceHealth => self.service_health_changed(),
            other => return Some(other),
        }
        None
    }

    /// Brings this core's lanes to `server` in line with the number of cores on both sides.
    fn plan(self: &Rc<Self>, server: usize) {
        let cores = self.context.cluster.cores();
        let server_cores = self.shared.servers[server].cores.load(Ordering::Relaxed);
        let count = self.shared.lane_count(server_cores, cores);
        let mut supervisors = self.supervisors.borrow_mut();
        for lane in (self.context.index..count).step_by(cores) {
            supervisors
                .entry((server, lane))
                .or_insert_with(|| Supervisor::start(self, server, lane));
        }
        supervisors.retain(|(of, lane), supervisor| {
            let wanted = *of != server || *lane < count;
            if !wanted {
                supervisor.retire();
            }
            wanted
        });
    }

    /// A server said how many cores it has: all cores plan again if that is news.
    fn server_has_cores(self: &Rc<Self>, server: usize, server_cores: usize) {
        let known = self.shared.servers[server]
            .cores
            .swap(server_cores, Ordering::Relaxed);
        if known == server_cores {
            return;
        }
        self.plan(server);
        for (core, mailbox) in self.context.cluster.mailboxes.iter().enumerate() {
            if core != self.context.index && mailbox.send(Mail::Lanes { server }).is_err() {
                tracing::error!(
                    core,
                    "mailbox full: the core keeps the lanes that it has to this server"
                );
            }
        }
    }

    fn service_health_changed(&self) {
        if let Some(checker) = &self.checker {
            checker.told();
        }
        for lane in self.lanes.borrow().values() {
            lane.tell_service_health();
        }
    }

    /// Whether the servers have answered [`ClientCore::drain`] and no flow is on its way here any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.lanes.borrow().values().all(|lane| lane.is_settled())
    }

    /// Tells the servers to send no new flow, and takes none.
    pub(crate) fn drain(&self, timeout: Duration) {
        let away = going_away(timeout);
        for lane in self.lanes.borrow().values() {
            lane.lane.send_control(&Message::GoAway(away));
        }
    }

    /// Closes all lanes. The servers are told in the next flush.
    pub(crate) fn close(&self) {
        for supervisor in self.supervisors.borrow().values() {
            supervisor.retire();
        }
        let lanes: Vec<_> = self.lanes.borrow().values().cloned().collect();
        for lane in lanes {
            lane.lane.close(LaneError::Shutdown, "");
        }
    }
}
