//! Reload: another configuration for a running process, by a signal, by the admin endpoint, or
//! because a file that the configuration names has changed.
//!
//! A reload runs on a thread of its own. It reads and checks everything, and binds what is new,
//! before anything changes: a configuration that cannot be used changes nothing. What changes is
//! swapped as a whole; the cores are told, and flows keep the settings that they began with. If a
//! file has changed, the text of the config file is the one that was taken up last, so that
//! somebody who is editing it is not surprised by half of the work. For the same reason a file is
//! used only when it has not changed for a moment, unless a reload is ordered.

mod files;
mod listening;
mod stays;
mod texts;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use qmux_config::Config;

use super::exit::Failure;
use super::mail::CoreMail;
use super::status::Status;
use super::{access_log, bind, check};
use crate::client::mail::ClientMail;
use crate::client::{ClientShared, Prepared};
use crate::core::mailbox::{Mailboxes, Post};
use crate::core::memory;
use crate::server::ServerShared;
use crate::server::mail::ServerMail;
use crate::server::shared::plan::{CoreChanges, DoorPlan, DoorSockets, Plan};
use crate::sys;
use files::Look;
pub(super) use files::Watched;
pub(super) use listening::{Kept, Listening};
use texts::Roles;
pub(super) use texts::Texts;

/// Pause between two checks of the files.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// How long files must not have changed to be used.
const REST: Duration = Duration::from_secs(1);

/// Orders that wait at a time; one more is refused.
pub(crate) const ORDERS_MAX: usize = 8;

/// How long the cores may take to do what they are told. They need milliseconds.
const CORES_PATIENCE: Duration = Duration::from_secs(10);

/// Pause before a core with a full mailbox is told again.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// Why a configuration was not taken up, or not completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The configuration is wrong, or something that it needs cannot be had.
    Unusable(String),
    /// The configuration is in force, but something does not follow it, for these reasons.
    Incomplete(Vec<String>),
    /// The process is about to end.
    Draining,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Unusable(why) => f.write_str(why),
            Refused::Incomplete(problems) => f.write_str(&problems.join("; ")),
            Refused::Draining => f.write_str("the process is about to end"),
        }
    }
}

/// The result of an order: one line for each change.
pub(crate) type Outcome = Result<Vec<String>, Refused>;

/// Where the result of an order is sent.
pub(crate) type Answer = Box<dyn FnOnce(Outcome) + Send>;

/// Carries out reloads.
pub(super) struct Reloader {
    pub(super) path: PathBuf,
    pub(super) texts: Texts,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) cores: usize,
    pub(super) allowed_descriptors: Option<u64>,
    pub(super) server: Option<Arc<ServerShared>>,
    pub(super) client: Option<Arc<ClientShared>>,
    pub(super) status: Arc<Status>,
    pub(super) mailboxes: Mailboxes<CoreMail>,
    pub(super) listening: Arc<Listening>,
    pub(super) watched: Watched,
    /// The warnings of the configuration that was checked last.
    pub(super) warned: Vec<String>,
    /// The parts of the process that do not follow the configuration that is in force.
    pub(super) problems: Vec<String>,
}

/// Why the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody has ordered it, and sees what there is to report.
    Order,
    /// A check of the files has found a change.
    Look,
}

/// A configuration that was taken up.
struct Taken {
    lines: Vec<String>,
    /// The parts of the process that do not follow it.
    problems: Vec<String>,
    /// Whether it differs from the previous configuration.
    changed: bool,
}

/// Everything that has been read and bound, and only has to be used.
struct Ready {
    config: Arc<Config>,
    server: Option<(Plan, Vec<Vec<DoorSockets>>)>,
    client: Option<Prepared>,
    access_log: Option<access_log::Prepared>,
}

impl Reloader {
    /// Starts the thread, which ends with the process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start(mut self, orders: Receiver<Answer>) -> std::io::Result<()> {
        let config = self.config.load_full();
        self.watched.watch(&config.files);
        // These were logged at the start.
        self.warned = config.warnings.clone();
        if let Some(server) = &config.server {
            let judged = bind::judge_descriptors(server, self.cores, self.allowed_descriptors);
            self.warned.extend(judged.ok().flatten());
        }
        let thread = std::thread::Builder::new().name("reload".into());
        thread.spawn(move || {
            let mut next_look = Instant::now() + LOOK_PAUSE;
            loop {
                match orders.recv_deadline(next_look) {
                    Ok(answer) => answer(self.contained(Reloader::ordered)),
                    Err(RecvTimeoutError::Timeout) => {
                        self.say_expired_lists();
                        let mut pause = LOOK_PAUSE;
                        let _said = self.contained(|this| {
                            pause = this.look();
                            Ok(Vec::new())
                        });
                        next_look = Instant::now() + pause;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(())
    }

    /// Logs revocation lists that have expired. Nothing else tells those who have to renew them,
    /// because no client is refused for that.
    fn say_expired_lists(&self) {
        for list in self.status.certificates.lists_just_expired() {
            tracing::warn!(
                list,
                "a list of revoked certificates has expired: what is on it is refused further, and \
                 what the CA has revoked since is let in; have the CA issue the next one"
            );
        }
    }

    /// Contains a panic, which is a defect of ours, so that it ends this reload and none that
    /// follows. The files are read again.
    fn contained(&mut self, work: impl FnOnce(&mut Reloader) -> Outcome) -> Outcome {
        let work = std::panic::AssertUnwindSafe(|| work(self));
        std::panic::catch_unwind(work).unwrap_or_else(|_| {
            self.watched.doubt();
            let why =
                "a defect of this program; its log has more, and the changes may be incomplete";
            Err(Refused::Unusable(why.into()))
        })
    }

    /// Handles an order to read the file again.
    fn ordered(&mut self) -> Outcome {
        let path = self.path.display().to_string();
        let text = Config::text_of(&self.path);
        let text = text.map_err(|errors| Refused::Unusable(errors.to_string()));
        // Files that have changed as well are read with it.
        self.watched.read_now();
        let outcome = text.and_then(|text| self.take_up(text, Cause::Order));
        self.count(&outcome);
        match &outcome {
            Ok(Taken { lines, .. }) => {
                tracing::info!(
                    config = path,
                    changes = lines.len(),
                    "configuration reloaded"
                );
                for line in lines {
                    tracing::info!("reload: {line}");
                }
            }
            Err(Refused::Draining) => {
                tracing::warn!("no reload: the process is about to end");
            }
            Err(refused) => {
                // They may have changed, and with the earlier text they may be usable.
                self.watched.doubt();
                tracing::error!(
                    config = path,
                    why = refused.to_string(),
                    "the configuration cannot be used, and nothing has changed"
                );
            }
        }
        let taken = outcome?;
        say_problems(&taken.problems);
        match taken.problems.is_empty() {
            true => Ok(taken.lines),
            false => Err(Refused::Incomplete(taken.problems)),
        }
    }

    /// Checks whether files that the configuration names have changed. Returns when to check again.
    fn look(&mut self) -> Duration {
        let files = match self.watched.look() {
            Look::AsBefore => return LOOK_PAUSE,
            Look::Restless => return REST,
            Look::Read(files) => files,
            Look::ReadAnyway { files, news } => {
                if let Some(file) = news {
                    tracing::warn!(
                        file = %file.display(),
                        "a file that the configuration names changes all the time: what has \
                         changed is read from time to time, which may be half of it; replace files \
                         by renaming"
                    );
                }
                files
            }
        };
        let outcome = self.take_up(self.texts.taken().to_owned(), Cause::Look);
        match &outcome {
            Ok(Taken { changed: false, .. }) | Err(Refused::Draining) => {}
            Ok(Taken { problems, .. }) => {
                self.count(&outcome);
                let files: Vec<_> = files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect();
                tracing::info!(
                    ?files,
                    "files that the configuration names have changed, and are used now"
                );
                say_problems(problems);
            }
            Err(refused) => {
                if self.watched.unusable() {
                    self.count(&outcome);
                    tracing::warn!(
                        why = refused.to_string(),
                        "files have changed and cannot be used as they are; those of before go on \
                         until they can"
                    );
                }
            }
        }
        LOOK_PAUSE
    }

    fn count(&self, outcome: &Result<Taken, Refused>) {
        let counts = &self.status.reloads;
        let counted = match outcome {
            Ok(taken) if taken.problems.is_empty() => &counts.done,
            Ok(_) => &counts.incomplete,
            Err(_) => &counts.refused,
        };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes up the configuration of this text, all of it or nothing.
    fn take_up(&mut self, text: String, cause: Cause) -> Result<Taken, Refused> {
        let wanted = self.read(&text)?;
        let (running, roles) = (Roles::of(&self.config.load()), Roles::of(&wanted));
        let (wanted, as_they_are) = self.with_sections_that_stay(wanted);
        let mut wanted = bind::without_ipv6(wanted, sys::bind::has_ipv6);
        let mut warnings = std::mem::take(&mut wanted.warnings);
        let config = Arc::new(self.with_what_stays(wanted));
        let ready = self.prepare(&config, as_they_are, &mut warnings);
        for warning in self.news(warnings, cause) {
            tracing::warn!("{warning}");
        }
        let ready = ready?;
        let mut taken = Taken {
            lines: self.texts.lines(&text, running, roles),
            problems: Vec::new(),
            changed: !self.is_as_before(&ready),
        };
        if taken.changed {
            let files = self.watched.unused(&ready.config.files);
            let line = |file: &Path| format!("{}: has changed, and is in use", file.display());
            taken.lines.extend(files.map(line));
        }
        let files = ready.config.files.clone();
        if taken.changed {
            self.problems = self.apply(ready)?;
        }
        // If nothing has changed nothing is tried again: what did not work then does not work now.
        taken.problems.clone_from(&self.problems);
        if let Some(client) = &self.client {
            taken.lines.extend(client.outdated());
        }
        self.texts.take(text, roles);
        self.watched.watch(&files);
        Ok(taken)
    }

    fn read(&self, text: &str) -> Result<Config, Refused> {
        Config::parse(text, &self.path).map_err(|errors| Refused::Unusable(errors.to_string()))
    }

    /// The warnings that are to be logged now: all of them after an order, otherwise those that are
    /// news.
    fn news(&mut self, warnings: Vec<String>, cause: Cause) -> Vec<String> {
        let before = std::mem::replace(&mut self.warned, warnings);
        let is_due = |it: &&String| cause == Cause::Order || !before.contains(it);
        self.warned.iter().filter(is_due).cloned().collect()
    }

    /// Whether nothing would change, neither in the configuration nor in the files that it names.
    fn is_as_before(&self, ready: &Ready) -> bool {
        let shown = ready.server.as_ref().zip(self.server.as_ref());
        let registers = ready.client.as_ref().zip(self.client.as_ref());
        let now = self.config.load();
        let as_now = Config {
            warnings: now.warnings.clone(),
            ..Config::clone(&ready.config)
        };
        as_now == **now
            && shown.is_none_or(|((plan, _), it)| !plan.changes_credentials(it))
            && registers.is_none_or(|(prepared, it)| !it.changes_credentials(prepared))
    }

    /// Reads and binds everything that is needed, and notes warnings. Nothing changes yet, and
    /// nothing is read for the roles that stay `as_they_are`.
    fn prepare(
        &self,
        config: &Arc<Config>,
        as_they_are: Roles,
        warnings: &mut Vec<String>,
    ) -> Result<Ready, Refused> {
        let unusable = |error: &dyn std::fmt::Display| Refused::Unusable(error.to_string());
        let located = |failure: Failure| unusable(&failure.located(config));
        let mut judged = Config::clone(config);
        judged.server.take_if(|_| as_they_are.server);
        judged.client.take_if(|_| as_they_are.client);
        check::tls_contexts(&judged).map_err(located)?;
        let server = match (&self.server, &judged.server) {
            (Some(shared), Some(server)) => {
                let judged = bind::judge_descriptors(server, self.cores, self.allowed_descriptors);
                warnings.extend(judged.map_err(located)?);
                let plan = shared.plan(config, server).map_err(|why| unusable(&why))?;
                self.refuse_door_that_drains(shared, &plan)
                    .map_err(located)?;
                let (tcp_given_up, udp_given_up) = (plan.given_up(true), plan.given_up(false));
                let draining = shared.draining();
                let is_ours = |address, tcp| match tcp {
                    true => tcp_given_up.overlap(address),
                    false => udp_given_up.overlap(address) || draining.overlap(address),
                };
                let sockets = bind::all(&plan, self.cores, None, is_ours);
                Some((plan, sockets.map_err(located)?))
            }
            _ => None,
        };
        let client = match (&self.client, &judged.client) {
            (Some(shared), Some(client)) => {
                let prepared = shared.prepare(config, client, &self.post());
                Some(prepared.map_err(|why| unusable(&why))?)
            }
            _ => None,
        };
        let setting = config.server.as_ref().map(|server| &server.access_log);
        let access_log = setting.map(access_log::prepare).transpose();
        Ok(Ready {
            access_log: access_log.map_err(located)?,
            config: Arc::clone(config),
            server,
            client,
        })
    }

    fn post(&self) -> Arc<dyn Post<ClientMail>> {
        Arc::new(self.mailboxes.clone())
    }

    /// Refuses a door at an address that a removed door still has, until its lanes end.
    fn refuse_door_that_drains(&self, shared: &ServerShared, plan: &Plan) -> Result<(), Failure> {
        let new = plan.doors.iter().filter(|door| door.is_new);
        for address in new.flat_map(DoorPlan::quic_addrs) {
            if let Some(left) = shared.door_drains_at(*address, Instant::now()) {
                let (address, tcp) = (*address, false);
                let why = format!(
                    "{address} still belongs to a door that was removed, whose flows may go on: \
                     try again in {} s, or use another address",
                    left.as_secs() + 1
                );
                return Err(Failure::Address { address, tcp, why });
            }
        }
        Ok(())
    }

    /// Uses what is ready: after the first step nothing is refused any more. Returns what did not
    /// work.
    fn apply(&self, ready: Ready) -> Result<Vec<String>, Refused> {
        let Ready {
            config,
            server,
            client,
            access_log,
        } = ready;
        let mut problems = Vec::new();
        if let Some((plan, sockets)) = server
            && let Some(shared) = &self.server
        {
            let opened = self.listening.open(&plan, &sockets);
            let opened = opened.map_err(|error| Refused::Unusable(error.to_string()))?;
            let Some(changing) = opened else {
                return Err(Refused::Draining);
            };
            let changes = shared.follow(&plan, sockets);
            problems.extend(self.tell(changes));
            drop(changing);
        }
        if let (Some(shared), Some(prepared)) = (&self.client, client) {
            problems.extend(shared.take_up(prepared, &*self.post()));
        }
        if let Some(prepared) = access_log {
            prepared.take_up();
        }
        memory::change_limit(config.limits.memory);
        self.status.certificates.change(&config);
        self.config.store(config);
        Ok(problems)
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
                    if let CoreMail::Server(ServerMail::Change(changes)) = back {
                        changes.give_up();
                    }
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
}

/// Logs what did not work although nothing was refused.
fn say_problems(problems: &[String]) {
    for problem in problems {
        tracing::error!(problem, "the configuration is not in use everywhere");
    }
}

/// Collects the cores' reports, until all have done their part.
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

/// The way in which others order a reload.
#[derive(Debug, Clone)]
pub(crate) struct Orders(Sender<Answer>);

impl Orders {
    /// A sender of orders, and the end where they arrive.
    pub(crate) fn new() -> (Orders, Receiver<Answer>) {
        let (sender, receiver) = bounded(ORDERS_MAX);
        (Orders(sender), receiver)
    }

    /// Orders a reload. Returns false if too many wait already, or this process has no config file;
    /// then there is never an answer.
    pub(crate) fn give(&self, answer: Answer) -> bool {
        self.0.try_send(answer).is_ok()
    }
}

/// The counters of reloads.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Configurations taken up, because of an order or because a file has changed.
    pub(crate) done: AtomicU64,
    /// Configurations taken up that something does not follow.
    pub(crate) incomplete: AtomicU64,
    /// Configurations that could not be used.
    pub(crate) refused: AtomicU64,
}

#[cfg(test)]
mod tests;
