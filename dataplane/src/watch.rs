//! What `main` does while the cores work: looks whether they make progress, and keeps the service manager informed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::core::progress::{LOOK, Progress};
use crate::status::Status;

/// A status line with other numbers is sent no more often than this.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// The service manager gets this much more time than the drain takes, to see the end.
const END_TAKES: Duration = Duration::from_secs(10);

/// `main`'s eye on the cores.
#[derive(Debug)]
pub(crate) struct Watch {
    status: Arc<Status>,
    progress: Progress,
    /// Half of what the service manager allows, if it wants to hear from us (`WATCHDOG_USEC`).
    watchdog: Option<Duration>,
    pinged: Instant,
    said: String,
    said_at: Option<Instant>,
    complained: bool,
}

impl Watch {
    /// Of all cores.
    pub(crate) fn new(status: Arc<Status>, now: Instant) -> Watch {
        Watch {
            progress: Progress::new(status.cluster.cores()),
            status,
            watchdog: sd_notify::watchdog_enabled().map(|within| within / 2),
            pinged: now,
            said: String::new(),
            said_at: None,
            complained: false,
        }
    }

    /// How long `main` may wait before it looks again.
    pub(crate) fn pause(&self, now: Instant) -> Duration {
        let ping_in = self
            .watchdog
            .map(|every| (self.pinged + every).saturating_duration_since(now));
        ping_in.map_or(LOOK, |ping_in| ping_in.min(LOOK))
    }

    /// Looks at the cores, and tells the service manager what it wants to know.
    pub(crate) fn look(&mut self, now: Instant) {
        let cluster = &self.status.cluster;
        let beats = cluster.counters.iter().map(|core| core.beats.get());
        if self.progress.look(beats, now) {
            for (core, (stuck, known)) in self.progress.stuck().zip(&cluster.stuck).enumerate() {
                if known.swap(stuck, Ordering::Relaxed) == stuck {
                    continue;
                }
                if stuck {
                    tracing::error!(core, "the core makes no progress");
                } else {
                    tracing::warn!(core, "the core makes progress again");
                }
            }
        }
        if let Some(every) = self.watchdog
            && now >= self.pinged + every
        {
            self.pinged = now;
            // Silence is how the service manager learns of it, and then restarts us.
            if self.status.stuck_cores().is_empty() {
                self.notify(&[NotifyState::Watchdog]);
            }
        }
        let due = |said_at| now.saturating_duration_since(said_at) >= STATUS_INTERVAL;
        if self.said_at.is_none_or(due) {
            self.say(now);
        }
    }

    /// The process was told to stop, and takes no longer than `drain_timeout` for it.
    pub(crate) fn stopping(&mut self, drain_timeout: Duration, now: Instant) {
        let time = (drain_timeout + END_TAKES).as_micros();
        self.notify(&[
            NotifyState::Stopping,
            NotifyState::ExtendTimeoutUsec(u32::try_from(time).unwrap_or(u32::MAX)),
        ]);
        self.say(now);
    }

    fn say(&mut self, now: Instant) {
        let text = self.status.summary();
        self.said_at = Some(now);
        if text != self.said {
            self.notify(&[NotifyState::Status(&text)]);
            self.said = text;
        }
    }

    fn notify(&mut self, state: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(state)
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}
