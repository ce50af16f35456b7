//! A supervisor keeps one lane up: attempt after attempt, with back-off in between, until it is retired.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use qmux_proto::LaneError;
use qmux_proto::control::RefuseReason;

use super::ClientCore;
use super::attempt::{self, AttemptEnd};
use super::backoff::Backoff;
use crate::quic::end::LaneEnd;
use crate::quic::event::Event;

/// A lane that served this long ended for a reason of its own: the back-off begins anew.
const STEADY: Duration = Duration::from_secs(5);

/// Keeps one lane up.
pub(super) struct Supervisor {
    server: usize,
    lane: usize,
    retired: Cell<bool>,
    retire: Event,
}

impl Supervisor {
    pub(super) fn start(core: &Rc<ClientCore>, server: usize, lane: usize) -> Rc<Supervisor> {
        let this = Rc::new(Supervisor {
            server,
            lane,
            retired: Cell::new(false),
            retire: Event::default(),
        });
        monoio::spawn(Rc::clone(&this).run(Rc::clone(core)));
        this
    }

    /// No further attempt; a lane that is up is closed.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.retire.set();
    }

    async fn run(self: Rc<Self>, core: Rc<ClientCore>) {
        let mut backoff = Backoff::default();
        for number in 0.. {
            let began = Instant::now();
            let end = {
                let mut attempt = pin!(attempt::run(&core, self.server, self.lane, number));
                poll_fn(|cx| {
                    if self.retire.poll(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    attempt.as_mut().poll(cx).map(Some)
                })
                .await
            };
            let Some(end) = end else {
                self.close_lane(&core);
                return;
            };
            core.lanes.borrow_mut().remove(&(self.server, self.lane));
            if self.retired.get() || core.context.draining.get() {
                return;
            }
            if matches!(end, AttemptEnd::Misaimed) {
                continue;
            }
            if matches!(end, AttemptEnd::Ended(_)) && began.elapsed() >= STEADY {
                backoff.reset();
            }
            if discouraging(&end) {
                backoff.discourage();
            }
            let delay = backoff.next(rand::random());
            self.log(&core, &end, delay);
            monoio::time::sleep(delay).await;
            if self.retired.get() || core.context.draining.get() {
                return;
            }
        }
    }

    fn close_lane(&self, core: &ClientCore) {
        let lane = core.lanes.borrow_mut().remove(&(self.server, self.lane));
        if let Some(lane) = lane {
            lane.lane.close(LaneError::Shutdown, "");
        }
    }

    fn log(&self, core: &ClientCore, end: &AttemptEnd, delay: Duration) {
        let Some(suppressed) = core.context.connect_log.pass(Instant::now()) else {
            return;
        };
        let state = &core.shared.servers[self.server];
        let (server, server_name) = (&state.name, &state.server_name);
        let next_ms = delay.as_millis() as u64;
        match end {
            AttemptEnd::Misaimed => {}
            AttemptEnd::Ended(end) => {
                tracing::warn!(%server, lane = self.lane, %end, next_ms, suppressed, "lane ended; connecting again");
            }
            AttemptEnd::Failed(why) => {
                tracing::warn!(%server, server_name, lane = self.lane, why, next_ms, suppressed, "cannot connect; trying again");
            }
            AttemptEnd::Refused(RefuseReason::DuplicateClient, text) => {
                tracing::error!(
                    %server, client_id = core.shared.client_id, text, next_ms, suppressed,
                    "two clients use this client_id at the same time, and the server keeps the newer one: give each client its own client_id, or leave client_id empty; trying again"
                );
            }
            AttemptEnd::Refused(reason, text) => {
                tracing::warn!(%server, lane = self.lane, %reason, text, next_ms, suppressed, "the server refused this client; trying again");
            }
        }
    }
}

/// True if trying again soon can only do harm.
fn discouraging(end: &AttemptEnd) -> bool {
    match end {
        AttemptEnd::Refused(reason, _) => !matches!(reason, RefuseReason::Draining),
        AttemptEnd::Ended(end) => matches!(end, LaneEnd::ClosedByPeer(LaneError::Replaced, _)),
        AttemptEnd::Failed(_) | AttemptEnd::Misaimed => false,
    }
}
