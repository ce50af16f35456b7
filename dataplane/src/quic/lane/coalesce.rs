//! Coalescing of wake-ups: a flow that was woken a moment ago is woken again only for everything
//! that comes for its stream in the next moment.
//!
//! Over a slow path packets come one by one. With one bulk flow, each lost packet holds back those
//! behind it, so that the flow reads much at once. With a hundred flows each packet would wake a
//! flow that reads and writes a kilobyte, at twice the CPU time per byte. So the wake-ups of one
//! flow keep a distance of a 32nd of the round trip, and of a millisecond at most. Nobody notices
//! that on a slow path, and on a fast one it is nothing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Lane;

/// The distance of two wake-ups, as a fraction of the round trip.
const ROUND_TRIP_PARTS: u32 = 32;

/// The longest distance: a millisecond brings 100 packets at 1 Gbit/s.
const DISTANCE_MAX: Duration = Duration::from_millis(1);

/// A shorter distance counts as none: two turns of a core are further apart.
const DISTANCE_MIN: Duration = Duration::from_micros(50);

/// How often the round trip time is updated.
const REFRESH_AFTER: Duration = Duration::from_millis(100);

/// Streams that have become readable, and whose flows have not been told.
#[derive(Debug, Default)]
pub(super) struct Coalesced {
    streams: RefCell<Vec<u64>>,
    /// The time at which their flows are told.
    due: Cell<Option<Instant>>,
    /// The distance of wake-ups, and when it was computed.
    distance: Cell<Option<(Duration, Instant)>>,
    /// Whether a task makes sure that they are told, whatever else comes.
    has_task: Cell<bool>,
}

/// The distance of wake-ups on a path with this round trip.
fn distance(rtt: Duration) -> Duration {
    let distance = (rtt / ROUND_TRIP_PARTS).min(DISTANCE_MAX);
    if distance < DISTANCE_MIN {
        Duration::ZERO
    } else {
        distance
    }
}

impl Lane {
    /// Tells the flow of `stream` that there is something to read, now or soon. Returns false if
    /// the stream has no flow.
    pub(super) fn stream_readable(self: &Rc<Self>, stream: u64, now: Instant) -> bool {
        let waiters = self.waiters.borrow();
        let Some(waiters) = waiters.get(&stream) else {
            return false;
        };
        if waiters.coalesced.get() {
            return true;
        }
        let distance = self.wake_distance(now);
        let told = waiters.told_readable.get();
        if told.is_none_or(|told| now.duration_since(told) >= distance) {
            waiters.told_readable.set(Some(now));
            waiters.readable.set();
            return true;
        }
        waiters.coalesced.set(true);
        self.coalesced.streams.borrow_mut().push(stream);
        if self.coalesced.due.get().is_none() {
            self.coalesced.due.set(Some(now + distance));
            self.see_to_coalesced(distance);
        }
        true
    }

    /// Tells the flows whose streams have waited long enough.
    pub(super) fn tell_coalesced(&self, now: Instant) {
        if self.coalesced.due.get().is_none_or(|due| now < due) {
            return;
        }
        self.coalesced.due.set(None);
        let mut streams = self.coalesced.streams.take();
        for stream in streams.drain(..) {
            if let Some(waiters) = self.waiters.borrow().get(&stream) {
                waiters.coalesced.set(false);
                waiters.told_readable.set(Some(now));
                waiters.readable.set();
                continue;
            }
            // The flow has been given up meanwhile. Nobody wants what came, and quiche would keep
            // the stream for it. A lane that has ended does not use its connection any more.
            if self.is_open() {
                self.discard(stream);
            }
        }
        // Nothing has been added, because woken tasks run later. So the allocation is kept.
        *self.coalesced.streams.borrow_mut() = streams;
    }

    fn wake_distance(&self, now: Instant) -> Duration {
        match self.coalesced.distance.get() {
            Some((distance, found)) if now.duration_since(found) < REFRESH_AFTER => distance,
            _ => {
                let distance = distance(self.rtt());
                self.coalesced.distance.set(Some((distance, now)));
                distance
            }
        }
    }

    /// Makes sure that flows are told even if no packets come, which mostly are the occasion.
    fn see_to_coalesced(self: &Rc<Self>, distance: Duration) {
        if self.coalesced.has_task.replace(true) {
            return;
        }
        let lane = Rc::downgrade(self);
        crate::core::task::spawn(async move {
            loop {
                crate::core::time::sleep(distance).await;
                let Some(lane) = lane.upgrade() else { return };
                lane.tell_coalesced(Instant::now());
                if lane.coalesced.due.get().is_none() {
                    lane.coalesced.has_task.set(false);
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_ups_keep_a_distance_on_slow_paths_alone() {
        let micros = Duration::from_micros;
        assert_eq!(distance(micros(100)), Duration::ZERO);
        assert_eq!(distance(micros(1_500)), Duration::ZERO);
        assert_eq!(distance(micros(6_400)), micros(200));
        assert_eq!(distance(micros(40_000)), DISTANCE_MAX);
        assert_eq!(distance(Duration::from_secs(3)), DISTANCE_MAX);
    }
}
