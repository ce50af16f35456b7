//! From a validated config to running cores, and back: start, signals, drain, counters.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use qmux_config::{Config, Door, Server};

use super::certificates::Certificates;
use super::exit::Failure;
use super::handover::{self, Giver, Inherited, Successors};
use super::mail::CoreMail;
use super::reload::{self, Listening, Reloader, Texts};
use super::status::Status;
use super::thread::{self, CoreReport, CoreSetup};
use super::watch::Watch;
use super::{access_log, admin, bind, signals};
use crate::client::ClientShared;
use crate::client::mail::ClientMail;
use crate::core::mailbox::{Mailboxes, Post};
use crate::core::{Cluster, memory};
use crate::quic::tickets::TicketKeys;
use crate::ready::Readiness;
use crate::server::ServerShared;
use crate::server::shared::plan::CoreChanges;
use crate::sys::cpu::{self, Allowed};
use crate::sys::limits;

/// Descriptors below which a busy server runs out: one per TCP flow.
const OPEN_FILES_WANTED: u64 = 65_536;

/// Pause before a core with a full mailbox is told again: waiting must not take its CPU time.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// A core that has no place for an order for this long is stuck: it takes hundreds of them in one
/// turn.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);

/// A running process's cores.
pub(crate) struct Running {
    cluster: Arc<Cluster>,
    mailboxes: Mailboxes<CoreMail>,
    events: Receiver<Event>,
    /// Cores that have ended, by index.
    ended: Vec<bool>,
    /// Why the process ends, if not because it was told to.
    failure: Option<Failure>,
    /// A signal came before all cores had started.
    stop_at_once: bool,
    /// [`ORDER_PATIENCE`].
    order_patience: Duration,
    readiness: Arc<Readiness>,
    watch: Watch,
    /// The cores' sockets for TCP visitors once more.
    listening: Arc<Listening>,
    /// The configuration now.
    config: Arc<ArcSwap<Config>>,
    server: Option<Arc<ServerShared>>,
    client: Option<Arc<ClientShared>>,
    status: Arc<Status>,
    allowed_descriptors: Option<u64>,
    /// Where orders to reload arrive.
    reloads: Option<Receiver<reload::Answer>>,
}

/// What happens to a run, as `main` learns of it.
pub(crate) struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    orders: reload::Orders,
    reloads: Receiver<reload::Answer>,
    /// Once successors may come.
    successors: Arc<OnceLock<Successors>>,
}

impl Events {
    /// Only the caller stops the run; signals do what the system has them do.
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

    /// Signals are taken from now on ([`signals`]).
    ///
    /// # Errors
    /// If their handlers cannot be had.
    pub(crate) fn with_signals() -> Result<Events, Failure> {
        let events = Events::without_signals();
        let (sender, orders) = (events.sender.clone(), events.orders.clone());
        let stop = move || {
            // Fails only when `main` is ending already.
            let _ended = sender.send(Event::Signal);
        };
        // What came of it is in the log.
        let reload = move || orders.give(Box::new(|_| ()));
        let successors = Arc::clone(&events.successors);
        let succeed = move || successors.get().map(Successors::start).is_some();
        signals::listen(stop, reload, succeed)
            .map_err(|error| Failure::Running(format!("signal handlers: {error}")))?;
        Ok(events)
    }

    /// What the admin endpoint may ask for. A second stop is no event, unlike a second signal: the
    /// process drains to its end.
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

/// Number of cores to run: as asked for, or what can use the CPU time that we may have.
pub(crate) fn core_count(asked: Option<usize>) -> usize {
    let allowed = Allowed::now();
    let cores = asked.unwrap_or(allowed.cores()).min(crate::sys::CORES_MAX);
    if let Some(quota) = allowed.quota {
        tracing::info!(
            quota,
            cpus = allowed.cpus,
            cores,
            "the control group allows less CPU time than there are CPUs; cores are not pinned"
        );
    }
    let cpus = allowed.cores();
    if cores > cpus {
        tracing::warn!(cores, cpus, "more cores than CPUs: threads share CPUs");
    }
    cores
}

/// Binds, starts all cores, and returns when each has started.
///
/// # Errors
/// What could not be bound or started.
pub(crate) fn start(
    config: &Arc<Config>,
    cores: usize,
    events: Events,
) -> Result<Running, Failure> {
    let started = (Instant::now(), SystemTime::now());
    let allowed = prepare_process(config.limits.descriptors_reserved);
    if let Some(server) = &config.server
        && let Some(warning) = bind::judge_descriptors(server, cores, allowed)?
    {
        tracing::warn!("{warning}");
    }
    let readiness = Arc::new(Readiness::new(
        usize::from(config.server.is_some()) + usize::from(config.client.is_some()),
    ));
    let path = config.server.as_ref().and_then(|it| it.handover.as_deref());
    let inherited = path.map(|path| Inherited::ask(path, cores)).transpose()?;
    let mut inherited = inherited.flatten();
    let mut admin_socket = match (&config.admin, &inherited) {
        (Some(admin), None) => Some(admin::bind(admin)?),
        // The process before this one still has the address.
        _ => None,
    };
    let listening = Arc::new(Listening::new());
    let mut opened: Vec<Option<CoreChanges>> = (0..cores).map(|_| None).collect();
    let server = match &config.server {
        Some(server) => {
            let (shared, changes) =
                open_server(config, server, cores, &listening, inherited.as_mut())?;
            opened = changes.into_iter().map(Some).collect();
            Some(shared)
        }
        None => None,
    };
    let client = config
        .client
        .as_ref()
        .map(|client| Arc::new(ClientShared::new(config, client, &readiness)));
    if let Some(client) = &client {
        for service in client.settings().services.all() {
            tracing::info!(service = service.summary(), "offered to servers");
        }
        client.keep_sessions().map_err(Failure::Input)?;
        client.keep_certificates().map_err(Failure::Input)?;
    }
    let cluster = Arc::new(Cluster::new(cores));
    let (mailboxes, wakes) =
        Mailboxes::new(cores).map_err(|error| Failure::Running(format!("mailboxes: {error}")))?;
    if let Some(client) = &client {
        let post: Arc<dyn Post<ClientMail>> = Arc::new(mailboxes.clone());
        client
            .keep_names_fresh(&post)
            .map_err(|error| Failure::Running(format!("resolver: {error}")))?;
    }
    let status = Arc::new(Status {
        cluster: Arc::clone(&cluster),
        server: server.clone(),
        client: client.clone(),
        readiness: Arc::clone(&readiness),
        certificates: Certificates::of(config),
        reloads: reload::Counts::default(),
        started,
    });
    if let (Some(inherited), Some(server)) = (inherited, &server) {
        // From here on nobody else serves: what fails now is said, and not the end.
        handover::serve_after(inherited, server)?;
        admin_socket = config.admin.as_ref().and_then(handover::bind_after);
    }
    let mut closer = None;
    if let Some((socket, admin)) = admin_socket.zip(config.admin.as_ref()) {
        let started = admin::start(socket, admin, Arc::clone(&status), events.orders());
        let failed = |error| Failure::Running(format!("admin endpoint: {error}"));
        closer = Some(started.map_err(failed)?);
    }
    // A client alone prefers the CPUs from the end, a server those from the start.
    let places = cpu::places(cores, Allowed::now(), config.server.is_none());
    for ((index, wake), cpu) in wakes.into_iter().enumerate().zip(places) {
        let setup = CoreSetup {
            index,
            cpu,
            cluster: Arc::clone(&cluster),
            mailboxes: mailboxes.clone(),
            wake,
            server: server.clone().zip(opened[index].take()),
            client: client.clone(),
        };
        let sender = events.sender.clone();
        thread::start(setup, move |report| {
            // Fails only when `main` has returned already.
            let _ended = sender.send(Event::Core(index, report));
        })
        .map_err(|error| Failure::Running(format!("thread of core {index}: {error}")))?;
    }
    let mut running = Running {
        cluster,
        mailboxes,
        events: events.receiver,
        ended: vec![false; cores],
        failure: None,
        stop_at_once: false,
        order_patience: ORDER_PATIENCE,
        readiness: Arc::clone(&readiness),
        watch: Watch::new(Arc::clone(&status), Instant::now()),
        listening,
        config: Arc::new(ArcSwap::new(Arc::clone(config))),
        server,
        client,
        status,
        allowed_descriptors: allowed,
        reloads: Some(events.reloads),
    };
    running.wait_started(cores)?;
    memory::set_limit(config.limits.memory);
    // Before anybody hears that it is ready, and may want to replace it.
    if let Some(path) = path {
        running.hand_over_at(path, &events.sender, closer)?;
        if let Ok(successors) = Successors::of_this_process() {
            let _first = events.successors.set(successors);
        }
    }
    if let Some(server) = &config.server {
        for door in &server.doors {
            say_listening(door, cores);
        }
        readiness.set_listening();
        readiness.role_ready("server");
    }
    Ok(running)
}

/// How many files may be open, if that is limited.
fn prepare_process(descriptors_reserved: u32) -> Option<u64> {
    let allowed = limits::raise_open_files();
    limits::keep_from_flows(descriptors_reserved, allowed);
    if let Some(limit) = allowed
        && limit < OPEN_FILES_WANTED
    {
        tracing::warn!(
            limit,
            for_flows = limits::flow_descriptors_max(),
            wanted = OPEN_FILES_WANTED,
            "few open files are allowed; each TCP flow needs one (ulimit -n)"
        );
    }
    if !monoio::utils::detect_uring() {
        tracing::warn!("io_uring is not available (kernel or container forbids it); using epoll");
    }
    allowed
}

/// Binds all that a server has, and says what each core is to open.
fn open_server(
    config: &Arc<Config>,
    server: &Server,
    cores: usize,
    listening: &Listening,
    inherited: Option<&mut Inherited>,
) -> Result<(Arc<ServerShared>, Vec<CoreChanges>), Failure> {
    let (ticket_keys, keeper) = TicketKeys::start(&server.tls).map_err(Failure::Input)?;
    access_log::prepare(&server.access_log)?.take_up();
    let log = access_log::shared();
    let shared = ServerShared::new(config, server, cores, ticket_keys, keeper, &log);
    let shared = Arc::new(shared.map_err(Failure::Input)?);
    let plan = shared.plan(config, server).map_err(Failure::Input)?;
    let sockets = bind::all(&plan, cores, inherited, |_, _| false)?;
    let _open = listening
        .open(&plan, &sockets)
        .map_err(|error| Failure::Running(format!("a socket could not be duplicated: {error}")))?;
    let changes = shared.follow(&plan, sockets);
    Ok((shared, changes))
}

fn say_listening(door: &Door, cores: usize) {
    for service in &door.services {
        let traffic = service.traffic;
        let (quic, protocol) = (&door.quic_addrs, service.protocol);
        if let ([quic], true) = (&quic[..], service.name.is_empty()) {
            tracing::info!(%quic, %traffic, %protocol, cores, "listening");
        } else {
            tracing::info!(?quic, service = service.name, %traffic, %protocol, cores, "listening");
        }
    }
}

impl Running {
    fn wait_started(&mut self, cores: usize) -> Result<(), Failure> {
        let mut started = 0;
        while started < cores {
            match self.events.recv() {
                Ok(Event::Core(_, CoreReport::Started)) => started += 1,
                Ok(Event::Core(core, CoreReport::Ended(Err(why)))) => {
                    return Err(Failure::Running(format!("core {core}: {why}")));
                }
                Ok(Event::Signal) => self.stop_at_once = true,
                Ok(Event::Core(core, CoreReport::Broken)) => {
                    self.note_failure(core, "a part of it panicked");
                    self.stop_at_once = true;
                }
                Ok(_) => {}
                Err(_) => return Err(Failure::Running("the cores ended at their start".into())),
            }
        }
        Ok(())
    }

    /// The sum of a counter over all cores.
    #[cfg(feature = "count-allocations")]
    pub(crate) fn total(
        &self,
        counter: impl Fn(&crate::core::counters::CoreCounters) -> u64,
    ) -> u64 {
        self.cluster.counters.iter().map(|core| counter(core)).sum()
    }

    /// Gives the sockets to a successor that asks for them at `path`.
    fn hand_over_at(
        &self,
        path: &Path,
        events: &Sender<Event>,
        admin: Option<admin::Closer>,
    ) -> Result<(), Failure> {
        let Some(server) = self.server.clone() else {
            return Ok(());
        };
        let events = events.clone();
        let giver = Giver {
            cores: self.ended.len(),
            server,
            mailboxes: self.mailboxes.clone(),
            is_draining: Box::new({
                let readiness = Arc::clone(&self.readiness);
                move || readiness.is_draining()
            }),
            close_admin: Box::new(move || admin.iter().for_each(admin::Closer::close)),
            handed_over: Box::new(move |pid| {
                let _ended = events.send(Event::HandedOver(pid));
            }),
        };
        giver.start(path)
    }

    /// Reads the configuration again from this file whenever somebody wants it, and what it names
    /// when that changes. `text` is what it was started with.
    ///
    /// # Errors
    /// If there is no thread for that.
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

    /// Runs until a signal or a core's failure, then drains, for as long as the configuration says
    /// if it is not said here. A second signal ends the process at once.
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
                self.listening.give_up();
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
        self.watch.stopping(drain_timeout, Instant::now());
        self.listening.close();
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
                Some(_) => {}
                None => break,
            }
        }
        self.log_counters();
        self.failure.take().map_or(Ok(()), Err)
    }

    /// A core has failed: the process is to drain, and to end with this failure.
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

    /// One line per core with every counter that is not zero.
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

/// The longer of both roles' times.
fn configured_drain_timeout(config: &Config) -> Duration {
    let server = config.server.as_ref().map(|server| server.drain_timeout);
    let client = config.client.as_ref().map(|client| client.drain_timeout);
    server.max(client).unwrap_or_default()
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
