//! Running cores: their start ([`start()`]), signals, the drain, and the counters at the end.

mod start;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use qmux_config::Config;

use super::exit::Failure;
use super::handover::Successors;
use super::mail::CoreMail;
use super::reload::{self, Listening, Reloader, Texts};
use super::status::Status;
use super::thread::CoreReport;
use super::watch::Watch;
use super::{admin, signals};
use crate::client::ClientShared;
use crate::core::Cluster;
use crate::core::mailbox::Mailboxes;
use crate::ready::Readiness;
use crate::server::ServerShared;
pub(crate) use start::{core_count, start};

/// Pause before a core with a full mailbox is told again: waiting must not take its CPU time.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// A core that has no room for an order for this long is stuck: it handles hundreds of them in one
/// turn.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);

/// The cores of a running process.
pub(crate) struct Running {
    cluster: Arc<Cluster>,
    mailboxes: Mailboxes<CoreMail>,
    events: Receiver<Event>,
    /// Cores that have ended, by index.
    ended: Vec<bool>,
    /// Why the process ends, if not because it was told to.
    failure: Option<Failure>,
    /// Whether a signal came before all cores had started.
    stop_at_once: bool,
    /// [`ORDER_PATIENCE`], which tests change.
    order_patience: Duration,
    readiness: Arc<Readiness>,
    watch: Watch,
    /// A second handle of the cores' sockets for TCP visitors.
    listening: Arc<Listening>,
    /// The configuration that is in force.
    config: Arc<ArcSwap<Config>>,
    server: Option<Arc<ServerShared>>,
    client: Option<Arc<ClientShared>>,
    status: Arc<Status>,
    allowed_descriptors: Option<u64>,
    /// The end where orders to reload arrive.
    reloads: Option<Receiver<reload::Answer>>,
}

/// The events of a run, as `main` learns of them.
pub(crate) struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    orders: reload::Orders,
    reloads: Receiver<reload::Answer>,
    /// Starts successors; set once they may come.
    successors: Arc<OnceLock<Successors>>,
}

impl Events {
    /// Events without signals, which then have their default effect; only the caller stops the run.
    pub(crate) fn without_signals() -> Events {
        let (sender, receiver) = unbounded();
        let (orders, reloads) = reload::Orders::new();
        Events {
            sender,
            receiver,
            orders,
            reloads,
            successors: Arc::default(),
        }
    }

    /// Handles signals from now on ([`signals`]).
    ///
    /// # Errors
    /// If their handlers cannot be installed.
    pub(crate) fn with_signals() -> Result<Events, Failure> {
        let events = Events::without_signals();
        let (sender, orders) = (events.sender.clone(), events.orders.clone());
        let stop = move || {
            // This fails only when `main` is ending already.
            let _ended = sender.send(Event::Signal);
        };
        // The result is in the log.
        let reload = move || orders.give(Box::new(|_| ()));
        let successors = Arc::clone(&events.successors);
        let succeed = move || successors.get().map(Successors::start).is_some();
        signals::listen(stop, reload, succeed)
            .map_err(|error| Failure::Running(format!("signal handlers: {error}")))?;
        Ok(events)
    }

    /// The orders that the admin endpoint may give. A second order to stop is no event, unlike a
    /// second signal: the process drains to its end.
    fn orders(&self) -> admin::Orders {
        let sender = self.sender.clone();
        admin::Orders {
            drain: Box::new(move || {
                let _ended = sender.send(Event::Signal);
            }),
            reload: self.orders.clone(),
        }
    }
}

#[derive(Debug)]
enum Event {
    Core(usize, CoreReport),
    Signal,
    /// The process with this id serves in place of this one.
    HandedOver(u32),
}

impl Running {
    /// The sum of a counter over all cores.
    #[cfg(feature = "count-allocations")]
    pub(crate) fn total(
        &self,
        counter: impl Fn(&crate::core::counters::CoreCounters) -> u64,
    ) -> u64 {
        self.cluster.counters.iter().map(|core| counter(core)).sum()
    }

    /// Reads the configuration again from this file on every order, and the files that it names
    /// when they change. `text` is the one that the process was started with.
    ///
    /// # Errors
    /// If the thread for that cannot be started.
    pub(crate) fn reload_from(&mut self, path: &Path, text: String) -> Result<(), Failure> {
        let Some(orders) = self.reloads.take() else {
            return Ok(());
        };
        let reloader = Reloader {
            path: path.to_owned(),
            texts: Texts::new(text),
            config: Arc::clone(&self.config),
            cores: self.ended.len(),
            allowed_descriptors: self.allowed_descriptors,
            server: self.server.clone(),
            client: self.client.clone(),
            status: Arc::clone(&self.status),
            mailboxes: self.mailboxes.clone(),
            listening: Arc::clone(&self.listening),
            watched: reload::Watched::default(),
            warned: Vec::new(),
            problems: Vec::new(),
        };
        reloader
            .start(orders)
            .map_err(|error| Failure::Running(format!("thread for reloads: {error}")))
    }

    /// Runs until a signal or a core's failure, then drains, for as long as `drain_timeout` or else
    /// the configuration says. A second signal ends the process at once.
    ///
    /// # Errors
    /// If a core failed.
    pub(crate) fn until_signal(mut self, drain_timeout: Option<Duration>) -> Result<(), Failure> {
        let event = if self.stop_at_once {
            Some(Event::Signal)
        } else {
            self.next_event()
        };
        let configured = || configured_drain_timeout(&self.config.load());
        let drain_timeout = drain_timeout.unwrap_or_else(configured);
        match event {
            Some(Event::Signal) => {
                tracing::info!(
                    drain_timeout_ms = drain_timeout.as_millis() as u64,
                    "stopping: no new flows, letting flows finish"
                );
            }
            Some(Event::HandedOver(pid)) => {
                tracing::info!(
                    successor = pid,
                    drain_timeout_ms = drain_timeout.as_millis() as u64,
                    "handed over: a successor serves, letting flows finish"
                );
                self.watch.succeeded();
            }
            Some(Event::Core(core, CoreReport::Broken)) => {
                self.note_failure(core, "a part of it panicked");
            }
            Some(Event::Core(core, CoreReport::Ended(result))) => {
                self.ended[core] = true;
                let why = result.err().unwrap_or_else(|| "it ended by itself".into());
                self.note_failure(core, &why);
            }
            other => return Err(Failure::Running(format!("unexpected event {other:?}"))),
        }
        self.stop(drain_timeout)
    }

    /// The next event; `None` if nobody is left to send one. Watches the cores meanwhile.
    fn next_event(&mut self) -> Option<Event> {
        loop {
            match self.events.recv_timeout(self.watch.pause(Instant::now())) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) => self.watch.look(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Drains all cores and waits for their end.
    ///
    /// # Errors
    /// If a core failed.
    pub(crate) fn stop(&mut self, drain_timeout: Duration) -> Result<(), Failure> {
        self.readiness.set_draining();
        if self.listening.close() {
            // It is decided, even if nobody has said so here yet.
            self.watch.succeeded();
        }
        self.watch.stopping(drain_timeout, Instant::now());
        self.tell_all(|| CoreMail::Drain {
            timeout: drain_timeout,
        });
        let mut drained = self.ended.clone();
        let mut told_to_close = false;
        while !self.ended.iter().all(|ended| *ended) {
            if drained.iter().all(|drained| *drained)
                && !std::mem::replace(&mut told_to_close, true)
            {
                self.tell_all(|| CoreMail::Close);
                continue; // It may have given up the last one.
            }
            match self.next_event() {
                Some(Event::Core(core, CoreReport::Drained)) => drained[core] = true,
                Some(Event::Core(core, CoreReport::Ended(result))) => {
                    (drained[core], self.ended[core]) = (true, true);
                    if let Err(why) = result {
                        self.note_failure(core, &why);
                    }
                }
                Some(Event::Core(core, CoreReport::Broken)) => {
                    self.note_failure(core, "a part of it panicked");
                }
                Some(Event::HandedOver(pid)) => {
                    tracing::info!(
                        successor = pid,
                        "handed over: a successor serves although this process was told to stop"
                    );
                }
                Some(_) => {}
                None => break,
            }
        }
        self.log_counters();
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Notes that a core has failed: the process is to drain, and to end with this failure.
    fn note_failure(&mut self, core: usize, why: &str) {
        tracing::error!(
            core,
            why,
            "a core has failed; flows may finish, then the process ends"
        );
        self.failure
            .get_or_insert_with(|| Failure::Running(format!("core {core}: {why}")));
    }

    /// Gives an order to every core that has not ended. One whose mailbox is full is told again and
    /// again, after the others; one that is stuck is given up, and the process fails.
    fn tell_all(&mut self, mail: impl Fn() -> CoreMail) {
        let until = Instant::now() + self.order_patience;
        let cores = 0..self.ended.len();
        let mut untold: Vec<usize> = cores.filter(|core| !self.ended[*core]).collect();
        loop {
            untold.retain(|core| self.mailboxes.of(*core).send(mail()).is_err());
            let now = Instant::now();
            if untold.is_empty() || now >= until {
                break;
            }
            self.watch.look(now);
            std::thread::sleep(FULL_MAILBOX_PAUSE);
        }
        for core in untold {
            self.ended[core] = true;
            self.note_failure(core, "it is stuck, and takes no orders");
        }
    }

    /// Logs one line per core with every counter that is not zero.
    fn log_counters(&self) {
        for (core, counters) in self.cluster.counters.iter().enumerate() {
            let mut text = String::new();
            counters.for_each(|name, _help, value| {
                if value > 0 {
                    text.push_str(&format!(" {name}={value}"));
                }
            });
            tracing::info!("counters core={core}{text}");
        }
        tracing::info!("stopped");
    }
}

/// The longer of both roles' drain timeouts.
fn configured_drain_timeout(config: &Config) -> Duration {
    let server = config.server.as_ref().map(|server| server.drain_timeout);
    let client = config.client.as_ref().map(|client| client.drain_timeout);
    server.max(client).unwrap_or_default()
}

#[cfg(test)]
mod tests;
