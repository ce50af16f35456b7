//! UDP flows: one visitor's source address each, carried by the DATAGRAM frames of a lane (RFC
//! 9221).
//!
//! This is what both ends of a lane do: read sockets by [`receiving`], send through [`encode`],
//! take datagrams through [`incoming`], give them to sockets through a [`batch::Batcher`], let
//! flows live by the rules of [`lifetimes`], and tell the other end within the bounds of
//! [`notices`]. The flows of visitors are the server's (`server/udp`), those with a socket towards
//! the service the client's (`client/udp`). Nothing here waits for room: a UDP datagram that finds
//! none is dropped and counted, as it would be by a router.
//!
//! All of this lives on one core. No borrow of a `RefCell` is held across an `await` or a call to
//! another module.

pub(crate) mod batch;
pub(crate) mod encode;
mod expiry;
pub(crate) mod incoming;
pub(crate) mod lifetimes;
mod moderation;
pub(crate) mod notices;
mod order;
pub(crate) mod receiving;
pub(crate) mod refusals;
pub(crate) mod room;
mod yielding;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::sys::udp::{Purpose, ReceiveBatch};

/// The most flows of one core, whatever the machine allows: with 50 KB of buffers each they take
/// 800 MB in the worst case. The reassembly of a lane remembers as many.
pub(crate) const FLOWS_PER_CORE_MAX: usize = 16_384;

/// Receive calls before the core's other tasks get a turn, as for QUIC sockets.
const RECEIVE_CALLS_PER_TURN: usize = 2;

/// The longest time between two sweeps for expired flows and silent lanes: a flow outlives its
/// timeout by no more than this.
pub(crate) const SWEEP_INTERVAL_MAX: Duration = Duration::from_millis(250);

/// The shortest time between two sweeps, so that a tiny timeout does not keep an idle core awake.
pub(crate) const SWEEP_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Flows that are expired before the core's other tasks get a turn: closing a socket takes some 10
/// µs.
pub(crate) const EXPIRED_PER_TURN: usize = 32;

/// The shortest time between two log lines about one kind of trouble with flows.
pub(crate) const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Wait after an error of waiting itself, so that an error that persists does not spin.
const WAIT_ERROR_PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// The receive buffers of a core, shared by all sockets towards services; 1 MB for each would
    /// be too much.
    static RECEIVE_BATCH: Cell<Option<ReceiveBatch>> = const { Cell::new(None) };
}

/// The settings of `[udp]` in dp.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UdpSettings {
    /// How long a flow lives without a datagram in either direction.
    pub(crate) session_timeout: Duration,
    /// How long a flow lives without a datagram while the service has not answered.
    pub(crate) unanswered_timeout: Duration,
    /// Whether a datagram that is larger than the path's packets may be sent as several.
    pub(crate) fragmentation: bool,
}

impl UdpSettings {
    /// Time between two sweeps for expired flows.
    pub(crate) fn sweep_interval(&self) -> Duration {
        (self.unanswered_timeout / 8).clamp(SWEEP_INTERVAL_MIN, SWEEP_INTERVAL_MAX)
    }
}

impl From<&qmux_config::Udp> for UdpSettings {
    fn from(udp: &qmux_config::Udp) -> UdpSettings {
        UdpSettings {
            session_timeout: udp.session_timeout,
            unanswered_timeout: udp.unanswered_timeout,
            fragmentation: udp.enable_fragmentation,
        }
    }
}

/// Limits a log line to one in [`LOG_PAUSE`]; counters tell how often the event happened.
#[derive(Debug, Default)]
pub(crate) struct Rarely(Cell<Option<Instant>>);

impl Rarely {
    pub(crate) fn pass(&self, now: Instant) -> bool {
        let due = |last: Instant| now.saturating_duration_since(last) >= LOG_PAUSE;
        let pass = self.0.get().is_none_or(due);
        if pass {
            self.0.set(Some(now));
        }
        pass
    }
}

/// Takes the core's receive buffers for the length of `with`, without a borrow that a call out
/// could meet.
fn with_receive_batch<R>(with: impl FnOnce(&mut ReceiveBatch) -> R) -> R {
    let mut batch = RECEIVE_BATCH
        .take()
        .unwrap_or_else(|| ReceiveBatch::new(Purpose::Traffic));
    let result = with(&mut batch);
    RECEIVE_BATCH.set(Some(batch));
    result
}

/// The time, read once per turn of a lane: reading the clock for each datagram would cost 5 % of
/// the core.
#[derive(Debug, Default)]
pub(crate) struct TurnClock(Cell<Option<Instant>>);

impl TurnClock {
    pub(crate) fn now(&self) -> Instant {
        let now = self.0.get().unwrap_or_else(Instant::now);
        self.0.set(Some(now));
        now
    }

    pub(crate) fn turn_over(&self) {
        self.0.set(None);
    }
}
