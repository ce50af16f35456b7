//! Taking up another configuration of the client role: everything that can fail is done before
//! anything changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_config::{Client, Config, ServerTarget};

use super::{ClientSettings, ClientShared, PoisonError, Target};
use crate::client::MAIL_PAUSE;
use crate::client::mail::ClientMail;
use crate::client::servers::roster::{Roster, RosterChange};
use crate::client::servers::take_up::Generation;
use crate::client::services::Services;
use crate::core::mailbox::Post;
use crate::quic::credentials::{ClientCredentials, KeptCredentials};
use crate::resolve::{Keeper, Name};

/// How long another configuration waits until the names of its services are known, or known to be
/// unknown, because a lane brings flows at once; and likewise for those of servers that may be the
/// same as those that it removes.
const NAMES_PATIENCE: Duration = Duration::from_secs(2);

/// How long the answer to another configuration waits for lanes that register by it. What takes
/// longer is told by the log and `/status`.
const LANES_PATIENCE: Duration = Duration::from_secs(2);

/// Pause between two checks of what is waited for.
const POLL: Duration = Duration::from_millis(5);

/// How long to retry telling a core whose mailbox is full. A core that takes nothing for this long
/// is stuck.
const PLAN_PATIENCE: Duration = Duration::from_secs(10);

/// Everything that has been read and started for another configuration, and only has to be used.
/// Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Prepared {
    config: Arc<Config>,
    credentials: Arc<ClientCredentials>,
    services: Arc<Services>,
    /// Hosts of services that are removed.
    hosts_gone: Vec<Arc<Name>>,
    hosts_new: Vec<Keeper>,
    /// Indexes of configured servers that are removed.
    targets_gone: Vec<usize>,
    targets_new: Vec<NewTarget>,
}

/// A configured server that is new, or has other settings than before.
#[derive(Debug)]
struct NewTarget {
    /// Its index. One with other settings keeps the index of that before.
    place: usize,
    target: Arc<Target>,
    keepers: Vec<Keeper>,
}

impl ClientShared {
    /// Prepares for another configuration, whose section is `client`. Nothing changes yet.
    ///
    /// # Errors
    /// If a certificate cannot be used, or a thread for a name cannot be started.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        config: &Arc<Config>,
        client: &Client,
        post: &Arc<dyn Post<ClientMail>>,
    ) -> Result<Prepared, String> {
        let credentials = KeptCredentials::usable(client).map_err(|error| error.to_string())?;
        let no_thread = |error: std::io::Error| format!("no thread for a name: {error}");
        let before = self.settings();
        let is_as_before = before
            .client()
            .is_some_and(|old| old.services == client.services);
        let services = match is_as_before {
            true => Arc::clone(&before.services),
            false => Arc::new(Services::after(&before.services, &client.services)),
        };
        let (known, wanted) = (before.services.hosts(), services.hosts());
        let is_among =
            |host: &Arc<Name>, of: &[Arc<Name>]| of.iter().any(|it| Arc::ptr_eq(it, host));
        let new = wanted.iter().filter(|host| !is_among(host, &known));
        let hosts_new = new.map(|host| self.host_keeper(host));
        let hosts_new = hosts_new.collect::<Result<_, _>>().map_err(no_thread)?;
        let gone = known.iter().filter(|host| !is_among(host, &wanted));
        let (targets_gone, new) = changed_targets(&self.targets(), &client.servers);
        let prepare_target = |(place, configured): (usize, &ServerTarget)| {
            let target = Arc::new(Target::new(configured));
            let keepers = self.target_keepers(place, &target, post)?;
            Ok(NewTarget {
                place,
                target,
                keepers,
            })
        };
        let targets_new = new.into_iter().map(prepare_target);
        let targets_new = targets_new.collect::<Result<_, _>>().map_err(no_thread)?;
        Ok(Prepared {
            config: Arc::clone(config),
            credentials,
            hosts_gone: gone.cloned().collect(),
            hosts_new,
            services,
            targets_gone,
            targets_new,
        })
    }

    /// Takes up what is prepared, and tells the cores by `post`. Lanes whose services have changed,
    /// or whose server or client has other settings, are replaced: the new ones register before the
    /// old ones are left to their flows. Returns what did not work.
    pub(crate) fn take_up(&self, prepared: Prepared, post: &dyn Post<ClientMail>) -> Vec<String> {
        let before = self.settings();
        let Some(client) = prepared.config.client.as_ref() else {
            return Vec::new();
        };
        let shows_others = self.changes_credentials(&prepared);
        self.credentials.change(prepared.credentials, client);
        prepared.hosts_new.into_iter().for_each(Keeper::begin);
        let services = prepared.services;
        let are_others = !Arc::ptr_eq(&services, &before.services);
        if are_others {
            wait_until(NAMES_PATIENCE, || services.are_known());
        }
        let alike = before.client().is_some_and(|it| register_alike(it, client));
        let anew = are_others || shows_others || !alike;
        self.settings.store(Arc::new(ClientSettings {
            config: Arc::clone(&prepared.config),
            services,
            generation: before.generation + u64::from(anew),
        }));
        prepared.hosts_gone.iter().for_each(|host| host.give_up());
        self.take_up_targets(prepared.targets_new, &prepared.targets_gone);
        let problems = tell_cores_to_plan(post);
        wait_until(LANES_PATIENCE, || self.is_judged());
        problems
    }

    /// Whether what is prepared has another certificate, key or CA than before, in other files or
    /// in the same ones. Whoever changes them wants to know now whether they are good, and not when
    /// the lanes of before end.
    pub(crate) fn changes_credentials(&self, prepared: &Prepared) -> bool {
        self.credentials.would_change(&prepared.credentials)
    }

    /// Whether it is known of each server that has lanes if there are lanes by the present
    /// configuration.
    fn is_judged(&self) -> bool {
        let settings = self.settings();
        let servers = self.servers.load();
        let mut served = servers.iter().filter(|server| server.lanes() > 0);
        served.all(|server| {
            let present = Generation::of(settings.generation, server);
            server.take_up.judged(present).is_some()
        })
    }

    /// Adds and changes configured servers, and removes those that are gone. The latter go last, so
    /// that a server at the same address as a new one keeps its lanes until others serve.
    fn take_up_targets(&self, new: Vec<NewTarget>, gone: &[usize]) {
        let mut targets = self.targets().to_vec();
        for NewTarget { place, target, .. } in &new {
            match targets.get_mut(*place) {
                Some(before) => {
                    before.give_up();
                    *before = Arc::clone(target);
                }
                None => targets.push(Arc::clone(target)),
            }
        }
        self.targets.store(Arc::new(targets));
        let mut names = Vec::new();
        for NewTarget {
            place,
            target,
            keepers,
        } in new
        {
            let server_name = target.server_name.clone();
            self.on_roster(|it| it.configure(place, server_name, target.asks_its_proxy()));
            // Only now there is a place for their answers.
            keepers.into_iter().for_each(Keeper::begin);
            names.push((place, Arc::clone(&target.name)));
        }
        if !gone.is_empty() {
            wait_until(NAMES_PATIENCE, || {
                names.iter().all(|(_, name)| name.was_asked())
            });
        }
        for (place, name) in names {
            self.answered(&name, place, &name.addresses());
        }
        for place in gone {
            if let Some(target) = self.targets().get(*place) {
                target.give_up();
            }
            self.on_roster(|roster| roster.remove(*place));
        }
    }

    /// Changes the list of servers.
    fn on_roster(&self, change: impl FnOnce(&mut Roster) -> RosterChange) {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let news = change(&mut roster);
        self.servers.store(Arc::new(roster.servers().to_vec()));
        drop(roster);
        self.take_news(&news);
    }
}

impl Target {
    /// Keeps its names fresh no more: it is removed, or another one takes its place.
    fn give_up(&self) {
        self.name.give_up();
        if let Ok(Some(proxy)) = &self.proxy {
            proxy.name.give_up();
        }
    }
}

/// Whether lanes register alike by both configurations, apart from their services and servers, and
/// from their certificates ([`ClientShared::changes_credentials`]).
fn register_alike(one: &Client, other: &Client) -> bool {
    let timing = |it: &Client| {
        (
            it.heartbeat_interval,
            it.health_timeout,
            it.drain_timeout,
            it.probe_interval,
        )
    };
    timing(one) == timing(other) && one.auth == other.auth
}

/// What changes from the configured servers `targets` to `wanted`: the indexes of those that are
/// removed, and those that are new or have other settings, with their indexes. A server keeps its
/// index if its host and port stay.
fn changed_targets<'a>(
    targets: &[Arc<Target>],
    wanted: &'a [ServerTarget],
) -> (Vec<usize>, Vec<(usize, &'a ServerTarget)>) {
    let configured = |place: &usize| &targets[*place].configured;
    let (given_up, current): (Vec<usize>, Vec<usize>) =
        (0..targets.len()).partition(|place| targets[*place].name.is_given_up());
    let (stay, mut gone): (Vec<usize>, Vec<usize>) = current
        .iter()
        .partition(|place| wanted.contains(configured(place)));
    let mut new: Vec<(usize, &ServerTarget)> = Vec::new();
    let mut next = targets.len();
    for server in wanted {
        let is_there = stay.iter().any(|place| configured(place) == server);
        if is_there || new.iter().any(|(_, it)| *it == server) {
            continue;
        }
        let address = (&server.host, server.port);
        let at_same = |place: &usize| {
            let before = configured(place);
            (&before.host, before.port) == address
        };
        let place = if let Some(changed) = gone.iter().position(at_same) {
            gone.remove(changed)
        } else if let Some(again) = given_up.iter().find(|place| configured(place) == server) {
            // A server that was configured before has its index already.
            *again
        } else {
            next += 1;
            next - 1
        };
        new.push((place, server));
    }
    (gone, new)
}

/// Waits until `is_so`, but no longer than `patience`.
fn wait_until(patience: Duration, is_so: impl Fn() -> bool) {
    let until = Instant::now() + patience;
    while !is_so() && Instant::now() < until {
        std::thread::sleep(POLL);
    }
}

/// Tells the cores to plan, and waits for a while if their mailboxes are full. Returns what did not
/// work.
fn tell_cores_to_plan(post: &dyn Post<ClientMail>) -> Vec<String> {
    let until = Instant::now() + PLAN_PATIENCE;
    let mut problems = Vec::new();
    for core in 0..post.cores() {
        while post.send(core, ClientMail::Plan).is_err() {
            if Instant::now() >= until {
                problems.push(format!(
                    "core {core} is stuck, and the client on it goes on as before"
                ));
                break;
            }
            std::thread::sleep(MAIL_PAUSE);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use qmux_config::certs::{CertsRequest, Generated, generate, write};

    use super::*;
    use crate::core::mailbox::Mailboxes;
    use crate::ready::Readiness;

    fn config(dir: &Path, server: &str, local: &str) -> Arc<Config> {
        config_with_pair(dir, server, local, "client")
    }

    /// A configuration whose certificate and key are in the files of this name.
    fn config_with_pair(dir: &Path, server: &str, local: &str, pair: &str) -> Arc<Config> {
        let text = format!(
            r#"
            [[client.servers]]
            address = "{server}:8443"
            server_name = "tunnel.test"
            [client.local]
            host = "{local}"
            port = 8080
            [client.tls]
            ca_cert_file = "ca.crt"
            client_cert_file = "{pair}.crt"
            client_key_file = "{pair}.key"
            "#
        );
        Arc::new(Config::parse(&text, &dir.join("dp.toml")).expect("a config"))
    }

    fn certs() -> Generated {
        let request = CertsRequest {
            server_names: vec!["tunnel.test".into()],
            days: 30,
        };
        generate(&request).expect("certificates")
    }

    struct World {
        dir: tempfile::TempDir,
        shared: Arc<ClientShared>,
        post: Arc<dyn Post<ClientMail>>,
    }

    impl World {
        /// A client whose service is at `localhost`.
        fn new() -> World {
            let dir = tempfile::tempdir().expect("a directory");
            write(&certs(), dir.path(), false).expect("written");
            let config = config(dir.path(), "127.0.0.1", "localhost");
            let client = config.client.as_ref().expect("a client");
            let readiness = Arc::new(Readiness::new(1));
            let shared = Arc::new(ClientShared::new(&config, client, &readiness));
            let (mailboxes, _wakes) = Mailboxes::<ClientMail>::new(1).expect("socket pairs");
            World {
                dir,
                shared,
                post: Arc::new(mailboxes),
            }
        }

        fn prepare(&self, config: &Arc<Config>) -> Result<Prepared, String> {
            let client = config.client.as_ref().expect("a client");
            self.shared.prepare(config, client, &self.post)
        }

        fn addresses(&self) -> Vec<SocketAddr> {
            let servers = self.shared.servers.load();
            servers.iter().map(|server| server.address).collect()
        }
    }

    #[test]
    fn what_is_prepared_and_not_taken_up_or_cannot_be_prepared_changes_nothing() {
        let world = World::new();
        let (settings, addresses) = (world.shared.settings(), world.addresses());
        let other = config(world.dir.path(), "127.0.0.2", "localhost.");
        drop(world.prepare(&other).expect("usable"));
        std::fs::write(world.dir.path().join("client.key"), "no key").expect("written");
        let refused = world.prepare(&other).expect_err("its key is gone");
        assert!(refused.contains("client.key"), "{refused}");
        assert!(Arc::ptr_eq(&settings, &world.shared.settings()));
        assert_eq!(world.addresses(), addresses);
        let hosts = settings.services.hosts();
        assert!(hosts.iter().all(|host| !host.is_given_up()));
        assert!(!world.shared.targets()[0].name.is_given_up());
    }

    #[test]
    fn what_is_taken_up_replaces_servers_and_hosts() {
        let world = World::new();
        let before = world.shared.settings();
        let other = config(world.dir.path(), "127.0.0.2", "127.0.0.1");
        let prepared = world.prepare(&other).expect("usable");
        assert_eq!(
            world.shared.take_up(prepared, &*world.post),
            [] as [&str; 0]
        );
        assert_eq!(
            world.addresses(),
            ["127.0.0.2:8443".parse().expect("literal")]
        );
        assert!(before.services.hosts()[0].is_given_up());
        assert_eq!(world.shared.settings().generation, before.generation + 1);
    }

    #[test]
    fn lanes_register_anew_for_another_certificate_key_or_ca_in_whatever_file_it_is() {
        let world = World::new();
        world.shared.keep_certificates().expect("usable");
        let path = |name: &str| world.dir.path().join(name);
        let registers_anew = |pair: &str| {
            let before = world.shared.settings().generation;
            let wanted = config_with_pair(world.dir.path(), "127.0.0.1", "localhost", pair);
            let prepared = world.prepare(&wanted).expect("usable");
            let changes = world.shared.changes_credentials(&prepared);
            let problems = world.shared.take_up(prepared, &*world.post);
            assert_eq!(problems, [] as [&str; 0]);
            let anew = world.shared.settings().generation > before;
            assert_eq!(anew, changes);
            anew
        };
        assert!(!registers_anew("client"), "nothing has changed");
        for name in ["client.crt", "client.key"] {
            std::fs::copy(path(name), path(&name.replace("client", "copy"))).expect("copied");
        }
        assert!(!registers_anew("copy"), "it is the same certificate");
        let other = certs();
        std::fs::write(path("copy.crt"), &other.client_cert_pem).expect("written");
        std::fs::write(path("copy.key"), &other.client_key_pem).expect("written");
        assert!(registers_anew("copy"), "it has another certificate");
        assert!(registers_anew("client"), "it has the first one again");
        let key = std::fs::read_to_string(path("client.key")).expect("a key");
        std::fs::write(path("client.key"), format!("# a note\n{key}")).expect("written");
        assert!(registers_anew("client"), "its key may be another one");
        std::fs::write(path("ca.crt"), &other.ca_cert_pem).expect("written");
        assert!(registers_anew("client"), "it trusts another CA");
        assert!(!registers_anew("client"), "all of that is taken up");
    }

    #[test]
    fn a_server_that_was_removed_is_not_brought_back_by_an_answer_on_its_way() {
        let world = World::new();
        let name = Name::later("server.test", 8443, "a test");
        let answer = ["192.0.2.1:8443".parse().expect("literal")];
        assert!(world.shared.answered(&name, 0, &answer));
        assert!(world.addresses().contains(&answer[0]));
        // The resolver has found the name wanted, and then the following happens:
        name.give_up();
        world.shared.on_roster(|roster| roster.remove(0));
        assert!(!world.shared.answered(&name, 0, &answer));
        assert_eq!(world.addresses(), [] as [SocketAddr; 0]);
    }
}
