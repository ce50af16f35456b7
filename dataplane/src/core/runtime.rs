//! A core's thread: pinned, with its own runtime, on io_uring where the system allows it and on epoll elsewhere.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mailbox::Mail;
use super::{Cluster, CoreContext};
use crate::client::{ClientCore, ClientShared};
use crate::log_limit::LogLimit;
use crate::server::{ListenerSockets, ServerCore, ServerShared};
use crate::sys::cpu;
use crate::sys::wake::WakeReceiver;

/// Entries of a core's submission queue: one turn of the runtime rarely submits more, and a full queue is merely
/// submitted early.
const RING_ENTRIES: u32 = 4_096;

/// How often a draining core looks whether its last flow has ended.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// Time for the last packets (CONNECTION_CLOSE) to leave.
const LAST_FLUSH: Duration = Duration::from_millis(30);

/// What a core is started with.
pub(crate) struct CoreSetup {
    /// Its index.
    pub(crate) index: usize,
    /// All cores.
    pub(crate) cluster: Arc<Cluster>,
    /// By which its mailbox wakes it.
    pub(crate) wake: UnixDatagram,
    /// The server role, if configured, with this core's sockets.
    pub(crate) server: Option<(Arc<ServerShared>, Vec<ListenerSockets>)>,
    /// The client role, if configured.
    pub(crate) client: Option<Arc<ClientShared>>,
}

/// What a core's thread tells `main`.
#[derive(Debug)]
pub(crate) enum CoreReport {
    /// All its parts run.
    Started,
    /// It has ended: as told, or by a failure.
    Ended(Result<(), String>),
}

/// Starts the thread of one core. Reports go to `report`; the last one is [`CoreReport::Ended`], also after a panic.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(
    setup: CoreSetup,
    report: impl Fn(CoreReport) + Send + 'static,
) -> io::Result<()> {
    let name = format!("core-{}", setup.index);
    std::thread::Builder::new().name(name).spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(setup, &report)));
        report(CoreReport::Ended(
            result.unwrap_or_else(|_| Err("a core panicked".into())),
        ));
    })?;
    Ok(())
}

fn run(setup: CoreSetup, report: &impl Fn(CoreReport)) -> Result<(), String> {
    match cpu::pin_current_thread(setup.index) {
        Some(cpu) => tracing::debug!(core = setup.index, cpu, "pinned"),
        None => tracing::warn!(core = setup.index, "could not be pinned to a CPU"),
    }
    let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
        .enable_timer()
        .with_entries(RING_ENTRIES)
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async_run(setup, report))
}

async fn async_run(setup: CoreSetup, report: &impl Fn(CoreReport)) -> Result<(), String> {
    let context = Rc::new(CoreContext {
        index: setup.index,
        counters: Arc::clone(&setup.cluster.counters[setup.index]),
        cluster: setup.cluster,
        tcp_flows: std::cell::Cell::new(0),
        handshake_log: LogLimit::new(Instant::now()),
        dial_log: LogLimit::new(Instant::now()),
        draining: std::cell::Cell::new(false),
    });
    let wake = WakeReceiver::new(setup.wake).map_err(|error| error.to_string())?;
    let server = match setup.server {
        Some((shared, sockets)) => Some(ServerCore::start(&context, &shared, sockets)?),
        None => None,
    };
    let client = setup
        .client
        .map(|shared| ClientCore::start(&context, &shared));
    report(CoreReport::Started);
    let timeout = serve(&context, server.as_ref(), client.as_ref(), &wake).await?;
    drain(&context, server.as_ref(), client.as_ref(), timeout).await;
    Ok(())
}

/// Handles mail until told to drain; returns the time that flows get.
async fn serve(
    context: &CoreContext,
    server: Option<&ServerCore>,
    client: Option<&Rc<ClientCore>>,
    wake: &WakeReceiver,
) -> Result<Duration, String> {
    let mailbox = &context.cluster.mailboxes[context.index];
    loop {
        wake.wait()
            .await
            .map_err(|error| format!("waiting for mail: {error}"))?;
        mailbox.rearm();
        while let Some(mail) = mailbox.take() {
            context.counters.mail_received.increment();
            if let Mail::Drain { timeout } = mail {
                return Ok(timeout);
            }
            let rest = match server {
                Some(server) => server.mail(mail),
                None => Some(mail),
            };
            if let (Some(mail), Some(client)) = (rest, client) {
                client.mail(mail);
            }
        }
    }
}

/// Lets flows finish for `timeout` at most, then closes every lane.
async fn drain(
    context: &CoreContext,
    server: Option<&ServerCore>,
    client: Option<&Rc<ClientCore>>,
    timeout: Duration,
) {
    context.draining.set(true);
    if let Some(server) = server {
        server.drain(timeout);
    }
    if let Some(client) = client {
        client.drain(timeout);
    }
    let deadline = Instant::now() + timeout;
    while context.tcp_flows.get() > 0 && Instant::now() < deadline {
        monoio::time::sleep(DRAIN_POLL).await;
    }
    if context.tcp_flows.get() > 0 {
        tracing::warn!(
            core = context.index,
            flows = context.tcp_flows.get(),
            "drain_timeout is over; flows are reset"
        );
    }
    if let Some(server) = server {
        server.close();
    }
    if let Some(client) = client {
        client.close();
    }
    monoio::time::sleep(LAST_FLUSH).await;
}
