//! Leaving a registered lane whose supervisor goes on without it: the lane lives until its flows
//! have ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qmux_proto::LaneError;
use qmux_proto::control::{GoAway, GoAwayReason, Message};

use super::ending::AttemptEnd;
use super::session::Session;
use crate::client::servers::server::ServerState;

/// A lane that is left must have been idle for this long before it is closed, because a flow, or
/// the end of one, may be on its way.
const LINGER: Duration = Duration::from_millis(250);

/// Pause between two checks whether a lane that may take as long as it needs has become idle: its
/// flows may last for days, and there may be many such lanes.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// If another server answers at the address, the lane to the earlier one must be heard within this
/// time. The path is good, so if that server lived it would have answered several questions.
const PREDECESSOR_GRACE: Duration = Duration::from_millis(1_500);

/// How a lane is left to its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// The lane's server drains, and decides how long the flows may go on.
    ServerDecides,
    /// The lane is not wanted any more: its flows get `drain_timeout`.
    Unwanted,
    /// The number of lanes to the server is reduced: the flows get as long as they take.
    Surplus,
    /// Another lane has taken the place of this one, registered with what this client serves now:
    /// the flows get as long as they take.
    Renewed,
    /// Another lane to the same server has taken the place of this one, because this one was not
    /// answered. This one may be heard again.
    TakenOver,
    /// Another lane, which leads to another server, has taken the place of this one, because this
    /// one was not answered. The earlier server is probably gone.
    ServerReplaced,
}

impl Session {
    /// Leaves the lane to the flows that it has. It ends with the last of them, or when `leaving`
    /// says so.
    pub(super) async fn leave(mut self, leaving: Leaving) {
        self.stop_counting(match leaving {
            Leaving::ServerDecides => &"it drains",
            Leaving::Unwanted => &"its lanes are not wanted any more",
            Leaving::Surplus => &"its server needs fewer lanes",
            Leaving::Renewed => &"this client's configuration has changed",
            Leaving::TakenOver => &"another lane has taken its place",
            Leaving::ServerReplaced => &"another server has taken its place",
        });
        if !self.lane.quic.is_open() {
            return;
        }
        self.lane.context.counters.lanes_left.increment();
        let _surplus = (leaving == Leaving::Surplus).then(|| Surplus::new(&self.lane.server));
        let began = Instant::now();
        let heard_before = self.lane().quic.packets_received();
        let farewell = (leaving != Leaving::ServerDecides).then(|| self.say_farewell());
        let deadline = (leaving == Leaving::Unwanted).then(|| began + self.drain_timeout);
        let mut idle_since = None;
        loop {
            let now = Instant::now();
            // The server reads the control stream in order, so it has stopped opening flows when it
            // acknowledges the heartbeat.
            let server_has_stopped = farewell.is_none_or(|beat| self.acknowledged >= beat);
            if server_has_stopped && self.lane.is_idle() {
                if now >= *idle_since.get_or_insert(now) + LINGER {
                    break;
                }
            } else {
                idle_since = None;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                break;
            }
            let unheard = self.lane().quic.packets_received() == heard_before;
            if leaving == Leaving::ServerReplaced && unheard {
                if now >= began + PREDECESSOR_GRACE {
                    self.lane.context.counters.lanes_unhealthy.increment();
                    self.lane.quic.close(LaneError::HealthTimeout, "");
                    return;
                }
                self.lane.quic.ping();
            }
            let may_last = matches!(leaving, Leaving::Surplus | Leaving::Renewed);
            let pause = if may_last && idle_since.is_none() {
                LOOK_PAUSE
            } else {
                LINGER
            };
            if let Some(AttemptEnd::Ended(_)) = self.step(Some(now + pause)).await {
                return;
            }
        }
        self.lane.quic.close(LaneError::Shutdown, "");
    }

    /// Tells the server to give this lane no new flow. Returns the number of the heartbeat whose
    /// acknowledgement shows that the server knows.
    fn say_farewell(&mut self) -> u64 {
        self.lane.quic.send_control(&Message::GoAway(GoAway {
            reason: GoAwayReason::Replaced,
            drain_timeout_ms: u64::try_from(self.drain_timeout.as_millis()).unwrap_or(u64::MAX),
        }));
        self.beat(Instant::now());
        self.sent
    }
}

/// Counts a surplus lane of a server until it has ended.
struct Surplus(Arc<ServerState>);

impl Surplus {
    fn new(server: &Arc<ServerState>) -> Surplus {
        server.lane_left(true);
        Surplus(Arc::clone(server))
    }
}

impl Drop for Surplus {
    fn drop(&mut self) {
        self.0.lane_left(false);
    }
}
