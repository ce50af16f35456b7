//! What all cores of the client role share: which servers there are, who this client is, and where
//! its services are.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use qmux_config::{Client, Config};

use super::MAIL_PAUSE;
use super::mail::ClientMail;
use super::servers::roster::{self, Roster};
use super::servers::server::ServerState;
use super::servers::twins::{self, Twins};
use super::services::Services;
use crate::core::mailbox::Post;
use crate::quic::credentials::KeptCredentials;
use crate::quic::sessions::SessionCache;
use crate::ready::{Readiness, RegisteredLane};
use crate::resolve::{self, Name};
use crate::sys::process;

const _: () = assert!(
    qmux_config::CLIENT_ID_BYTES_MAX == qmux_proto::control::CLIENT_ID_BYTES_MAX,
    "every client id that the configuration allows can be sent"
);

/// Where a server's name stands in the config.
const SERVER_SETTING: &str = "address in [[client.servers]]";

/// One configured server. Each address that its name resolves to is a server of its own.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where it is.
    pub(crate) name: Arc<Name>,
    /// What its certificate must be for.
    pub(crate) server_name: String,
}

/// What all cores of the client role share.
#[derive(Debug)]
pub(crate) struct ClientShared {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// The configured id, or one drawn at this start.
    pub(crate) client_id: String,
    /// At which server core lanes begin; drawn at this start.
    pub(super) begins_at: u8,
    /// Drawn at this start.
    pub(crate) instance_id: [u8; 16],
    /// In the order of the configuration.
    pub(crate) targets: Vec<Target>,
    /// Changed by the resolvers' threads only.
    pub(super) roster: Mutex<Roster>,
    /// The servers of the roster, for the cores to read.
    pub(super) servers: ArcSwap<Vec<Arc<ServerState>>>,
    /// Which addresses of a name lead to one server.
    pub(super) twins: Mutex<Twins>,
    /// What is behind this client.
    pub(crate) services: Arc<Services>,
    /// Told when the first lane is registered.
    pub(crate) readiness: Arc<Readiness>,
    pub(super) registered_once: AtomicBool,
    /// Sessions that lanes may go on from.
    pub(super) sessions: SessionCache,
    /// Its certificate, and the CAs that it trusts.
    pub(super) credentials: KeptCredentials,
}

impl ClientShared {
    /// Draws ids. All names are resolved in the background ([`Self::keep_names_fresh`]).
    pub(crate) fn new(
        config: &Arc<Config>,
        client: &Client,
        readiness: &Arc<Readiness>,
    ) -> ClientShared {
        let targets: Vec<Target> = client
            .servers
            .iter()
            .map(|target| Target {
                name: Name::later(&target.host, target.port, SERVER_SETTING),
                server_name: target.server_name.clone(),
            })
            .collect();
        let names = targets.iter().map(|target| target.server_name.clone());
        let shared = ClientShared {
            config: Arc::clone(config),
            client_id: client.client_id.clone().unwrap_or_else(drawn_client_id),
            begins_at: rand::random(),
            instance_id: *uuid::Uuid::new_v4().as_bytes(),
            roster: Mutex::new(Roster::new(names)),
            targets,
            servers: ArcSwap::default(),
            twins: Mutex::default(),
            services: Arc::new(Services::new(&client.services)),
            readiness: Arc::clone(readiness),
            registered_once: AtomicBool::new(false),
            sessions: SessionCache::default(),
            credentials: KeptCredentials::default(),
        };
        for (index, target) in shared.targets.iter().enumerate() {
            if target.name.is_literal() {
                shared.resolved(index, &target.name.addresses());
            }
        }
        shared
    }

    /// Keeps sessions in the state directory, if one is configured.
    ///
    /// # Errors
    /// With a text if it cannot be used.
    pub(crate) fn keep_sessions(&self) -> Result<(), String> {
        match self.client().and_then(|client| client.state_dir.as_ref()) {
            Some(dir) => self.sessions.keep_in(dir),
            None => Ok(()),
        }
    }

    /// Reads the certificates, now and whenever they change, so that no core has to.
    ///
    /// # Errors
    /// With a text if they cannot be used.
    pub(crate) fn keep_certificates(&self) -> Result<(), String> {
        match self.client() {
            Some(client) => self.credentials.keep(client),
            None => Ok(()),
        }
    }

    /// The `[client]` section. The role is only started if there is one.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.config.client.as_ref()
    }

    /// Resolves all names now and from time to time, each in a thread of its own, and tells the
    /// cores by `post` when the servers have changed.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn keep_names_fresh(
        self: &Arc<Self>,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> std::io::Result<()> {
        let Some(client) = self.client() else {
            return Ok(());
        };
        let interval = client.resolve_interval;
        for host in self.services.hosts() {
            resolve::keep_fresh(host, interval, |_| {})?;
        }
        for (index, target) in self.targets.iter().enumerate() {
            let (shared, post) = (Arc::clone(self), Arc::clone(post));
            resolve::keep_fresh(Arc::clone(&target.name), interval, move |addresses| {
                if shared.resolved(index, addresses) {
                    tell_all_cores(&*post, ClientMail::Plan);
                }
            })?;
        }
        Ok(())
    }

    /// Takes in what a configured server's name has resolved to. True if the servers have changed.
    pub(super) fn resolved(&self, target: usize, addresses: &[SocketAddr]) -> bool {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let news = roster.answer(target, addresses, Instant::now());
        if news.is_empty() {
            return false;
        }
        self.servers.store(Arc::new(roster.servers().to_vec()));
        drop(roster);
        for server in &news.vanished {
            self.twins().vanished(server.number);
        }
        if !self.targets[target].name.is_literal() {
            for server in &news.appeared {
                tracing::info!(server = self.title(server), "a server has appeared");
            }
            for server in &news.vanished {
                tracing::info!(
                    server = self.title(server),
                    "a server has vanished; its lanes are left to their flows"
                );
            }
        }
        if news.surplus > 0 {
            tracing::warn!(
                surplus = news.surplus,
                limit = roster::SERVERS_MAX,
                "more addresses than one client can have servers; the others are left out"
            );
        }
        true
    }

    pub(super) fn twins(&self) -> MutexGuard<'_, Twins> {
        // Only when a lane has registered or ended.
        self.twins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane to `server` has registered with the process of this id. True if the cores must plan
    /// again.
    pub(super) fn registered_with(&self, server: &ServerState, instance_id: [u8; 16]) -> bool {
        // Held until it is written: two cores must not write in another order than they decided.
        let mut twins = self.twins();
        let change = twins.registered(server.number, server.target, instance_id);
        if change.is_some() {
            server.set_rests(true);
            drop(twins);
            tracing::info!(
                server = self.title(server),
                "another address of a server that is served already; it is dialled when that one fails"
            );
        }
        change.is_some()
    }

    /// A lane to `server` has ended. True if the cores must plan again.
    pub(super) fn lane_ended(&self, server: &ServerState) -> bool {
        let mut twins = self.twins();
        let changes = twins.ended(server.number);
        self.write_rests(&changes);
        drop(twins);
        !changes.is_empty()
    }

    /// Nobody answers on any lane to `server` any more, or somebody does again. True if the cores
    /// must plan again.
    pub(super) fn server_unanswered(&self, server: &ServerState, unanswered: bool) -> bool {
        let mut twins = self.twins();
        let changes = twins.unanswered(server.number, unanswered);
        self.write_rests(&changes);
        drop(twins);
        !changes.is_empty()
    }

    pub(super) fn write_rests(&self, changes: &[twins::Change]) {
        let servers = self.servers.load();
        for change in changes {
            if let Some(server) = servers.iter().find(|it| it.number == change.number) {
                server.set_rests(change.rests);
            }
        }
    }

    /// The other addresses of the same configured server.
    pub(super) fn other_addresses(&self, server: &ServerState) -> Vec<Arc<ServerState>> {
        let servers = self.servers.load();
        let others = servers
            .iter()
            .filter(|it| it.target == server.target && it.number != server.number);
        others.cloned().collect()
    }

    /// Whether another address of the same configured server serves.
    pub(super) fn serves_elsewhere(&self, server: &ServerState) -> bool {
        let others = self.other_addresses(server);
        others.iter().any(|it| it.has_lanes())
    }

    /// Whether lanes are registered, but no server with lanes takes a single service of this
    /// client.
    pub(crate) fn serves_nothing(&self) -> bool {
        let servers = self.servers.load();
        let mut accepted = servers
            .iter()
            .filter(|server| server.lanes() > 0)
            .map(|server| server.told.accepted())
            .peekable();
        accepted.peek().is_some() && accepted.all(|accepted| accepted == Some(0))
    }

    /// A server as logs name it.
    pub(super) fn title(&self, server: &ServerState) -> String {
        match self.targets.get(server.target) {
            Some(target) if !target.name.is_literal() => format!("{} ({server})", target.name),
            _ => server.to_string(),
        }
    }

    /// The lane counts as registered until the result is dropped.
    pub(super) fn lane_registered(&self) -> RegisteredLane {
        let lane = self.readiness.lane_registered();
        if !self.registered_once.swap(true, Ordering::AcqRel) {
            self.readiness.role_ready("client");
        }
        lane
    }
}

/// An id that tells people which host it is, and no two clients have.
fn drawn_client_id() -> String {
    let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
    let random = u32::from_be_bytes([a, b, c, d]);
    format!("{}-{random:08x}", process::host_name())
}

/// For threads that are no core: waits for room in each mailbox.
fn tell_all_cores(post: &dyn Post<ClientMail>, mail: ClientMail) {
    for core in 0..post.cores() {
        while post.send(core, mail).is_err() {
            std::thread::sleep(MAIL_PAUSE);
        }
    }
}
