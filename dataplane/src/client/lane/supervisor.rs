//! The supervisor of a lane: it makes attempt after attempt, with back-off in between, until it is
//! retired.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use qmux_proto::control::RefuseReason;

use super::ClientLane;
use super::attempt;
use super::backoff::Backoff;
use super::ending::{AttemptEnd, Retry};
use super::leaving::Leaving;
use crate::client::ClientCore;
use crate::client::servers::server::ServerState;
use crate::client::servers::take_up::Generation;
use crate::core::event::Event;
use crate::core::task::contained;

/// Attempts in a row that may be repeated at once because the server has another number of cores
/// than was thought. If there are more, several servers with different numbers are behind one
/// address.
const MISAIMED_MAX: u32 = 2;

/// The longest delay to an address that this host has no route to, while another address of the
/// same server serves: networks change, if rarely.
const NO_ROUTE: Duration = Duration::from_secs(120);

/// How long an address without a route causes no warning, because another address of the name may
/// be about to serve.
const NO_ROUTE_PATIENCE: Duration = Duration::from_secs(10);

/// Keeps one lane up.
pub(crate) struct Supervisor {
    pub(super) server: Arc<ServerState>,
    pub(super) lane: usize,
    /// Set once the supervisor is retired: how its lane is left.
    retired: Cell<Option<Leaving>>,
    /// Whether another lane has reached the server.
    found: Cell<bool>,
    /// Set when `retired` or `found` is.
    told: Event,
    /// The configuration with which its lanes register.
    generation: Generation,
    /// Supervisors that go on until a lane of this one serves.
    predecessors: RefCell<Vec<Rc<Supervisor>>>,
    /// The supervisor that has this one as a predecessor.
    successor: RefCell<Weak<Supervisor>>,
    /// The lane, while it serves.
    serving: RefCell<Option<Rc<ClientLane>>>,
}

impl Supervisor {
    pub(crate) fn start(
        core: &Rc<ClientCore>,
        server: &Arc<ServerState>,
        lane: usize,
        generation: Generation,
    ) -> Rc<Supervisor> {
        Supervisor::start_after(core, server, lane, generation, Vec::new())
    }

    /// Starts another supervisor for the same lane, by another configuration. This one goes on
    /// until that one serves.
    pub(crate) fn succeed(
        self: &Rc<Self>,
        core: &Rc<ClientCore>,
        generation: Generation,
    ) -> Rc<Supervisor> {
        let mut predecessors = self.predecessors.take();
        if predecessors.is_empty() && self.serving.borrow().is_some() {
            predecessors.push(Rc::clone(self));
        } else {
            // It does not serve, and its attempts would be made beside those of the new one. If
            // there are any before it, these still serve.
            self.retire(Leaving::Renewed);
        }
        Supervisor::start_after(core, &self.server, self.lane, generation, predecessors)
    }

    fn start_after(
        core: &Rc<ClientCore>,
        server: &Arc<ServerState>,
        lane: usize,
        generation: Generation,
        predecessors: Vec<Rc<Supervisor>>,
    ) -> Rc<Supervisor> {
        let this = Rc::new(Supervisor {
            generation,
            predecessors: RefCell::new(predecessors),
            successor: RefCell::default(),
            server: Arc::clone(server),
            lane,
            retired: Cell::new(None),
            found: Cell::new(false),
            told: Event::default(),
            serving: RefCell::default(),
        });
        for predecessor in &*this.predecessors.borrow() {
            *predecessor.successor.borrow_mut() = Rc::downgrade(&this);
        }
        crate::core::task::spawn(Rc::clone(&this).run(Rc::clone(core)));
        this
    }

    /// Retires the supervisor: it makes no further attempt, and a lane that serves is left to its
    /// flows.
    pub(crate) fn retire(&self, leaving: Leaving) {
        self.retired.set(Some(leaving));
        self.told.set();
        if let Some(lane) = &*self.serving.borrow() {
            lane.wake.set();
        }
        for predecessor in self.predecessors.take() {
            predecessor.retire(leaving);
        }
    }

    /// The present configuration, with the settings of this number, if it is another one than that
    /// with which its lanes register.
    pub(crate) fn is_outdated(&self, settings: u64) -> Option<Generation> {
        let present = Generation::of(settings, &self.server);
        (present != self.generation).then_some(present)
    }

    /// Another lane to the same server has just registered, so this one should try again soon.
    pub(crate) fn found(&self) {
        self.found.set(true);
        self.told.set();
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.get().is_some()
    }

    /// How to leave a lane that is not wanted any more.
    pub(super) fn leaving(&self) -> Leaving {
        self.retired.get().unwrap_or(Leaving::Unwanted)
    }

    /// Sets the lane that is told when this supervisor is retired.
    pub(super) fn serves(&self, lane: Option<&Rc<ClientLane>>) {
        *self.serving.borrow_mut() = lane.cloned();
        let Some(lane) = lane else { return };
        for predecessor in self.predecessors.take() {
            predecessor.retire(Leaving::Renewed);
        }
        // While another supervisor succeeds this one, that one's configuration counts.
        let is_present = self.successor.borrow().upgrade().is_none();
        if is_present && self.server.take_up.serves(self.generation) {
            tracing::info!(
                server = lane.shared.title(&self.server),
                "the server is served by its changed configuration now"
            );
        }
    }

    /// Whether a lane by an earlier configuration serves.
    fn has_serving_predecessor(&self) -> bool {
        let predecessors = self.predecessors.borrow();
        predecessors.iter().any(|it| it.serving.borrow().is_some())
    }

    /// Runs `work` to its end, or until this supervisor is retired.
    pub(super) async fn unless_retired<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if self.poll_told(cx, || self.is_retired()) {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Whether `what` holds; otherwise the task is woken when anything was told.
    fn poll_told(&self, cx: &mut Context<'_>, what: impl Fn() -> bool) -> bool {
        loop {
            if what() {
                return true;
            }
            if self.told.poll(cx).is_pending() {
                return false;
            }
        }
    }

    async fn run(self: Rc<Self>, core: Rc<ClientCore>) {
        let mut backoff = Backoff::default();
        let mut misaimed = 0;
        let mut draining = false;
        let mut no_route_since = None;
        loop {
            let began = Instant::now();
            self.found.set(false);
            let end = contained(attempt::run(&core, &self)).await;
            let end = end.unwrap_or_else(|panicked| AttemptEnd::Failed(panicked.to_string()));
            if self.is_retired() || core.context.draining.get() {
                return;
            }
            if let Some(successor) = self.successor.borrow().upgrade() {
                // The lane of the earlier configuration has ended, and there is none now.
                successor.found();
                return;
            }
            let retry = end.retry(began.elapsed());
            if retry == Retry::AtOnce && misaimed < MISAIMED_MAX {
                misaimed += 1;
                continue;
            }
            misaimed = 0;
            let delay = self.delay(&core, retry, &mut backoff);
            let drains = retry == Retry::WithSuccessor { refused: true };
            no_route_since = match &end {
                AttemptEnd::NoRoute(_) => no_route_since.or(Some(began)),
                _ => None,
            };
            let no_news = no_route_since.is_some_and(|since| self.lacks_route(&core, since));
            let said = drains && draining || no_news;
            if self.has_serving_predecessor() {
                self.not_taken_up(&core, &end, delay);
            } else if !said {
                self.log(&core, &end, delay);
            }
            draining = drains;
            self.pause(delay, &mut backoff).await;
            if self.is_retired() || core.context.draining.get() {
                return;
            }
        }
    }

    /// How long to wait until the next attempt.
    fn delay(&self, core: &ClientCore, retry: Retry, backoff: &mut Backoff) -> Duration {
        match retry {
            Retry::Anew | Retry::WithSuccessor { refused: false } => backoff.reset(),
            Retry::MuchLater => backoff.discourage(),
            _ => {}
        }
        // One lane is enough to find out when the next server is there; the others are told.
        let asks = self.lane == 0;
        match retry {
            Retry::WithSuccessor { refused } if refused || !asks => {
                Backoff::next_while_draining(asks, rand::random())
            }
            Retry::WithRoute if core.shared.serves_elsewhere(&self.server) => {
                NO_ROUTE.mul_f64(0.5 + rand::random::<f64>() / 2.0)
            }
            _ => backoff.next(rand::random()),
        }
    }

    /// Waits for `delay`, or until retired, or for a short time after another lane has reached the
    /// server.
    async fn pause(&self, delay: Duration, backoff: &mut Backoff) {
        let until = Instant::now() + delay;
        let found = {
            let mut sleep = pin!(crate::core::time::sleep(delay));
            poll_fn(|cx| {
                if self.poll_told(cx, || self.is_retired() || self.found.get()) {
                    return Poll::Ready(true);
                }
                sleep.as_mut().poll(cx).map(|()| false)
            })
            .await
        };
        if found && !self.is_retired() {
            let left = until.saturating_duration_since(Instant::now());
            let delay = backoff.found(rand::random()).min(left);
            self.unless_retired(crate::core::time::sleep(delay)).await;
        }
    }

    /// Whether enough was logged about an address without a route since `since`. A host with one
    /// address family has nothing to complain of while another address serves.
    fn lacks_route(&self, core: &ClientCore, since: Instant) -> bool {
        // Only the first lane logs this, for all lanes.
        let first = self.lane == 0 && self.server.lacks_route();
        let others = !core.shared.other_addresses(&self.server).is_empty();
        let waits =
            since.elapsed() < NO_ROUTE_PATIENCE || core.shared.serves_elsewhere(&self.server);
        !first && others && waits
    }

    /// Notes, and says now and then, that no lane can be had by the changed configuration, while
    /// those of the earlier one serve.
    fn not_taken_up(&self, core: &ClientCore, end: &AttemptEnd, delay: Duration) {
        let (why, next_ms) = (end.to_string(), delay.as_millis() as u64);
        if !end.is_in_vain() {
            return;
        }
        if self
            .server
            .take_up
            .fails(self.generation, &why, Instant::now())
        {
            tracing::warn!(
                server = core.shared.title(&self.server),
                why,
                next_ms,
                "the changed configuration of this server does not serve, and would not after a \
                 restart: its lanes of before go on until it does; trying again"
            );
        } else {
            tracing::debug!(server = %self.server, lane = self.lane, why, next_ms, "no lane by the changed configuration; trying again");
        }
    }

    /// Logs the end of an attempt. Only one lane to a server logs at the levels that operators see.
    fn log(&self, core: &ClientCore, end: &AttemptEnd, delay: Duration) {
        if self.lane > 0 {
            let next_ms = delay.as_millis() as u64;
            tracing::debug!(server = %self.server, lane = self.lane, %end, next_ms, "lane ended, or could not be had; trying again");
            return;
        }
        let Some(suppressed) = core.context.connect_log.pass(Instant::now()) else {
            return;
        };
        let server = core.shared.title(&self.server);
        let server_name = &self.server.configured().server_name;
        let next_ms = delay.as_millis() as u64;
        match end {
            AttemptEnd::Misaimed
            | AttemptEnd::ServerDrains
            | AttemptEnd::Superseded
            | AttemptEnd::Retired => {}
            AttemptEnd::Ended(end) => {
                tracing::debug!(server, lane = self.lane, %end, next_ms, suppressed, "lane ended; connecting again");
            }
            AttemptEnd::NoRoute(why) if core.shared.serves_elsewhere(&self.server) => {
                tracing::info!(
                    server,
                    why,
                    next_ms,
                    "one address of the server cannot be used; another one serves"
                );
            }
            AttemptEnd::Failed(why) | AttemptEnd::NoRoute(why) => {
                tracing::warn!(
                    server,
                    server_name,
                    lane = self.lane,
                    why,
                    next_ms,
                    suppressed,
                    "cannot connect; trying again"
                );
            }
            AttemptEnd::Refused(RefuseReason::DuplicateClient, text) => {
                tracing::error!(
                    %server, client_id = core.shared.client_id, text, next_ms, suppressed,
                    "two clients use this client_id at the same time, and the server keeps the newer one: give each client its own client_id, or leave client_id empty; trying again"
                );
            }
            AttemptEnd::Refused(reason, text) => {
                let text = (!text.is_empty()).then_some(text);
                tracing::warn!(server, lane = self.lane, %reason, text, next_ms, suppressed, "the server refused this client; trying again");
            }
        }
    }
}
