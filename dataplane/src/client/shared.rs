//! What all cores of the client role share: which servers there are, who this client is, and where
//! its services are.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use qmux_config::{Client, Config, ProxyAddress, ServerTarget};

use super::MAIL_PAUSE;
use super::mail::ClientMail;
use super::proxy;
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

/// Where a proxy's name stands in the config.
const PROXY_SETTING: &str = "proxy in [[client.servers]]";
/// One configuration of the client role. It never changes; another one takes its place.
#[derive(Debug)]
pub(crate) struct ClientSettings {
    /// The whole configuration.
    pub(crate) config: Arc<Config>,
    /// What is behind this client.
    pub(crate) services: Arc<Services>,
    /// Another number means that lanes are to be registered anew.
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
    /// Where it is.
    pub(crate) name: Arc<Name>,
    /// What its certificate must be for.
    pub(crate) server_name: String,
    /// As configured.
    pub(super) configured: ServerTarget,
    /// The proxy that TLS goes through, and where that is; or why there can be none.
    pub(super) proxy: Result<Option<ProxyTarget>, String>,
}

/// A proxy and where it is.
#[derive(Debug)]
pub(super) struct ProxyTarget {
    pub(super) proxy: ProxyAddress,
    pub(super) name: Arc<Name>,
}

impl ProxyTarget {
    fn of(server: &ServerTarget) -> Result<Option<ProxyTarget>, String> {
        let proxy = proxy::of(&server.proxy, &server.host, server.port)?;
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
}

/// What all cores of the client role share.
#[derive(Debug)]
pub(crate) struct ClientShared {
    settings: ArcSwap<ClientSettings>,
    /// The configured id, or one drawn at this start.
    pub(crate) client_id: String,
    /// At which server core lanes begin; drawn at this start.
    pub(super) begins_at: u8,
    /// Drawn at this start.
    pub(crate) instance_id: [u8; 16],
    /// Those that were configured once are among them: their places are theirs.
    targets: ArcSwap<Vec<Arc<Target>>>,
    /// Changed by the resolvers' threads, and by another configuration.
    pub(super) roster: Mutex<Roster>,
    /// The servers of the roster, for the cores to read.
    pub(super) servers: ArcSwap<Vec<Arc<ServerState>>>,
    /// Which addresses of a name lead to one server.
    pub(super) twins: Mutex<Twins>,
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
            twins: Mutex::default(),
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
    /// With a text if it cannot be used.
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

    /// The settings now.
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
            self.keep_host_fresh(&host)?;
        }
        for (index, target) in self.targets().iter().enumerate() {
            self.keep_target_fresh(index, target, post)?;
        }
        Ok(())
    }

    fn resolve_interval(&self) -> Duration {
        let settings = self.settings();
        let client = settings.client();
        client.map_or(Duration::MAX, |client| client.resolve_interval)
    }

    fn keep_host_fresh(&self, host: &Arc<Name>) -> std::io::Result<()> {
        resolve::keep_fresh(host, self.resolve_interval(), |_| {})
    }

    fn keep_target_fresh(
        self: &Arc<Self>,
        index: usize,
        target: &Target,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> std::io::Result<()> {
        if let Ok(Some(proxy)) = &target.proxy {
            self.keep_host_fresh(&proxy.name)?;
        }
        let (shared, post) = (Arc::clone(self), Arc::clone(post));
        resolve::keep_fresh(&target.name, self.resolve_interval(), move |addresses| {
            if shared.resolved(index, addresses) {
                tell_all_cores(&*post, ClientMail::Plan);
            }
        })
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
        self.say_news(target, &news);
        true
    }

    fn say_news(&self, target: usize, news: &roster::News) {
        for server in &news.vanished {
            self.twins().vanished(server.number);
        }
        let targets = self.targets();
        if targets
            .get(target)
            .is_some_and(|target| !target.name.is_literal())
        {
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
        match self.targets().get(server.target) {
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

// ---- another configuration ---------------------------------------------------------------------

impl ClientShared {
    /// Takes up another configuration, whose section is `client`, and tells the cores by `post`.
    /// Lanes whose services have changed are made anew: the new ones register before the old ones
    /// are left to their flows.
    ///
    /// # Errors
    /// If a certificate cannot be used, or there is no thread for a name; nothing has changed then.
    pub(crate) fn change(
        self: &Arc<Self>,
        config: &Arc<Config>,
        client: &Client,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> Result<(), String> {
        let before = self.settings();
        let Some(old) = before.client() else {
            return Ok(());
        };
        self.credentials
            .change(client)
            .map_err(|error| error.to_string())?;
        let services = if old.services == client.services {
            Arc::clone(&before.services)
        } else {
            let services = Services::after(&before.services, &client.services);
            let known = before.services.hosts();
            let stays = services.hosts();
            for gone in known
                .iter()
                .filter(|it| !stays.iter().any(|host| Arc::ptr_eq(it, host)))
            {
                gone.give_up();
            }
            for host in stays {
                if !known.iter().any(|it| Arc::ptr_eq(it, &host)) {
                    let kept = self.keep_host_fresh(&host);
                    kept.map_err(|error| format!("resolver: {error}"))?;
                }
            }
            wait_until_asked(&services);
            Arc::new(services)
        };
        let timing = |it: &Client| {
            (
                it.heartbeat_interval,
                it.health_timeout,
                it.drain_timeout,
                it.probe_interval,
            )
        };
        let anew = !Arc::ptr_eq(&services, &before.services) || timing(old) != timing(client);
        self.settings.store(Arc::new(ClientSettings {
            config: Arc::clone(config),
            services,
            generation: before.generation + u64::from(anew),
        }));
        let changed = self.change_targets(client, post);
        tell_cores_to_plan(&**post);
        changed.map_err(|error| format!("resolver: {error}"))
    }

    /// Servers are added and removed.
    fn change_targets(
        self: &Arc<Self>,
        client: &Client,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> std::io::Result<()> {
        let mut result = Ok(());
        for (index, target) in self.targets().iter().enumerate() {
            if !target.name.is_given_up() && !client.servers.contains(&target.configured) {
                target.name.give_up();
                let news = self.on_roster(|roster| roster.remove(index));
                self.say_news(index, &news);
            }
        }
        for configured in &client.servers {
            let mut targets = self.targets().to_vec();
            let known = targets.iter().position(|it| it.configured == *configured);
            if known.is_some_and(|known| !targets[known].name.is_given_up()) {
                continue;
            }
            let target = Arc::new(Target::new(configured));
            let index = known.unwrap_or(targets.len());
            if known.is_some() {
                targets[index] = Arc::clone(&target);
            } else {
                targets.push(Arc::clone(&target));
                self.on_roster(|roster| roster.add(configured.server_name.clone()));
            }
            self.targets.store(Arc::new(targets));
            if target.name.is_literal() {
                self.resolved(index, &target.name.addresses());
            } else {
                result = result.and(self.keep_target_fresh(index, &target, post));
            }
        }
        result
    }

    fn on_roster<T>(&self, change: impl FnOnce(&mut Roster) -> T) -> T {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut roster);
        self.servers.store(Arc::new(roster.servers().to_vec()));
        result
    }
}

/// How long another configuration waits for the names of its services.
const HOSTS_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two looks whether they are known.
const HOSTS_POLL: Duration = Duration::from_millis(5);

/// Waits until it is known where the services are, or that nobody knows, but not for long: a lane
/// brings flows at once.
fn wait_until_asked(services: &Services) {
    let until = Instant::now() + HOSTS_PATIENCE;
    while !services.are_known() && Instant::now() < until {
        std::thread::sleep(HOSTS_POLL);
    }
}

/// An id that tells people which host it is, and no two clients have.
fn drawn_client_id() -> String {
    let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
    let random = u32::from_be_bytes([a, b, c, d]);
    format!("{}-{random:08x}", process::host_name())
}

/// How long a core whose mailbox is full is told again. One that takes nothing for so long is stuck.
const PLAN_PATIENCE: Duration = Duration::from_secs(10);

/// The same for who must not wait for ever.
fn tell_cores_to_plan(post: &dyn Post<ClientMail>) {
    let until = Instant::now() + PLAN_PATIENCE;
    for core in 0..post.cores() {
        while post.send(core, ClientMail::Plan).is_err() && Instant::now() < until {
            std::thread::sleep(MAIL_PAUSE);
        }
    }
}

/// For threads that are no core: waits for room in each mailbox.
fn tell_all_cores(post: &dyn Post<ClientMail>, mail: ClientMail) {
    for core in 0..post.cores() {
        while post.send(core, mail).is_err() {
            std::thread::sleep(MAIL_PAUSE);
        }
    }
}
