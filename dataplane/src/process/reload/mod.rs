//! Another configuration for a running process: by a signal, by the admin endpoint, or because a
//! file that the configuration names has changed.
//!
//! It happens on a thread of its own, which reads and judges all of it, and binds what is new,
//! before anything changes: a configuration that cannot be had changes nothing. What changes is
//! swapped as a whole; the cores are told, and flows keep what they began with. When a file has
//! changed, the text of the config file is the one that was taken up last: who is editing it is not
//! surprised by half of his work.

mod files;
mod listening;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use qmux_config::{Change, Client, Config, Server, changes_between};

use super::mail::CoreMail;
use super::status::Status;
use super::{access_log, bind, check};
use crate::client::ClientShared;
use crate::client::mail::ClientMail;
use crate::core::mailbox::{Mailboxes, Post};
use crate::core::memory;
use crate::server::ServerShared;
use crate::server::mail::ServerMail;
use crate::server::shared::plan::{CoreChanges, DoorPlan, DoorSockets, Plan};
use crate::sys;
pub(crate) use files::Watched;
pub(super) use listening::Listening;

/// Pause between two looks at the files.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// Orders that wait at a time; one more is refused.
pub(crate) const ORDERS_MAX: usize = 8;

/// How long the cores may take to do what they are told. They need milliseconds.
const CORES_PATIENCE: Duration = Duration::from_secs(10);

/// Pause before a core with a full mailbox is told again.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// Lines of an answer: a file of thousands of services may differ in every line.
const LINES_MAX: usize = 1_000;

/// Why a configuration was not taken up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is wrong, or something in it cannot be had.
    Unusable(String),
    /// The process is about to end.
    Draining,
}

/// What came of an order: one line for each change.
pub(crate) type Outcome = Result<Vec<String>, Refused>;

/// Where the answer to an order goes.
pub(crate) type Answer = Box<dyn FnOnce(Outcome) + Send>;

/// Who reloads.
pub(super) struct Reloader {
    pub(super) path: PathBuf,
    /// The text of the start: what only a start takes up is as it was then.
    pub(super) started: String,
    /// The text that was taken up last.
    pub(super) text: String,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) cores: usize,
    pub(super) allowed_descriptors: Option<u64>,
    pub(super) server: Option<Arc<ServerShared>>,
    pub(super) client: Option<Arc<ClientShared>>,
    pub(super) status: Arc<Status>,
    pub(super) mailboxes: Mailboxes<CoreMail>,
    pub(super) listening: Arc<Listening>,
    pub(super) watched: Watched,
}

/// A configuration was taken up.
struct Taken {
    lines: Vec<String>,
    /// It is not the one of before.
    changed: bool,
}

/// What has been read and bound and only has to be used.
struct Ready {
    config: Arc<Config>,
    server: Option<(Plan, Vec<Vec<DoorSockets>>)>,
    access_log: Option<access_log::Prepared>,
}

impl Reloader {
    /// Starts the thread, which ends with the process.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(super) fn start(mut self, orders: Receiver<Answer>) -> std::io::Result<()> {
        let config = self.config.load_full();
        self.watched.watch(&config.files);
        let thread = std::thread::Builder::new().name("reload".into());
        thread.spawn(move || {
            let mut next_look = Instant::now() + LOOK_PAUSE;
            loop {
                match orders.recv_deadline(next_look) {
                    Ok(answer) => answer(self.contained(Reloader::ordered)),
                    Err(RecvTimeoutError::Timeout) => {
                        let _said = self.contained(|this| {
                            this.look();
                            Ok(Vec::new())
                        });
                        next_look = Instant::now() + LOOK_PAUSE;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(())
    }

    /// A panic, which is a defect of ours, is the end of this reload, and of none that follows.
    fn contained(&mut self, work: impl FnOnce(&mut Reloader) -> Outcome) -> Outcome {
        let work = std::panic::AssertUnwindSafe(|| work(self));
        std::panic::catch_unwind(work).unwrap_or_else(|_| {
            let why =
                "a defect of this program; its log has more, and the changes may be incomplete";
            Err(Refused::Unusable(why.into()))
        })
    }

    /// Somebody wants the file to be read again.
    fn ordered(&mut self) -> Outcome {
        let path = self.path.display().to_string();
        let text = Config::text_of(&self.path);
        let text = text.map_err(|errors| Refused::Unusable(errors.to_string()));
        // Those that have changed as well are read with it.
        let _changed = self.watched.look();
        let outcome = text.and_then(|text| self.take_up(text));
        self.count(&outcome);
        let outcome = outcome.map(|taken| taken.lines);
        match &outcome {
            Ok(lines) => {
                tracing::info!(
                    config = path,
                    changes = lines.len(),
                    "configuration reloaded"
                );
                for line in lines {
                    tracing::info!("reload: {line}");
                }
            }
            Err(Refused::Unusable(why)) => tracing::error!(
                config = path,
                why,
                "the configuration cannot be used, and nothing has changed"
            ),
            Err(Refused::Draining) => {
                tracing::warn!("no reload: the process is about to end");
            }
        }
        outcome
    }

    /// Looks whether files have changed that the configuration names.
    fn look(&mut self) {
        let files = self.watched.look();
        let doubtful = self.watched.take_doubt();
        if files.is_empty() && !doubtful && !self.watched.is_unusable() {
            return;
        }
        let outcome = self.take_up(self.text.clone());
        match outcome {
            Ok(Taken { changed: false, .. }) | Err(Refused::Draining) => {}
            Ok(_) => {
                self.count(&outcome);
                let files: Vec<_> = files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect();
                tracing::info!(
                    ?files,
                    "files that the configuration names have changed, and are used now"
                );
            }
            Err(Refused::Unusable(ref why)) => {
                if self.watched.unusable() {
                    self.count(&outcome);
                    tracing::warn!(
                        why,
                        "files have changed and cannot be used as they are; those of before go on \
                         until they can"
                    );
                }
            }
        }
    }

    fn count(&self, outcome: &Result<Taken, Refused>) {
        let counts = &self.status.reloads;
        let counted = match outcome {
            Ok(_) => &counts.done,
            Err(_) => &counts.refused,
        };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes up the configuration of this text, all of it or nothing.
    fn take_up(&mut self, text: String) -> Result<Taken, Refused> {
        let unusable = |errors: qmux_config::Errors| Refused::Unusable(errors.to_string());
        let wanted = Config::parse(&text, &self.path).map_err(unusable)?;
        for warning in &wanted.warnings {
            tracing::warn!("{warning}");
        }
        let wanted = bind::without_ipv6(wanted, sys::bind::has_ipv6);
        let ready = self.prepare(Arc::new(self.with_what_stays(wanted)))?;
        let mut lines = self.lines(&text);
        let files = ready.config.files.clone();
        let changed = !self.is_as_before(&ready);
        if changed {
            self.apply(ready, &mut lines)?;
        }
        self.text = text;
        self.watched.watch(&files);
        Ok(Taken { lines, changed })
    }

    /// Whether nothing would change, neither in the configuration nor in the files that it names.
    fn is_as_before(&self, ready: &Ready) -> bool {
        let without_warnings = |config: &Config| Config {
            warnings: Vec::new(),
            ..config.clone()
        };
        let shown = ready.server.as_ref().zip(self.server.as_ref());
        without_warnings(&ready.config) == without_warnings(&self.config.load())
            && shown.is_none_or(|((plan, _), shared)| !plan.changes_credentials(shared))
    }

    /// The configuration with what only a start takes up as it was at the start.
    fn with_what_stays(&self, wanted: Config) -> Config {
        let now = self.config.load();
        let server = match (&now.server, wanted.server) {
            (Some(now), Some(wanted)) => Some(server_with_what_stays(now, wanted)),
            (now, _) => now.clone(),
        };
        let client = match (&now.client, wanted.client) {
            (Some(now), Some(wanted)) => Some(Client {
                client_id: now.client_id.clone(),
                state_dir: now.state_dir.clone(),
                resolve_interval: now.resolve_interval,
                ..wanted
            }),
            (now, _) => now.clone(),
        };
        let mut limits = wanted.limits;
        limits.descriptors_reserved = now.limits.descriptors_reserved;
        Config {
            server,
            client,
            quic: now.quic.clone(),
            udp: now.udp.clone(),
            admin: now.admin.clone(),
            limits,
            ..wanted
        }
    }

    /// Reads and binds all that is needed. Nothing changes yet.
    fn prepare(&self, config: Arc<Config>) -> Result<Ready, Refused> {
        let unusable = |error: &dyn std::fmt::Display| Refused::Unusable(error.to_string());
        check::tls_contexts(&config).map_err(|error| unusable(&error))?;
        let server = match (&self.server, &config.server) {
            (Some(shared), Some(server)) => {
                let judged = bind::judge_descriptors(server, self.cores, self.allowed_descriptors);
                if let Some(warning) = judged.map_err(|error| unusable(&error))? {
                    tracing::warn!("{warning}");
                }
                let plan = shared.plan(&config, server).map_err(|why| unusable(&why))?;
                self.refuse_door_that_drains(shared, &plan)?;
                let (tcp_given_up, udp_given_up) = (plan.given_up(true), plan.given_up(false));
                let draining = shared.draining();
                let is_ours = |address, tcp| match tcp {
                    true => tcp_given_up.overlap(address),
                    false => udp_given_up.overlap(address) || draining.overlap(address),
                };
                let sockets = bind::all(&plan, self.cores, None, is_ours);
                Some((plan, sockets.map_err(|error| unusable(&error))?))
            }
            _ => None,
        };
        let setting = config.server.as_ref().map(|server| &server.access_log);
        let access_log = setting.map(access_log::prepare).transpose();
        Ok(Ready {
            access_log: access_log.map_err(|error| unusable(&error))?,
            config,
            server,
        })
    }

    /// The lanes of a door that was removed have its address until they end.
    fn refuse_door_that_drains(&self, shared: &ServerShared, plan: &Plan) -> Result<(), Refused> {
        let new = plan.doors.iter().filter(|door| door.is_new);
        for address in new.flat_map(DoorPlan::quic_addrs) {
            if let Some(left) = shared.door_drains_at(*address, Instant::now()) {
                return Err(Refused::Unusable(format!(
                    "{address} still belongs to a door that was removed, whose flows may go on: \
                     try again in {} s, or use another address",
                    left.as_secs() + 1
                )));
            }
        }
        Ok(())
    }

    /// Uses what is ready: from here on nothing is refused any more.
    fn apply(&mut self, ready: Ready, lines: &mut Vec<String>) -> Result<(), Refused> {
        let Ready {
            config,
            server,
            access_log,
        } = ready;
        if let Some((plan, sockets)) = server
            && let Some(shared) = &self.server
        {
            let opened = self.listening.open(&plan, &sockets);
            if !opened.map_err(|error| Refused::Unusable(error.to_string()))? {
                return Err(Refused::Draining);
            }
            let changes = shared.follow(&plan, sockets);
            let late = self.tell(changes);
            lines.extend(late);
        }
        if let (Some(shared), Some(client)) = (&self.client, &config.client) {
            let post: Arc<dyn Post<ClientMail>> = Arc::new(self.mailboxes.clone());
            // The certificates were tried before; one that was swapped since is taken up later.
            if let Err(why) = shared.change(&config, client, &post) {
                lines.push(format!("the client goes on as before: {why}"));
            }
        }
        if let Some(prepared) = access_log {
            prepared.take_up();
        }
        memory::change_limit(config.limits.memory);
        self.status.certificates.change(&config);
        self.config.store(config);
        Ok(())
    }

    /// Tells the cores, and waits until they have done it. Returns what did not work.
    fn tell(&self, changes: Vec<CoreChanges>) -> Vec<String> {
        let until = Instant::now() + CORES_PATIENCE;
        let (sender, receiver) = bounded(changes.len());
        let mut problems = Vec::new();
        for (core, mut changes) in changes.into_iter().enumerate() {
            changes.done = Some(sender.clone());
            let mut mail = CoreMail::Server(ServerMail::Change(Box::new(changes)));
            while let Err(back) = self.mailboxes.of(core).send(mail) {
                if Instant::now() >= until {
                    problems.push(format!("core {core} is stuck, and has not been told"));
                    break;
                }
                mail = back;
                std::thread::sleep(FULL_MAILBOX_PAUSE);
            }
        }
        drop(sender);
        problems.extend(answers(&receiver, until));
        problems
    }

    /// What differs from before, and what a start alone would take up.
    fn lines(&self, text: &str) -> Vec<String> {
        let taken = changes_between(&self.text, text);
        let taken = taken.iter().filter(|change| change.is_taken_up());
        let left = changes_between(&self.started, text);
        let left = left.iter().filter(|change| !change.is_taken_up());
        let left = left.map(|change: &Change| format!("needs a restart: {change}"));
        let mut lines: Vec<String> = taken.map(ToString::to_string).chain(left).collect();
        if lines.len() > LINES_MAX {
            let more = lines.len() - LINES_MAX;
            lines.truncate(LINES_MAX);
            lines.push(format!("… and {more} more"));
        }
        lines
    }
}

/// What the cores say, until all have done their part.
fn answers(receiver: &Receiver<Result<(), String>>, until: Instant) -> Vec<String> {
    let mut problems = Vec::new();
    loop {
        match receiver.recv_deadline(until) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => problems.push(format!("not all could be opened: {why}")),
            // All have answered, or are about to end.
            Err(RecvTimeoutError::Disconnected) => return problems,
            Err(RecvTimeoutError::Timeout) => {
                problems.push("a core takes long; it does its part when it can".into());
                return problems;
            }
        }
    }
}

fn server_with_what_stays(now: &Server, wanted: Server) -> Server {
    let mut tls = now.tls.clone();
    tls.server_cert = wanted.tls.server_cert;
    tls.server_key = wanted.tls.server_key;
    Server { tls, ..wanted }
}

/// How others have the process reload.
#[derive(Debug, Clone)]
pub(crate) struct Orders(Sender<Answer>);

impl Orders {
    /// With the end where they arrive.
    pub(crate) fn new() -> (Orders, Receiver<Answer>) {
        let (sender, receiver) = bounded(ORDERS_MAX);
        (Orders(sender), receiver)
    }

    /// Orders a reload. False if too many wait already, or this process has no config file; then the
    /// answer is never given.
    pub(crate) fn give(&self, answer: Answer) -> bool {
        self.0.try_send(answer).is_ok()
    }
}

/// What is counted of reloads.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Configurations taken up, because somebody wanted it or a file has changed.
    pub(crate) done: AtomicU64,
    /// Configurations that could not be used.
    pub(crate) refused: AtomicU64,
}
