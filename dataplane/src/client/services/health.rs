//! The health of the services: whether this client reaches each by TCP, found out by flows that
//! dial it and by checks of its own.
//!
//! A flow's failed dial is proof enough that the service is down: servers are told on every lane,
//! and send TCP visitors elsewhere while there are other clients. From then on core 0 checks the
//! service, less and less often, until a connection succeeds. That, or a flow's dial that works
//! after all (though not within [`DIALS_DOUBTED_FOR`]), is proof that it is up. With
//! `health_check_interval` the service is also checked while it is thought to be up. In a range of
//! ports the first one stands for all, and the others for themselves alone.
//!
//! A service that speaks UDP alone is down for a while after it could not serve a visitor, until it
//! answers one. Servers find that out by themselves, and are not told.
//!
//! The result is one flag for each service in the whole process. A core that changes it mails all
//! cores, and each of them reports it on its lanes. A lane that missed the mail reports it with its
//! next heartbeat.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Service;
use super::proxy_header;
use crate::client::ClientContext;
use crate::client::mail::ClientMail;
use crate::core::event::Event;
use crate::flow::udp::refusals::UdpRefusals;
use crate::jitter::jittered;
use crate::sys::limits;
use crate::sys::tcp::{FirstBytes, TcpSocket};

/// The core that makes the checks.
const CHECKING_CORE: usize = 0;

/// Checks that must fail in a row before a service that was up counts as down, because one may be
/// lost in a restart.
const FAILURES_TO_DOWN: u32 = 2;

/// Pause after the first failed check or dial; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// The longest pause between two checks of a service that is down: how long it may be up unnoticed.
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// How long after a failure only a check may find that the service is up again. Where some dials
/// fail and others work, each flow would otherwise change the result, and have it reported to all
/// servers.
const DIALS_DOUBTED_FOR: Duration = Duration::from_secs(1);

/// Doublings after which the pause has reached [`PAUSE_LONGEST`].
const DOUBLINGS_MAX: u32 = 5;

const _: () = assert!(PAUSE_FIRST.as_millis() << DOUBLINGS_MAX >= PAUSE_LONGEST.as_millis());

/// The health of one service, for the whole process.
#[derive(Debug)]
pub(crate) struct ServiceState {
    down: AtomicBool,
    /// The time at which the service was last found to be down, in milliseconds since `began`.
    down_at_ms: AtomicU64,
    began: Instant,
    /// UDP visitors whom the service did not take.
    pub(in crate::client) udp_refusals: UdpRefusals,
}

/// Who has tried the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Flow,
    Check,
}

impl ServiceState {
    /// The state of a service that counts as up until something else is known.
    pub(crate) fn new(now: Instant) -> ServiceState {
        ServiceState {
            down: AtomicBool::new(false),
            down_at_ms: AtomicU64::new(0),
            began: now,
            udp_refusals: UdpRefusals::new(now),
        }
    }

    /// Whether the service can be reached, as far as is known.
    pub(crate) fn healthy(&self) -> bool {
        !self.down.load(Ordering::Acquire)
    }

    /// Takes the result of a flow's dial. If it worked and the service was up, this costs one load.
    /// All cores are told of a change.
    pub(crate) fn dialled(&self, worked: bool, service: &Service, context: &ClientContext) {
        if self.healthy() != worked && self.change(worked, By::Flow, Instant::now()) {
            Self::tell(worked, service, context);
        }
    }

    /// Takes the result of a check. All cores are told of a change.
    fn checked(&self, healthy: bool, service: &Service, context: &ClientContext) {
        if self.change(healthy, By::Check, Instant::now()) {
            Self::tell(healthy, service, context);
        }
    }

    /// Changes the result. Returns true if this is news.
    fn change(&self, healthy: bool, by: By, now: Instant) -> bool {
        let now_ms = u64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        if !healthy {
            // The time is stored before the flag, so that whoever sees the flag finds the time.
            self.down_at_ms.store(now_ms, Ordering::Relaxed);
        } else if by == By::Flow {
            let down_for = now_ms.saturating_sub(self.down_at_ms.load(Ordering::Relaxed));
            if u128::from(down_for) < DIALS_DOUBTED_FOR.as_millis() {
                return false;
            }
        }
        self.down.swap(!healthy, Ordering::AcqRel) == healthy
    }

    fn tell(healthy: bool, service: &Service, context: &ClientContext) {
        if let Some(suppressed) = context.health_log.pass(Instant::now()) {
            if healthy {
                tracing::info!(%service, suppressed, "the service can be reached again");
            } else {
                tracing::warn!(
                    %service,
                    suppressed,
                    "the service cannot be reached; servers are asked to send TCP visitors elsewhere"
                );
            }
        }
        for core in 0..context.post.cores() {
            // If the mailbox is full, the lanes of that core report it with their next heartbeat.
            if context.post.send(core, ClientMail::ServiceHealth).is_err() {
                context.counters.service_news_dropped.increment();
            }
        }
    }
}

/// Decides when the service is checked, and what the results of the checks mean. There is no clock
/// in here: time comes in as an argument.
#[derive(Debug)]
struct Checks {
    /// Pause between checks while the service is up; `None` if there are none.
    interval: Option<Duration>,
    down: bool,
    failures: u32,
    next: Option<Instant>,
}

impl Checks {
    fn new(interval: Option<Duration>, now: Instant) -> Checks {
        Checks {
            interval,
            down: false,
            failures: 0,
            next: interval.map(|_| now),
        }
    }

    /// The time of the next check.
    fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Takes what flows have found out about the service; only if it is news.
    fn told(&mut self, healthy: bool, now: Instant) {
        if self.down == healthy {
            self.down = !healthy;
            self.failures = u32::from(!healthy);
            self.plan(now);
        }
    }

    /// Takes the result of a check. Returns the new state of the service, if that is news.
    fn checked(&mut self, worked: bool, now: Instant) -> Option<bool> {
        let was_down = self.down;
        if worked {
            self.failures = 0;
            self.down = false;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.down |= self.failures >= FAILURES_TO_DOWN;
        }
        self.plan(now);
        (self.down != was_down).then_some(!self.down)
    }

    /// Nothing was learned, because this machine lacked what the check needed.
    fn not_made(&mut self, now: Instant) {
        self.plan(now);
    }

    fn plan(&mut self, now: Instant) {
        let pause = if self.failures == 0 {
            self.interval
        } else {
            let doublings = (self.failures - 1).min(DOUBLINGS_MAX);
            let pause = (PAUSE_FIRST * (1 << doublings)).min(PAUSE_LONGEST);
            Some(self.interval.map_or(pause, |interval| interval.min(pause)))
        };
        self.next = pause.map(|pause| now + pause);
    }
}

/// Makes the health checks of one service, on one core only.
pub(crate) struct Checker {
    service: Arc<Service>,
    told: Event,
    /// Whether the service is removed, or is another one now.
    over: Cell<bool>,
}

impl Checker {
    /// Starts the checkers of all services that can be checked, if this core has that task. Those
    /// of `running` whose service is the same go on; the others end.
    pub(crate) fn start_all(
        context: &Rc<ClientContext>,
        services: &[Arc<Service>],
        running: Vec<Rc<Checker>>,
    ) -> Vec<Rc<Checker>> {
        if context.index != CHECKING_CORE {
            return Vec::new();
        }
        let is_same = |it: &Checker, service: &Service| {
            it.service.local == service.local && Arc::ptr_eq(&it.service.host, &service.host)
        };
        let checked: Vec<_> = services.iter().filter(|it| it.is_checked()).collect();
        let (mut checkers, over): (Vec<_>, Vec<_>) = running
            .into_iter()
            .partition(|it| checked.iter().any(|service| is_same(it, service)));
        for checker in over {
            checker.over.set(true);
            checker.told.set();
        }
        for service in checked {
            if checkers.iter().any(|it| is_same(it, service)) {
                continue;
            }
            let checker = Rc::new(Checker {
                service: Arc::clone(service),
                told: Event::default(),
                over: Cell::new(false),
            });
            let run = Rc::clone(&checker).run(Rc::clone(context));
            crate::core::task::spawn_vital(run);
            checkers.push(checker);
        }
        checkers
    }

    /// Wakes the checker, because the health of a service has changed.
    pub(crate) fn told(&self) {
        self.told.set();
    }

    async fn run(self: Rc<Self>, context: Rc<ClientContext>) {
        let Service {
            local, state, host, ..
        } = &*self.service;
        let interval = Some(local.health_check_interval).filter(|interval| !interval.is_zero());
        while !host.was_asked() {
            crate::core::time::sleep(PAUSE_FIRST).await;
        }
        // Clients that were started together must not check one service together.
        let interval = interval.map(jittered);
        let mut checks = Checks::new(interval, Instant::now());
        // The service may be down already, by what flows have found out before, or because the
        // state of the service has outlived an earlier configuration.
        checks.told(state.healthy(), Instant::now());
        while !context.draining.get() && !self.over.get() {
            self.wait(checks.next()).await;
            if self.over.get() {
                return;
            }
            checks.told(state.healthy(), Instant::now());
            if checks.next().is_none_or(|next| next > Instant::now()) {
                continue;
            }
            context.counters.service_checks.increment();
            let result = self.check().await;
            if let Err(error) = &result
                && limits::is_own_want(error)
            {
                context.counters.service_checks_not_made.increment();
                checks.not_made(Instant::now());
                continue;
            }
            let worked = result.is_ok();
            if !worked {
                context.counters.service_checks_failed.increment();
                self.service.counts.checks_failed.increment();
            }
            // A flow may have found out more meanwhile; its result is either older than this check,
            // or true.
            checks.told(state.healthy(), Instant::now());
            if let Some(healthy) = checks.checked(worked, Instant::now()) {
                state.checked(healthy, &self.service, &context);
            }
        }
    }

    async fn check(&self) -> io::Result<()> {
        let local = &self.service.local;
        let port = local.check_port().unwrap_or_default();
        let header = proxy_header::of_ourselves(local.proxy_protocol);
        let first = FirstBytes::ready_if(!header.is_empty());
        let timeout = local.health_check_timeout;
        let socket = connect(&self.service, port, first, timeout).await?;
        if !header.is_empty() {
            // A new socket has room for more than that.
            socket.try_write(&header)?;
        }
        socket.close_with_fin();
        Ok(())
    }

    /// Waits for that time or for news.
    async fn wait(&self, until: Option<Instant>) {
        let Some(until) = until else {
            return self.told.wait().await;
        };
        let sleep = crate::core::time::sleep_until(until);
        // Whichever of the two comes first.
        let _time_or_news = self.told.cuts_short(sleep).await;
    }
}

/// Connects to `port` at the first address of the service that answers; each gets `timeout`.
pub(crate) async fn connect(
    service: &Service,
    port: u16,
    first: FirstBytes,
    timeout: Duration,
) -> io::Result<TcpSocket> {
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        "the service's name cannot be resolved",
    );
    let mut answered = false;
    for host in service.host.addresses().iter() {
        let attempt = TcpSocket::connect(service.at(*host, port), first);
        match crate::core::time::timeout(timeout, attempt).await {
            Ok(Ok(socket)) => return Ok(socket),
            // That this host lacks what it needs for one address says less than the answer of
            // another one.
            Ok(Err(error)) if answered && limits::is_own_want(&error) => {}
            Ok(Err(error)) => {
                answered = !limits::is_own_want(&error);
                last = error;
            }
            Err(_elapsed) => {
                answered = true;
                last = io::ErrorKind::TimedOut.into();
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    /// Makes `count` checks that end at once; returns the pauses before them, in milliseconds.
    fn pauses(checks: &mut Checks, mut now: Instant, count: usize, worked: bool) -> Vec<u128> {
        (0..count)
            .map(|_| {
                let next = checks.next().expect("a check is planned");
                let pause = next.duration_since(now).as_millis();
                now = next;
                checks.checked(worked, now);
                pause
            })
            .collect()
    }

    #[test]
    fn a_failed_dial_starts_checks_that_become_seldom() {
        let start = Instant::now();
        let mut checks = Checks::new(None, start);
        assert_eq!(checks.next(), None);
        checks.told(true, start);
        assert_eq!(checks.next(), None, "no news");
        checks.told(false, start);
        assert_eq!(
            pauses(&mut checks, start, 7, false),
            [200, 400, 800, 1_600, 3_200, 5_000, 5_000]
        );
    }

    #[test]
    fn one_check_that_works_is_enough_and_the_last_one() {
        let start = Instant::now();
        let mut checks = Checks::new(None, start);
        checks.told(false, start);
        assert_eq!(checks.checked(false, start), None);
        assert_eq!(checks.checked(true, start), Some(true));
        assert_eq!(checks.next(), None);
    }

    #[test]
    fn a_flow_that_gets_through_ends_the_checks() {
        let start = Instant::now();
        let mut checks = Checks::new(None, start);
        checks.told(false, start);
        checks.told(true, start);
        assert_eq!(checks.next(), None);
        checks.told(false, start);
        assert_eq!(pauses(&mut checks, start, 2, false), [200, 400]);
    }

    #[test]
    fn soon_after_a_failure_only_a_check_finds_that_the_service_is_up() {
        let start = Instant::now();
        let state = ServiceState::new(start);
        assert!(!state.change(true, By::Flow, start), "no news");
        assert!(state.change(false, By::Flow, start));
        assert!(!state.change(false, By::Flow, start), "no news");
        let soon = start + DIALS_DOUBTED_FOR - Duration::from_millis(1);
        assert!(!state.change(true, By::Flow, soon));
        assert!(!state.healthy());
        assert!(state.change(true, By::Check, soon));
        assert!(state.healthy());
        assert!(state.change(false, By::Flow, soon));
        assert!(!state.change(true, By::Flow, start + DIALS_DOUBTED_FOR));
        assert!(state.change(true, By::Flow, soon + DIALS_DOUBTED_FOR));
    }

    #[test]
    fn two_failures_in_a_row_are_needed_while_the_service_is_thought_to_be_up() {
        let start = Instant::now();
        let mut checks = Checks::new(Some(INTERVAL), start);
        assert_eq!(checks.next(), Some(start), "the first one comes at once");
        assert_eq!(checks.checked(false, start), None);
        assert_eq!(checks.checked(true, start), None);
        assert_eq!(checks.checked(false, start), None);
        assert_eq!(checks.checked(false, start), Some(false));
        assert_eq!(checks.checked(false, start), None, "no news");
    }

    #[test]
    fn a_suspicion_is_followed_up_soon_and_never_later_than_by_the_interval() {
        let start = Instant::now();
        let mut checks = Checks::new(Some(INTERVAL), start);
        assert_eq!(pauses(&mut checks, start, 3, true), [0, 2_000, 2_000]);
        let mut checks = Checks::new(Some(INTERVAL), start);
        assert_eq!(
            pauses(&mut checks, start, 7, false),
            [0, 200, 400, 800, 1_600, 2_000, 2_000]
        );
    }

    #[test]
    fn whatever_happens_a_service_that_is_down_is_checked_again() {
        for seed in 0..200_u64 {
            let mut now = Instant::now();
            let interval = (seed % 2 == 0).then_some(INTERVAL);
            let mut checks = Checks::new(interval, now);
            let mut state = seed;
            for step in 0..500 {
                // splitmix64 (Steele, Lea, Flood 2014).
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut random = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                random ^= random >> 27;
                now += Duration::from_millis(random % 300);
                let before = checks.down;
                match random >> 60 {
                    0..4 => checks.told(random & 1 == 0, now),
                    _ if checks.next().is_some_and(|next| next <= now) => {
                        let news = checks.checked(random & 1 == 0, now);
                        assert_eq!(news, (before != checks.down).then_some(!checks.down));
                    }
                    _ => {}
                }
                let longest = if checks.failures > 0 {
                    Some(PAUSE_LONGEST)
                } else {
                    interval
                };
                let left = checks
                    .next()
                    .map(|next| next.saturating_duration_since(now));
                assert!(
                    left <= longest && left.is_some() == longest.is_some(),
                    "seed {seed}, step {step}: {checks:?}"
                );
                assert!(
                    !checks.down || checks.failures > 0,
                    "seed {seed}, step {step}"
                );
            }
        }
    }
}
