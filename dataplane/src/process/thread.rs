//! A core's thread: pinned, with its own runtime, on io_uring where the system allows it and on
//! epoll elsewhere.

use std::cell::Cell;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::mail::CoreMail;
use super::progress::BEAT;
use crate::client::{ClientCore, ClientShared};
use crate::core::event::yield_now;
use crate::core::mailbox::{Mail as _, Mailbox, Mailboxes};
use crate::core::panics::{self, contain, core_is_broken};
use crate::core::turn::by_turns;
use crate::core::{Cluster, CoreContext, busy_poll, memory, task, time, turn};
use crate::flow::role::RoleContext;
use crate::flow::watch::{self, TcpFlows};
use crate::server::shared::plan::CoreChanges;
use crate::server::{ServerCore, ServerShared};
use crate::sys::ring::RingView;
use crate::sys::wake::WakeReceiver;
use crate::sys::{cpu, heap, slice};

/// How a completion is reported to a core that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupts {
    /// The core is told with its next system call (IORING_SETUP_COOP_TASKRUN).
    Never,
    /// The core is told at once, by an interrupt of its CPU.
    Always,
}

/// The rings that are tried, in this order: entries of the submission queue, and interrupts. One
/// turn of the runtime rarely submits more, and a full queue is merely submitted early. A large
/// ring may be more locked memory than the process may have (RLIMIT_MEMLOCK, before Linux 5.12).
const RINGS: [(u32, Interrupts); 4] = [
    (4_096, Interrupts::Never),
    (4_096, Interrupts::Always),
    (256, Interrupts::Never),
    (256, Interrupts::Always),
];

/// How often a draining core checks whether the last flow has ended.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// How long a client that stops waits for its servers to say that no flow is on its way. A server
/// that does not answer must not hold it up.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for the last packets (CONNECTION_CLOSE) to leave.
const LAST_FLUSH: Duration = Duration::from_millis(30);

/// The parameters of a core.
pub(crate) struct CoreSetup {
    /// The index of the core.
    pub(crate) index: usize,
    /// All cores.
    pub(crate) cluster: Arc<Cluster>,
    /// The mailboxes of all cores.
    pub(super) mailboxes: Mailboxes<CoreMail>,
    /// The CPU that its thread is pinned to, if it is.
    pub(crate) cpu: Option<usize>,
    /// Whether it may busy-poll.
    pub(crate) busy_poll: bool,
    /// The socket by which its mailbox wakes it.
    pub(crate) wake: UnixDatagram,
    /// The server role, if configured, with what this core is to open.
    pub(crate) server: Option<(Arc<ServerShared>, CoreChanges)>,
    /// The client role, if configured.
    pub(crate) client: Option<Arc<ClientShared>>,
    /// Sends the order to begin, once, after [`CoreReport::Opened`]; the core ends if nobody is
    /// left to give it.
    pub(crate) begins: Receiver<()>,
}

/// What a core's thread tells `main`.
#[derive(Debug)]
pub(crate) enum CoreReport {
    /// The core's sockets are open, but none of its tasks has run: nothing has been read or
    /// accepted.
    Opened,
    /// All parts of the core run.
    Started,
    /// A task without which the core is of no use has panicked. The rest of the core goes on.
    Broken,
    /// The core was told to drain, and has no more flows and gets none (no core has TCP flows), or
    /// their time is over.
    Drained,
    /// The core has ended: as told, or by a failure.
    Ended(Result<(), String>),
}

/// Starts the thread of one core. Reports go to `report`; the last one is [`CoreReport::Ended`],
/// also after a panic.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(
    setup: CoreSetup,
    report: impl Fn(CoreReport) + Send + 'static,
) -> io::Result<()> {
    panics::install_hook();
    let name = format!("{}{}", cpu::CORE_THREAD, setup.index);
    std::thread::Builder::new().name(name).spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(setup, &report)));
        report(CoreReport::Ended(
            result.unwrap_or_else(|_| Err("a core panicked".into())),
        ));
    })?;
    Ok(())
}

fn run(setup: CoreSetup, report: &impl Fn(CoreReport)) -> Result<(), String> {
    #[cfg(feature = "count-allocations")]
    crate::sys::allocations::watch_this_thread();
    heap::this_thread_is_a_core();
    match setup.cpu {
        Some(cpu) if cpu::pin_current_thread(cpu) => {
            tracing::debug!(core = setup.index, cpu, "pinned");
        }
        Some(cpu) => tracing::warn!(core = setup.index, cpu, "could not be pinned to this CPU"),
        None => {}
    }
    if let Err(error) = slice::shorten() {
        tracing::debug!(core = setup.index, %error, "no short slice of CPU time");
    }
    if monoio::utils::detect_uring() {
        for (entries, interrupts) in RINGS {
            let mut ring = io_uring::IoUring::builder();
            if interrupts == Interrupts::Never {
                ring.setup_coop_taskrun();
                // Busy polling sees in the ring's memory that there is something to be told.
                ring.setup_taskrun_flag();
            }
            let built = RingView::of(|| {
                monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                    .enable_timer()
                    .uring_builder(ring)
                    .with_entries(entries)
                    .build()
            });
            match built {
                Ok((mut runtime, view)) => {
                    if let Some(view) = view.filter(|_| setup.busy_poll) {
                        busy_poll::watch(view);
                    }
                    return runtime.block_on(by_turns(async_run(setup, report)));
                }
                // This is the error before Linux 5.19.
                Err(error)
                    if interrupts == Interrupts::Never
                        && error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => {
                    tracing::warn!(core = setup.index, entries, %error, "no io_uring of this size");
                }
            }
        }
        tracing::warn!(core = setup.index, "io_uring is not available; using epoll");
    }
    let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
        .enable_timer()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(by_turns(async_run(setup, report)))
}

async fn async_run(setup: CoreSetup, report: &impl Fn(CoreReport)) -> Result<(), String> {
    let context = Rc::new(CoreContext::new(setup.index, setup.cluster, Instant::now()));
    let (index, mailboxes) = (context.index, setup.mailboxes.clone());
    panics::watch_this_thread(&context, move || mailboxes.of(index).wake());
    let flows = TcpFlows::new(Arc::clone(&context.counters));
    task::spawn_vital(beat(Rc::clone(&context)));
    task::spawn_vital(watch::sweep(Rc::clone(&flows)));
    task::spawn_vital(memory::keep_within_limit(
        Rc::clone(&context),
        Rc::clone(&flows),
    ));
    let wake = WakeReceiver::new(setup.wake).map_err(|error| error.to_string())?;
    let server = match setup.server {
        Some((shared, opened)) => {
            let post = Arc::new(setup.mailboxes.clone());
            let context = RoleContext::new(&context, post, &flows);
            Some(ServerCore::start(&context, &shared, opened)?)
        }
        None => None,
    };
    report(CoreReport::Opened);
    // This blocks the thread, so that no other task runs: tasks to which the sockets have been
    // given begin with the first one. Until then another process may serve with the same sockets.
    let told = setup.begins.recv();
    told.map_err(|_| "the process ended before it began to serve".to_owned())?;
    yield_now().await;
    // Neither the time for opening nor the wait counts as a turn.
    context.cluster.turns[context.index].watch_this_thread();
    let client = setup.client.map(|shared| {
        let post = Arc::new(setup.mailboxes.clone());
        ClientCore::start(&RoleContext::new(&context, post, &flows), &shared)
    });
    report(CoreReport::Started);
    let roles = Roles {
        context: &context,
        mailbox: setup.mailboxes.of(index),
        server: server.as_ref(),
        client: client.as_ref(),
        mail_left: Cell::new(false),
        report,
    };
    let timeout = loop {
        if let Some(Order::Drain(timeout)) = roles.mail(&wake, None).await? {
            break timeout;
        }
    };
    roles.drain(&wake, timeout).await?;
    report(CoreReport::Drained);
    while !matches!(roles.mail(&wake, None).await?, Some(Order::Close)) {}
    roles.close().await;
    Ok(())
}

/// The core's own clock: shows that its tasks get their turns, and watches what nobody reports.
async fn beat(context: Rc<CoreContext>) {
    let began = Instant::now();
    loop {
        time::sleep(BEAT).await;
        panics::may_be_injected("beat");
        context.counters.beats.increment();
        context.cluster.turns[context.index].forget_old(began.elapsed());
        note_udp(&context, Instant::now());
    }
}

fn note_udp(context: &CoreContext, now: Instant) {
    let counters = &context.counters;
    let datagrams = counters
        .udp_datagrams_in
        .get()
        .wrapping_add(counters.udp_datagrams_out.get());
    context.udp_activity.note(datagrams, now);
}

/// An order of `main` to a core.
enum Order {
    Drain(Duration),
    Close,
}

/// The parts of a core, for as long as it runs.
struct Roles<'a> {
    context: &'a CoreContext,
    mailbox: &'a Mailbox<CoreMail>,
    server: Option<&'a Rc<ServerCore>>,
    client: Option<&'a Rc<ClientCore>>,
    /// Whether the last turn has left mail.
    mail_left: Cell<bool>,
    report: &'a dyn Fn(CoreReport),
}

impl Roles<'_> {
    /// Waits for mail (no longer than `at_most`) and handles a turn's worth of it, up to the first
    /// order from `main`.
    async fn mail(
        &self,
        wake: &WakeReceiver,
        at_most: Option<Duration>,
    ) -> Result<Option<Order>, String> {
        let woken = match at_most {
            // There is no wake-up for mail that the last turn has left.
            _ if self.mail_left.get() => {
                yield_now().await;
                Ok(())
            }
            None => wake.wait().await,
            // Cancelling this wait loses nothing, because the wake-up stays in the socket.
            Some(time) => time::timeout(time, wake.wait()).await.unwrap_or(Ok(())),
        };
        woken.map_err(|error| format!("waiting for mail: {error}"))?;
        self.mailbox.rearm();
        if self.context.broken.take() {
            (self.report)(CoreReport::Broken);
        }
        let told = self.handle(self.mailbox.turn());
        self.mail_left.set(!self.mailbox.is_empty());
        Ok(told)
    }

    /// Handles mail for as long as a turn may take, up to the first order from `main`.
    fn handle(&self, turn: impl Iterator<Item = CoreMail>) -> Option<Order> {
        for mail in turn {
            self.context.counters.mail_received.increment();
            let is_vital = mail.kind().is_vital();
            let handled = match mail {
                CoreMail::Drain { timeout } => return Some(Order::Drain(timeout)),
                CoreMail::Close => return Some(Order::Close),
                CoreMail::Server(mail) => contain(|| self.server.map(|server| server.mail(mail))),
                CoreMail::Client(mail) => contain(|| self.client.map(|client| client.mail(mail))),
            };
            // It was a visitor, a packet or a datagram, and costs no more than that.
            if handled.is_err() && is_vital {
                core_is_broken();
            }
            if turn::share_is_used() {
                break;
            }
        }
        None
    }

    /// Drains: takes nothing new and lets flows finish for `timeout` at most.
    async fn drain(&self, wake: &WakeReceiver, timeout: Duration) -> Result<(), String> {
        let context = self.context;
        let began = Instant::now();
        let deadline = began + timeout;
        context.draining.set(true);
        note_udp(context, began);
        if let Some(server) = self.server {
            server.drain(timeout);
        }
        if let Some(client) = self.client {
            client.drain(timeout);
        }
        let settled_by = began + timeout.min(SETTLE_TIMEOUT);
        loop {
            // The order matters: what another core mails before it stops taking visitors is found
            // in the mailbox.
            let visitors_are_in = context.cluster.all_visitors_are_in();
            self.mail(wake, Some(DRAIN_POLL)).await?;
            let visitors_are_in = visitors_are_in && self.mailbox.has_no_visitor();
            let now = Instant::now();
            note_udp(context, now);
            let settled = now >= settled_by || self.client.is_none_or(|client| client.is_settled());
            // Flows of other cores count as well: while one has a flow, that may come here to begin
            // anew.
            if visitors_are_in
                && settled
                && context.cluster.all_tcp_flows_have_ended()
                && context.udp_activity.is_over(began, now)
                && self.have_delivered(now)
            {
                return Ok(());
            }
            if now >= deadline {
                break;
            }
        }
        if context.tcp_flows.get() > 0 {
            tracing::warn!(
                core = context.index,
                flows = context.tcp_flows.get(),
                "drain_timeout is over; flows are reset"
            );
        }
        if !self.have_delivered(Instant::now()) {
            tracing::warn!(
                core = context.index,
                "drain_timeout is over; the last bytes of flows that have ended may be lost"
            );
        }
        Ok(())
    }

    /// Whether the peers have all bytes of the flows that have ended.
    fn have_delivered(&self, now: Instant) -> bool {
        let server = self.server.is_none_or(|server| server.has_delivered(now));
        let client = self.client.is_none_or(|client| client.has_delivered(now));
        server && client
    }

    /// Closes every lane.
    async fn close(&self) {
        if let Some(server) = self.server {
            server.close();
        }
        if let Some(client) = self.client {
            client.close();
        }
        time::sleep(LAST_FLUSH).await;
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::{bounded, unbounded};

    use super::*;
    use crate::core::panics::injected;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A core without any role, whose first beat panics.
    fn start_core() -> (Arc<Cluster>, Mailboxes<CoreMail>, Receiver<CoreReport>) {
        let (mailboxes, mut wakes) = Mailboxes::new(1).expect("a socket pair");
        let cluster = Arc::new(Cluster::new(1));
        let (may_begin, begins) = bounded(1);
        may_begin.send(()).expect("a place");
        let setup = CoreSetup {
            cpu: None,
            busy_poll: true,
            index: 0,
            cluster: Arc::clone(&cluster),
            mailboxes: mailboxes.clone(),
            wake: wakes.remove(0),
            server: None,
            client: None,
            begins,
        };
        let (sender, reports) = unbounded();
        let report = move |report| {
            if matches!(report, CoreReport::Started) {
                injected::expect_at("beat");
            }
            let _test_is_over = sender.send(report);
        };
        start(setup, report).expect("a thread");
        (cluster, mailboxes, reports)
    }

    #[test]
    fn a_core_that_lost_a_vital_task_says_so_and_still_drains_and_closes() {
        let (cluster, mailboxes, reports) = start_core();
        let next = || reports.recv_timeout(PATIENCE).expect("a report");
        assert!(matches!(next(), CoreReport::Opened));
        assert!(matches!(next(), CoreReport::Started));
        assert!(matches!(next(), CoreReport::Broken));
        assert_eq!(cluster.counters[0].panics.get(), 1);
        let timeout = Duration::from_secs(10);
        let drain = mailboxes.of(0).send(CoreMail::Drain { timeout });
        drain.expect("a place");
        assert!(matches!(next(), CoreReport::Drained));
        mailboxes.of(0).send(CoreMail::Close).expect("a place");
        assert!(matches!(next(), CoreReport::Ended(Ok(()))));
    }
}
