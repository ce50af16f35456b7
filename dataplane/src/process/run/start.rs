//! The start: from a validated configuration to running cores.
//!
//! Everything that can fail comes before this process takes the place of another one: once that has
//! given its sockets up, nobody else serves.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use crossbeam::channel::{Sender, bounded};
use qmux_config::{Admin, Config, Door, Server};

use super::{Event, Events, ORDER_PATIENCE, Running};
use crate::client::ClientShared;
use crate::client::mail::ClientMail;
use crate::core::mailbox::{Mailboxes, Post};
use crate::core::{Cluster, memory};
use crate::process::admin::{self, AdminSocket};
use crate::process::certificates::Certificates;
use crate::process::exit::Failure;
use crate::process::handover::{self, Giver, Inherited, Successors, Waiting};
use crate::process::mail::CoreMail;
use crate::process::reload::{self, Listening};
use crate::process::status::Status;
use crate::process::thread::{self, CoreReport, CoreSetup};
use crate::process::watch::Watch;
use crate::process::{access_log, bind};
use crate::quic::tickets::TicketKeys;
use crate::ready::Readiness;
use crate::server::ServerShared;
use crate::server::shared::plan::CoreChanges;
use crate::sys::cpu::{self, Allowed};
use crate::sys::limits;

/// A busy server with fewer descriptors runs out of them: it needs one per TCP flow.
const OPEN_FILES_WANTED: u64 = 65_536;

/// Number of cores to run: as asked for, or as many as can use the CPU time that the process may
/// have.
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
/// If something could not be bound or started; the message names it.
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
    let path = config.server.as_ref().and_then(|it| it.handover.as_deref());
    let inherited = path.map(|path| Inherited::ask(path, cores)).transpose()?;
    let mut inherited = inherited.flatten();
    let admin_socket = match (&config.admin, &inherited) {
        (Some(admin), None) => Some(admin::bind(admin)?),
        // The process before this one still has the address.
        _ => None,
    };
    let roles = Roles::open(config, cores, inherited.as_mut())?;
    let (mailboxes, wakes) =
        Mailboxes::new(cores).map_err(|error| Failure::Running(format!("mailboxes: {error}")))?;
    roles.keep_names_fresh(&mailboxes)?;
    let (sender, orders) = (events.sender.clone(), events.orders());
    let successors = Arc::clone(&events.successors);
    let (mut running, opened) = roles.running(config, mailboxes, events, started, allowed);
    let mut endpoint = config.admin.as_ref().map(|admin| Endpoint {
        admin,
        status: Arc::clone(&running.status),
        orders,
        closer: Arc::default(),
    });
    let closer = endpoint.as_ref().map(|it| Arc::clone(&it.closer));
    if let Some(socket) = admin_socket
        && let Some(endpoint) = endpoint.take()
    {
        endpoint.start(socket)?;
    }
    // Under a quota, CPU time that polling uses is missing when there is work to do.
    let busy_poll = config.quic.busy_poll && Allowed::now().quota.is_none();
    let may_begin = running.start_threads(wakes, opened, busy_poll, &sender)?;
    let succeeds = inherited.is_some();
    let giver = path.and_then(|_| running.giver(&sender, closer));
    let waiting = path
        .zip(giver)
        .map(|(path, giver)| giver.start(path, succeeds));
    let waiting = waiting.transpose()?;
    running.wait_for(|report| matches!(report, CoreReport::Opened))?;
    if let Some(inherited) = inherited {
        running.take_over(inherited)?;
        endpoint.into_iter().for_each(Endpoint::start_after);
    }
    for _ in 0..cores {
        // A core that has ended has reported that.
        let _ended = may_begin.send(());
    }
    running.wait_for(|report| matches!(report, CoreReport::Started))?;
    memory::set_limit(config.limits.memory);
    // This comes before anybody hears that the process is ready, and may want to replace it.
    if let Some(waiting) = waiting {
        be_found(waiting, succeeds, &successors)?;
    }
    if let Some(server) = &config.server {
        for door in &server.doors {
            say_listening(door, cores);
        }
        running.readiness.set_listening();
        running.readiness.role_ready("server");
    }
    Ok(running)
}

/// Lets successors find this process. If it has succeeded another one it serves already, and a
/// failure here is not its end.
fn be_found(
    waiting: Waiting,
    succeeds: bool,
    successors: &OnceLock<Successors>,
) -> Result<(), Failure> {
    match waiting.be_found() {
        Ok(()) => {}
        Err(error) if succeeds => {
            tracing::error!(%error, "no successor can come; this process serves until it is stopped");
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    if let Ok(of_this_process) = Successors::of_this_process() {
        let _first = successors.set(of_this_process);
    }
    Ok(())
}

/// The admin endpoint, until it is started.
struct Endpoint<'a> {
    admin: &'a Admin,
    status: Arc<Status>,
    orders: admin::Orders,
    /// Set for the handover, by which a successor gets the endpoint's address.
    closer: Arc<OnceLock<admin::Closer>>,
}

impl Endpoint<'_> {
    fn start(self, socket: AdminSocket) -> Result<(), Failure> {
        let started = admin::start(socket, self.admin, self.status, self.orders);
        let failed = |error| Failure::Running(format!("admin endpoint: {error}"));
        let _first = self.closer.set(started.map_err(failed)?);
        Ok(())
    }

    /// Starts the endpoint when this process has taken the place of another one, and must serve
    /// without the endpoint if that fails.
    fn start_after(self) {
        if let Some(socket) = handover::bind_after(self.admin)
            && let Err(error) = self.start(socket)
        {
            tracing::error!(%error, "this process has no admin endpoint");
        }
    }
}

/// The roles, configured, bound and ready to be started.
struct Roles {
    cores: usize,
    readiness: Arc<Readiness>,
    listening: Arc<Listening>,
    server: Option<Arc<ServerShared>>,
    /// The doors and services that each core is to open.
    opened: Vec<Option<CoreChanges>>,
    client: Option<Arc<ClientShared>>,
}

impl Roles {
    fn open(
        config: &Arc<Config>,
        cores: usize,
        mut inherited: Option<&mut Inherited>,
    ) -> Result<Roles, Failure> {
        let readiness = Arc::new(Readiness::new(
            usize::from(config.server.is_some()) + usize::from(config.client.is_some()),
        ));
        let listening = Arc::new(Listening::new());
        let mut opened: Vec<Option<CoreChanges>> = (0..cores).map(|_| None).collect();
        let mut server = None;
        if let Some(of_config) = &config.server {
            let inherited = &mut inherited;
            let (shared, changes) = open_server(
                config,
                of_config,
                cores,
                &listening,
                inherited.as_deref_mut(),
            )?;
            opened = changes.into_iter().map(Some).collect();
            if let Some(inherited) = inherited
                && let Some(predecessor) = inherited.predecessor()?
            {
                let _first = shared.predecessor.set(predecessor);
            }
            server = Some(shared);
        }
        let client = config.client.as_ref();
        let client = client.map(|client| Arc::new(ClientShared::new(config, client, &readiness)));
        if let Some(client) = &client {
            for service in client.settings().services.all() {
                tracing::info!(service = service.summary(), "offered to servers");
            }
            let of_state_dir = |why| Failure::of_key("client.state_dir", why);
            client.keep_sessions().map_err(of_state_dir)?;
            client.keep_certificates().map_err(Failure::Input)?;
        }
        Ok(Roles {
            cores,
            readiness,
            listening,
            server,
            opened,
            client,
        })
    }

    fn keep_names_fresh(&self, mailboxes: &Mailboxes<CoreMail>) -> Result<(), Failure> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        let post: Arc<dyn Post<ClientMail>> = Arc::new(mailboxes.clone());
        let kept = client.keep_names_fresh(&post);
        kept.map_err(|error| Failure::Running(format!("resolver: {error}")))
    }

    /// The process as it will run, and what its cores are to open. No core has a thread yet.
    fn running(
        self,
        config: &Arc<Config>,
        mailboxes: Mailboxes<CoreMail>,
        events: Events,
        started: (Instant, SystemTime),
        allowed_descriptors: Option<u64>,
    ) -> (Running, Vec<Option<CoreChanges>>) {
        let cluster = Arc::new(Cluster::new(self.cores));
        let status = Arc::new(Status {
            cluster: Arc::clone(&cluster),
            server: self.server.clone(),
            client: self.client.clone(),
            readiness: Arc::clone(&self.readiness),
            certificates: Certificates::of(config),
            reloads: reload::Counts::default(),
            started,
        });
        let running = Running {
            cluster,
            mailboxes,
            events: events.receiver,
            ended: vec![false; self.cores],
            failure: None,
            stop_at_once: false,
            order_patience: ORDER_PATIENCE,
            readiness: self.readiness,
            watch: Watch::new(Arc::clone(&status), Instant::now()),
            listening: self.listening,
            config: Arc::new(ArcSwap::new(Arc::clone(config))),
            server: self.server,
            client: self.client,
            status,
            allowed_descriptors,
            reloads: Some(events.reloads),
        };
        (running, self.opened)
    }
}

impl Running {
    /// Starts the threads. Each opens its sockets, and then waits for the order to begin.
    fn start_threads(
        &self,
        wakes: Vec<UnixDatagram>,
        opened: Vec<Option<CoreChanges>>,
        busy_poll: bool,
        events: &Sender<Event>,
    ) -> Result<Sender<()>, Failure> {
        let (may_begin, begins) = bounded(self.ended.len());
        // A process with the client role alone prefers the CPUs from the end, a server those from
        // the start.
        let places = cpu::places(self.ended.len(), Allowed::now(), self.server.is_none());
        let of_cores = wakes.into_iter().zip(opened).zip(places).enumerate();
        for (index, ((wake, opened), cpu)) in of_cores {
            let setup = CoreSetup {
                index,
                cpu,
                cluster: Arc::clone(&self.cluster),
                mailboxes: self.mailboxes.clone(),
                busy_poll,
                wake,
                server: self.server.clone().zip(opened),
                client: self.client.clone(),
                begins: begins.clone(),
            };
            let sender = events.clone();
            thread::start(setup, move |report| {
                // This fails only when `main` has returned already.
                let _ended = sender.send(Event::Core(index, report));
            })
            .map_err(|error| Failure::Running(format!("thread of core {index}: {error}")))?;
        }
        Ok(may_begin)
    }

    /// Waits until every core has reported this.
    fn wait_for(&mut self, is_it: fn(&CoreReport) -> bool) -> Result<(), Failure> {
        let mut waits_for = self.ended.len();
        while waits_for > 0 {
            match self.events.recv() {
                Ok(Event::Core(_, report)) if is_it(&report) => waits_for -= 1,
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

    /// Takes the place of the process that has lent its sockets.
    ///
    /// # Errors
    /// If that process serves on. Whatever fails after this, nobody else serves.
    fn take_over(&self, inherited: Inherited) -> Result<(), Failure> {
        if self.stop_at_once {
            let why = "this process was stopped before it took the place of the one before";
            return Err(Failure::Running(why.into()));
        }
        handover::serve_after(inherited, &self.listening)
    }

    /// The giving side of the next handover.
    fn giver(
        &self,
        events: &Sender<Event>,
        admin: Option<Arc<OnceLock<admin::Closer>>>,
    ) -> Option<Giver> {
        let (server, events) = (self.server.clone()?, events.clone());
        Some(Giver {
            cores: self.ended.len(),
            server,
            mailboxes: self.mailboxes.clone(),
            listening: Arc::clone(&self.listening),
            is_draining: Box::new({
                let readiness = Arc::clone(&self.readiness);
                move || readiness.is_draining()
            }),
            close_admin: Box::new(move || {
                let closer = admin.iter().filter_map(|it| it.get());
                closer.for_each(admin::Closer::close);
            }),
            handed_over: Box::new(move |pid| {
                let _ended = events.send(Event::HandedOver(pid));
            }),
        })
    }
}

/// Raises the limit of open files and reserves some; returns the limit, if there is one.
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

/// Binds everything that a server has; returns what each core is to open.
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
    let _changing = listening
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
