//! What `main` does while the cores work: it checks whether they make progress, and keeps the
//! service manager informed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::process::progress::{LOOK, Progress};
use crate::process::status::Status;

/// A status line with other numbers is sent no more often than this.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// The time that the service manager is asked for in addition to that of the drain, so that it sees
/// the end of the process.
const END_TAKES: Duration = Duration::from_secs(10);

/// The time that one request asks of the service manager while the process stops. If no other
/// request comes before that is over, the manager takes the process for hung (EXTEND_TIMEOUT_USEC,
/// sd_notify(3)).
const EXTEND_BY: Duration = Duration::from_secs(30);

/// The time between two requests to the service manager: five requests may be late or lost.
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// The time that a stopping process still asks for. There is no clock in here.
#[derive(Debug)]
struct Stopping {
    ends: Instant,
    ask: Instant,
}

impl Stopping {
    fn new(drain_timeout: Duration, now: Instant) -> Stopping {
        Stopping {
            ends: now + drain_timeout + END_TAKES,
            ask: now,
        }
    }

    /// The time to ask for now, if it is time to. Nothing is asked for beyond the end: a process
    /// that has not ended by then is hung.
    fn extension(&mut self, now: Instant) -> Option<Duration> {
        let left = self.ends.saturating_duration_since(now);
        if now < self.ask || left.is_zero() {
            return None;
        }
        self.ask = now + EXTEND_EVERY;
        Some(left.min(EXTEND_BY))
    }
}

/// `main`'s view of the cores.
#[derive(Debug)]
pub(crate) struct Watch {
    status: Arc<Status>,
    progress: Progress,
    /// Half of the time that the service manager allows, if it wants a watchdog (`WATCHDOG_USEC`).
    watchdog: Option<Duration>,
    pinged: Instant,
    said: String,
    said_at: Option<Instant>,
    complained: bool,
    /// Whether a successor serves, so that the service manager hears of that alone.
    is_succeeded: bool,
    /// Set once the process has been told to stop.
    stopping: Option<Stopping>,
}

impl Watch {
    /// The watch over all cores.
    pub(crate) fn new(status: Arc<Status>, now: Instant) -> Watch {
        Watch {
            progress: Progress::new(status.cluster.cores()),
            status,
            watchdog: sd_notify::watchdog_enabled().map(|within| within / 2),
            pinged: now,
            said: String::new(),
            said_at: None,
            complained: false,
            is_succeeded: false,
            stopping: None,
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
            // The service manager learns of a stuck core by silence, and then restarts the process.
            if self.status.stuck_cores().is_empty() {
                self.notify(&[NotifyState::Watchdog]);
            }
        }
        self.ask_for_time(now);
        let due = |said_at| now.saturating_duration_since(said_at) >= STATUS_INTERVAL;
        if self.said_at.is_none_or(due) {
            self.say(now);
        }
    }

    /// Notes that a successor serves, and that the service manager knows it.
    pub(crate) fn succeeded(&mut self) {
        self.is_succeeded = true;
    }

    /// Notes that the process was told to stop, and takes no longer than `drain_timeout` for that.
    pub(crate) fn stopping(&mut self, drain_timeout: Duration, now: Instant) {
        self.notify(&[NotifyState::Stopping]);
        self.stopping = Some(Stopping::new(drain_timeout, now));
        self.ask_for_time(now);
        self.say(now);
    }

    fn ask_for_time(&mut self, now: Instant) {
        let stopping = self.stopping.as_mut();
        if let Some(time) = stopping.and_then(|stopping| stopping.extension(now)) {
            let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
            self.notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
        }
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
        if self.is_succeeded {
            return;
        }
        if let Err(error) = sd_notify::notify(state)
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_asked_for_again_and_again_until_the_drain_must_be_over() {
        let start = Instant::now();
        let drain = Duration::from_secs(2 * 60 * 60);
        let mut stopping = Stopping::new(drain, start);
        let (mut now, mut granted) = (start, start);
        while now < start + drain {
            if let Some(time) = stopping.extension(now) {
                granted = granted.max(now + time);
            }
            assert!(granted > now, "the service manager has lost patience");
            now += Duration::from_millis(500);
        }
        assert!(granted <= start + drain + END_TAKES);
        assert_eq!(stopping.extension(start + drain + END_TAKES), None);
    }

    #[test]
    fn a_short_drain_asks_for_no_more_than_it_takes() {
        let start = Instant::now();
        let mut stopping = Stopping::new(Duration::from_secs(1), start);
        assert_eq!(
            stopping.extension(start),
            Some(Duration::from_secs(1) + END_TAKES)
        );
        assert_eq!(stopping.extension(start), None, "asked just now");
    }
}
