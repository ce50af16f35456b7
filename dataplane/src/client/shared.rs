//! What all cores of the client role share: the servers, the identity of this client, and its
//! services.

pub(crate) mod change;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use qmux_config::{Client, Config, ProxyAddress, ServerTarget, Transport};

use super::MAIL_PAUSE;
use super::mail::ClientMail;
use super::servers::roster::{self, Roster};
use super::servers::same_server::{self, SameServer};
use super::servers::server::ServerState;
use super::servers::stand_in;
use super::services::Services;
use crate::core::mailbox::Post;
use crate::quic::credentials::KeptCredentials;
use crate::quic::sessions::SessionCache;
use crate::ready::{Readiness, RegisteredLane};
use crate::resolve::{self, Keeper, Name};
use crate::sys::process;

const _: () = assert!(
    qmux_config::CLIENT_ID_BYTES_MAX == qmux_proto::control::CLIENT_ID_BYTES_MAX,
    "every client id that the configuration allows can be sent"
);

/// The place in the configuration where a server is named.
const SERVER_SETTING: &str = "address in [[client.servers]]";

/// The place in the configuration where a proxy is named.
const PROXY_SETTING: &str = "proxy in [[client.servers]]";

/// Why lanes to a server ride TLS alone if the configuration says so.
pub(super) const TLS_IS_CONFIGURED: &str = "transport = \"tls\"";

/// One configuration of the client role. It never changes; another one takes its place.
#[derive(Debug)]
pub(crate) struct ClientSettings {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// The services behind this client.
    pub(crate) services: Arc<Services>,
    /// The number of the configuration; lanes are registered anew when it changes.
    pub(super) generation: u64,
}

impl ClientSettings {
    /// The `[client]` section. The role is only started if there is one.
    pub(crate) fn client(&self) -> Option<&Client> {
        self.config.client.as_ref()
    }
}

/// One configured server. Each address that its name resolves to is a server of its own.
#[derive(Debug)]
pub(crate) struct Target {
    /// The name and port of the server.
    pub(crate) name: Arc<Name>,
    /// The name that the server's certificate must have.
    pub(crate) server_name: String,
    /// The configuration of the server.
    pub(super) configured: ServerTarget,
    /// The proxy that TLS connections go through, if any; or why it cannot be used.
    pub(super) proxy: Result<Option<ProxyTarget>, String>,
}

/// A proxy and its name.
#[derive(Debug)]
pub(super) struct ProxyTarget {
    pub(super) proxy: ProxyAddress,
    pub(super) name: Arc<Name>,
}

impl ProxyTarget {
    fn of(server: &ServerTarget) -> Result<Option<ProxyTarget>, String> {
        let proxy = qmux_config::proxy::of(&server.proxy, &server.host, server.port)?;
        Ok(proxy.map(|proxy| ProxyTarget {
            name: Name::later(&proxy.host, proxy.port, PROXY_SETTING),
            proxy,
        }))
    }
}

impl Target {
    fn new(configured: &ServerTarget) -> Target {
        Target {
            name: Name::later(&configured.host, configured.port, SERVER_SETTING),
            server_name: configured.server_name.clone(),
            proxy: ProxyTarget::of(configured),
            configured: configured.clone(),
        }
    }

    /// Whether a proxy is given the server's name while this host cannot resolve it.
    pub(crate) fn asks_its_proxy(&self) -> bool {
        matches!(self.proxy, Ok(Some(_))) && self.configured.transport != Transport::Quic
    }
}

/// The state that all cores of the client role share.
#[derive(Debug)]
pub(crate) struct ClientShared {
    settings: ArcSwap<ClientSettings>,
    /// The configured id, or one drawn at this start.
    pub(crate) client_id: String,
    /// The server core of the first lane; drawn at this start.
    pub(super) begins_at: u8,
    /// The id of this instance; drawn at this start.
    pub(crate) instance_id: [u8; 16],
    /// The configured servers. Those that were removed stay in the list, so that the indexes of the
    /// others do not change.
    targets: ArcSwap<Vec<Arc<Target>>>,
    /// The list of servers; changed by the resolvers' threads, and by another configuration.
    pub(super) roster: Mutex<Roster>,
    /// The servers of the roster, for the cores to read.
    pub(super) servers: ArcSwap<Vec<Arc<ServerState>>>,
    /// Knows which addresses of a name lead to the same server.
    pub(super) same_server: Mutex<SameServer>,
    /// Set when the first lane is registered.
    pub(crate) readiness: Arc<Readiness>,
    pub(super) registered_once: AtomicBool,
    /// Sessions that lanes may resume.
    pub(super) sessions: SessionCache,
    /// The client's certificate, and the CAs that it trusts.
    pub(super) credentials: KeptCredentials,
}

impl ClientShared {
    /// The shared state, with ids drawn anew. All names are resolved in the background
    /// ([`Self::keep_names_fresh`]).
    pub(crate) fn new(
        config: &Arc<Config>,
        client: &Client,
        readiness: &Arc<Readiness>,
    ) -> ClientShared {
        let targets = client.servers.iter();
        let targets: Vec<_> = targets.map(|it| Arc::new(Target::new(it))).collect();
        let names = targets.iter().map(|target| target.server_name.clone());
        let shared = ClientShared {
            settings: ArcSwap::from_pointee(ClientSettings {
                config: Arc::clone(config),
                services: Arc::new(Services::new(&client.services)),
                generation: 0,
            }),
            client_id: client.client_id.clone().unwrap_or_else(drawn_client_id),
            begins_at: rand::random(),
            instance_id: *uuid::Uuid::new_v4().as_bytes(),
            roster: Mutex::new(Roster::new(names)),
            targets: ArcSwap::from_pointee(targets),
            servers: ArcSwap::default(),
            same_server: Mutex::default(),
            readiness: Arc::clone(readiness),
            registered_once: AtomicBool::new(false),
            sessions: SessionCache::default(),
            credentials: KeptCredentials::default(),
        };
        for (index, target) in shared.targets().iter().enumerate() {
            if target.name.is_literal() {
                shared.resolved(index, &target.name.addresses());
            }
        }
        shared
    }

    /// Keeps sessions in the state directory, if one is configured.
    ///
    /// # Errors
    /// With a text if the directory cannot be used.
    pub(crate) fn keep_sessions(&self) -> Result<(), String> {
        let settings = self.settings();
        match settings
            .client()
            .and_then(|client| client.state_dir.as_ref())
        {
            Some(dir) => self.sessions.keep_in(dir),
            None => Ok(()),
        }
    }

    /// Reads the certificates, now and whenever they change, so that no core has to.
    ///
    /// # Errors
    /// With a text if they cannot be used.
    pub(crate) fn keep_certificates(&self) -> Result<(), String> {
        match self.settings().client() {
            Some(client) => self.credentials.keep(client),
            None => Ok(()),
        }
    }

    /// The settings that are in force now.
    pub(crate) fn settings(&self) -> Arc<ClientSettings> {
        self.settings.load_full()
    }

    /// The configured servers.
    pub(crate) fn targets(&self) -> Arc<Vec<Arc<Target>>> {
        self.targets.load_full()
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
        for host in self.settings().services.hosts() {
            self.host_keeper(&host)?.begin();
        }
        for (index, target) in self.targets().iter().enumerate() {
            let keepers = self.target_keepers(index, target, post)?;
            keepers.into_iter().for_each(Keeper::begin);
        }
        Ok(())
    }

    fn resolve_interval(&self) -> Duration {
        let settings = self.settings();
        let client = settings.client();
        client.map_or(Duration::MAX, |client| client.resolve_interval)
    }

    fn host_keeper(&self, host: &Arc<Name>) -> std::io::Result<Keeper> {
        resolve::keeper(host, self.resolve_interval(), |_| {})
    }

    /// Starts resolving the names of a configured server: its own and its proxy's.
    fn target_keepers(
        self: &Arc<Self>,
        index: usize,
        target: &Target,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> std::io::Result<Vec<Keeper>> {
        let mut keepers = Vec::new();
        if let Ok(Some(proxy)) = &target.proxy {
            keepers.push(self.host_keeper(&proxy.name)?);
        }
        let (shared, post) = (Arc::clone(self), Arc::clone(post));
        let name = Arc::clone(&target.name);
        let interval = self.resolve_interval();
        let stand_in = target
            .asks_its_proxy()
            .then(|| stand_in::of(index, target.configured.port));
        keepers.push(resolve::keeper(&target.name, interval, move |addresses| {
            let addresses = match &stand_in {
                Some(stand_in) if addresses.is_empty() => std::slice::from_ref(stand_in),
                _ => addresses,
            };
            if shared.answered(&name, index, addresses) {
                tell_all_cores(&*post, ClientMail::Plan);
            }
        })?);
        Ok(keepers)
    }

    /// Takes an address from the configuration. Returns true if the servers have changed.
    pub(super) fn resolved(&self, target: usize, addresses: &[SocketAddr]) -> bool {
        let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_in(roster, target, addresses)
    }

    /// Takes what a configured server's name has resolved to, unless the name has been given up:
    /// then its server is removed, and must not come back by an answer that was on its way. Returns
    /// true if the servers have changed.
    fn answered(&self, name: &Name, target: usize, addresses: &[SocketAddr]) -> bool {
        // Whoever removes the server gives up the name first, and then waits for this lock.
        let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        !name.is_given_up() && self.take_in(roster, target, addresses)
    }

    fn take_in(
        &self,
        mut roster: MutexGuard<'_, Roster>,
        target: usize,
        addresses: &[SocketAddr],
    ) -> bool {
        let news = roster.answer(target, addresses, Instant::now());
        self.publish(roster, &news)
    }

    /// Makes the servers of `roster` those of all cores, if there is news of them. Returns whether
    /// there is.
    fn publish(&self, roster: MutexGuard<'_, Roster>, news: &roster::RosterChange) -> bool {
        if news.is_empty() {
            return false;
        }
        self.servers.store(Arc::new(roster.servers().to_vec()));
        drop(roster);
        self.take_news(news);
        true
    }

    /// Takes in which servers have appeared, vanished and changed, and logs it.
    fn take_news(&self, news: &roster::RosterChange) {
        for server in &news.vanished {
            self.same_server().vanished(server.number);
        }
        for server in &news.changed {
            let mut same_server = self.same_server();
            let changes = same_server.moved(server.number, server.target());
            self.write_rests(&changes);
        }
        let targets = self.targets();
        let is_named = |server: &&Arc<ServerState>| {
            let target = targets.get(server.target());
            target.is_some_and(|target| !target.name.is_literal())
        };
        for server in news.appeared.iter().filter(is_named) {
            if stand_in::is_one(server.address) {
                tracing::info!(
                    server = self.title(server),
                    "its proxy is asked for the name that this host cannot resolve"
                );
            } else {
                tracing::info!(server = self.title(server), "a server has appeared");
            }
        }
        for server in news.vanished.iter().filter(is_named) {
            tracing::info!(
                server = self.title(server),
                "a server has vanished; its lanes are left to their flows"
            );
        }
        if news.surplus > 0 {
            tracing::warn!(
                surplus = news.surplus,
                limit = roster::SERVERS_MAX,
                "more addresses than one client can have servers; the others are left out"
            );
        }
    }

    pub(super) fn same_server(&self) -> MutexGuard<'_, SameServer> {
        // It is locked only when a lane has registered or ended.
        self.same_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane to `server` has registered with the process of this id. Returns true if the cores
    /// must plan again.
    pub(super) fn registered_with(&self, server: &ServerState, instance_id: [u8; 16]) -> bool {
        let forgotten = self.forget_stand_ins();
        // The lock is held until the result is written, because two cores must not write in another
        // order than they decided.
        let mut same_server = self.same_server();
        let change = same_server.registered(server.number, server.target(), instance_id);
        if change.is_some() {
            server.set_rests(true);
            drop(same_server);
            tracing::info!(
                server = self.title(server),
                "another address of a server that is served already; it is dialled when that one fails"
            );
        }
        change.is_some() || forgotten
    }

    /// Removes stand-ins that are needed no more: their proxies are not asked for the names any
    /// more, and no lane is left there, or others serve. Returns true if the cores must plan again.
    fn forget_stand_ins(&self) -> bool {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        if !roster.has_idle_stand_ins() {
            return false;
        }
        let news = roster.without_idle_stand_ins();
        self.publish(roster, &news)
    }

    /// A lane to `server` has ended. Returns true if the cores must plan again.
    pub(super) fn lane_ended(&self, server: &ServerState) -> bool {
        let mut same_server = self.same_server();
        let changes = same_server.ended(server.number);
        self.write_rests(&changes);
        drop(same_server);
        let forgotten = self.forget_stand_ins();
        !changes.is_empty() || forgotten
    }

    /// Nobody answers on any lane to `server` any more, or somebody does again. Returns true if the
    /// cores must plan again.
    pub(super) fn server_unanswered(&self, server: &ServerState, unanswered: bool) -> bool {
        let mut same_server = self.same_server();
        let changes = same_server.unanswered(server.number, unanswered);
        self.write_rests(&changes);
        drop(same_server);
        !changes.is_empty()
    }

    pub(super) fn write_rests(&self, changes: &[same_server::RestChange]) {
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
            .filter(|it| it.target() == server.target() && it.number != server.number);
        others.cloned().collect()
    }

    /// Whether another address of the same configured server serves.
    pub(super) fn serves_elsewhere(&self, server: &ServerState) -> bool {
        let others = self.other_addresses(server);
        others.iter().any(|it| it.has_lanes())
    }

    /// Whether lanes are registered, but no server with lanes accepts a single service of this
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

    /// Why lanes to the server ride TLS alone, if they do.
    pub(super) fn tls_alone(&self, server: &ServerState) -> Option<&'static str> {
        let targets = self.targets();
        let target = targets.get(server.target());
        if target.is_some_and(|it| it.configured.transport == Transport::Tls) {
            Some(TLS_IS_CONFIGURED)
        } else if stand_in::is_one(server.address) {
            Some("only its proxy knows its address")
        } else {
            None
        }
    }

    /// The name of a server in logs.
    pub(super) fn title(&self, server: &ServerState) -> String {
        match self.targets().get(server.target()) {
            Some(target) if !target.name.is_literal() => format!("{} ({server})", target.name),
            _ => server.to_string(),
        }
    }

    /// Counts a lane as registered until the result is dropped.
    pub(super) fn lane_registered(&self) -> RegisteredLane {
        let lane = self.readiness.lane_registered();
        if !self.registered_once.swap(true, Ordering::AcqRel) {
            self.readiness.role_ready("client");
        }
        lane
    }
}

/// A random id that tells people which host this is.
fn drawn_client_id() -> String {
    let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
    let random = u32::from_be_bytes([a, b, c, d]);
    format!("{}-{random:08x}", process::host_name())
}

/// Sends mail to all cores, for threads that are not cores: waits for room in each mailbox.
fn tell_all_cores(post: &dyn Post<ClientMail>, mail: ClientMail) {
    for core in 0..post.cores() {
        while post.send(core, mail).is_err() {
            std::thread::sleep(MAIL_PAUSE);
        }
    }
}
