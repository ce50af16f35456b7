//! How often the socket of lanes on long paths is read.
//!
//! Packets of a slow or distant link come one at a time: at 200 Mbit/s they are 60 µs apart, and
//! each would cost a waking on both sides, an acknowledgement and a write to its flow's socket.
//! Where full packets keep coming along paths of many milliseconds, they gather in the socket for a
//! part of the round trip that nobody notices, as they would in a network card that moderates its
//! interrupts (what it gave: docs/decisions.md, *Costs*).
//!
//! A pause delays whatever else comes to the socket meanwhile. So there are none while a lane of a
//! shorter path is heard, and none where packets are small or few. A pause lasts as long as
//! [`PACKETS_PER_PAUSE`] take at the present rate: where packets come so fast that a turn finds
//! many of them anyway, it is short, and the socket's buffer need not hold more than that.
//!
//! [`Moderation`] knows no clock: time comes in as an argument.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time over which packets and turns are counted.
const WINDOW: Duration = Duration::from_millis(16);

/// The packets for which a pause waits.
const PACKETS_PER_PAUSE: u64 = 16;

/// The least number of packets in a pause for which it is worth the setting of a timer.
const PACKETS_PER_PAUSE_MIN: u64 = 4;

/// A turn that finds this many packets on average costs little per packet without a pause.
const PACKETS_PER_TURN_MAX: u64 = 8;

/// The least bytes per packet, on average: those of bulk are full, and messages are small.
const BYTES_PER_PACKET_MIN: u64 = 1_000;

/// The shortest path on which there are pauses.
const PATH_MIN: Duration = Duration::from_millis(16);

/// The part of the path's round trip that a pause lasts at most.
const PAUSES_PER_ROUND_TRIP: u32 = 32;

/// The longest pause, whatever the path.
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// Pauses in a window during which nothing comes, that is which have only cost a waking, after
/// which there are no more.
const VAIN_PAUSES_MAX: u32 = 2;

/// How long there are no pauses after a lane of a shorter path was heard.
const REST: Duration = Duration::from_secs(4);

/// Windows in which no such lane must be heard after that: a second, in which a lane in use mostly
/// says something.
const WARY_WINDOWS: u32 = 64;

/// Whether there are pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No: the packets alone are counted.
    Off,
    /// No, but it is noted how long the paths are that they come along, for this many windows more.
    Measuring(u32),
    /// Yes, of this length.
    On(Duration),
}

/// The recent past of one socket.
#[derive(Debug)]
pub(super) struct Moderation {
    phase: Cell<Phase>,
    window_began: Cell<Option<Instant>>,
    packets: Cell<u64>,
    bytes: Cell<u64>,
    turns: Cell<u64>,
    vain_pauses: Cell<u32>,
    /// Whether nothing has come since the last pause began.
    has_paused: Cell<bool>,
    /// The shortest path along which something came in this window.
    shortest: Cell<Option<Duration>>,
    rests_until: Cell<Option<Instant>>,
    /// Whether a lane of a shorter path was heard, and none has been missed since.
    is_wary: Cell<bool>,
}

impl Default for Moderation {
    fn default() -> Moderation {
        Moderation {
            phase: Cell::new(Phase::Off),
            window_began: Cell::default(),
            packets: Cell::default(),
            bytes: Cell::default(),
            turns: Cell::default(),
            vain_pauses: Cell::default(),
            has_paused: Cell::default(),
            shortest: Cell::default(),
            rests_until: Cell::default(),
            is_wary: Cell::default(),
        }
    }
}

impl Moderation {
    /// Notes that a turn has brought this much.
    pub(super) fn received(&self, packets: u64, bytes: u64) {
        self.packets.set(self.packets.get() + packets);
        self.bytes.set(self.bytes.get() + bytes);
        if packets > 0 {
            self.turns.set(self.turns.get() + 1);
            self.has_paused.set(false);
        }
    }

    /// Whether [`Self::heard`] is to be told of the lanes that are heard.
    pub(super) fn asks_for_paths(&self) -> bool {
        self.phase.get() != Phase::Off
    }

    /// Notes that something came along a path whose round trip is this long.
    pub(super) fn heard(&self, round_trip: Duration, now: Instant) {
        if round_trip < PATH_MIN {
            self.phase.set(Phase::Off);
            self.rests_until.set(Some(now + REST));
            self.is_wary.set(true);
        }
        let shortest = self.shortest.get().unwrap_or(Duration::MAX);
        self.shortest.set(Some(shortest.min(round_trip)));
    }

    /// Notes that there may be more in the socket than a turn takes: there is no pause before the
    /// next one.
    pub(super) fn interrupted(&self) {
        self.phase.set(Phase::Off);
        self.window_began.set(None);
    }

    /// Notes that the socket was looked into until it was empty. Returns how long to pause before
    /// the next look; `None` if that comes as soon as there is something.
    pub(super) fn emptied(&self, now: Instant) -> Option<Duration> {
        if self.has_paused.replace(false) {
            self.vain_pauses.set(self.vain_pauses.get() + 1);
            if self.vain_pauses.get() > VAIN_PAUSES_MAX {
                self.phase.set(Phase::Off);
            }
            return None;
        }
        match self.window_began.get() {
            Some(began) if now < began + WINDOW => {}
            Some(began) if now < began + 2 * WINDOW => {
                self.phase.set(self.judge(now, now - began));
                self.begin_window(now);
            }
            // After a longer time without a look, the window says less than it seems to.
            _ => {
                self.phase.set(Phase::Off);
                self.begin_window(now);
            }
        }
        let Phase::On(pause) = self.phase.get() else {
            return None;
        };
        self.has_paused.set(true);
        Some(pause)
    }

    /// Decides at the end of a window, which took `elapsed`, how the next one is.
    fn judge(&self, now: Instant, elapsed: Duration) -> Phase {
        let (packets, bytes) = (self.packets.get(), self.bytes.get());
        if packets == 0 || bytes < packets * BYTES_PER_PACKET_MIN {
            return Phase::Off;
        }
        let take = |packets_awaited: u64| {
            let nanos = elapsed.as_nanos() * u128::from(packets_awaited) / u128::from(packets);
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        };
        let worth = |longest: Duration| take(PACKETS_PER_PAUSE_MIN) <= longest;
        if self.phase.get() == Phase::Off {
            let rests = self.rests_until.get().is_some_and(|until| now < until);
            let are_scattered = packets < PACKETS_PER_TURN_MAX * self.turns.get();
            return if !rests && are_scattered && worth(PAUSE_MAX) {
                Phase::Measuring(if self.is_wary.get() { WARY_WINDOWS } else { 1 })
            } else {
                Phase::Off
            };
        }
        if let Phase::Measuring(windows @ 2..) = self.phase.get() {
            return Phase::Measuring(windows - 1);
        }
        self.is_wary.set(false);
        let longest = self.shortest.get().map(longest_pause);
        match longest.filter(|longest| worth(*longest)) {
            Some(longest) => Phase::On(take(PACKETS_PER_PAUSE).min(longest)),
            None => Phase::Off,
        }
    }

    fn begin_window(&self, now: Instant) {
        self.window_began.set(Some(now));
        self.packets.set(0);
        self.bytes.set(0);
        self.turns.set(0);
        self.vain_pauses.set(0);
        self.shortest.set(None);
    }
}

/// The longest pause where the shortest path's round trip is this long.
fn longest_pause(shortest: Duration) -> Duration {
    (shortest / PAUSES_PER_ROUND_TRIP).min(PAUSE_MAX)
}

#[cfg(test)]
#[path = "moderation_tests.rs"]
mod tests;
