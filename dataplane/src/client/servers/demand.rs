//! How many lanes a client keeps to a server with `lanes = "auto"`.
//!
//! The client begins with one lane for each of its own cores. More lanes do not carry more bytes,
//! because it has no more cores to carry them with. A server may have many more cores, and visitors
//! who come to a core without a lane are handed to another core. That costs little as long as they
//! are few. The server reports how many they are ([`HandOvers`](qmux_proto::control::HandOvers)).
//! If a further lane is worth its cost, the number doubles, up to one lane for each core of the
//! server. If all that the lanes carry would cost little to hand over, the number halves again.
//! What is gained must be four times what would be lost, and a change that proves wrong makes the
//! next one wait longer, so that the number does not oscillate.
//!
//! A server of a version that reports no hand-overs gets a lane for each of its cores at once.
//!
//! This is a pure state machine: time comes in as an argument.

use std::time::{Duration, Instant};

use qmux_config::LANES_MAX;

use crate::sys::CORES_MAX;

const _: () = assert!(
    CORES_MAX <= LANES_MAX as usize,
    "each core of either side may have a lane"
);

/// Hand-overs are counted for at least this long before they are judged. Servers report them as
/// often.
const ASK_WINDOW: Duration = Duration::from_secs(1);

/// A window that lasted longer than this shows no lasting load: a server reports nothing while
/// there is nothing to report.
const ASK_WINDOW_LONGEST: Duration = Duration::from_secs(3);

/// Windows in a row that must ask for more lanes, because one burst of visitors is no lasting load.
const ASK_WINDOWS: u32 = 2;

/// Heartbeats of a lane in a window in which the lanes must have carried little. Each lane reports
/// with its heartbeats what it has carried.
const CALM_BEATS: u32 = 6;

/// The longest such window, as a multiple of the shortest one.
const CALM_LONGEST: u32 = 16;

/// The cost of handing over a visitor, in units of a datagram: a message that wakes a core, and an
/// entry in two tables, take some 2 µs, as against 0.2 µs for a datagram among others (`cargo test
/// --release costs`, mail to another core).
const VISITOR_POINTS: u64 = 10;

/// Points per second on each server core without a lane above which a lane there is worth its cost.
/// A lane costs some 20 µs per second (a handshake of 0.7 ms once in a minute, heartbeats and
/// probes) and some 280 KiB on both sides together: as much time as 10 visitors or 100 datagrams.
const GROW_POINTS: f64 = 100.0;

/// Points per second for each server core below which lanes may be given up.
const SHRINK_POINTS: f64 = 25.0;

const _: () = assert!(
    SHRINK_POINTS * 4.0 <= GROW_POINTS,
    "half of the lanes are not missed at once"
);

/// An amount of work that was handed over, or carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// TCP connections and UDP flows that began.
    pub(crate) visitors: u64,
    /// UDP packets.
    pub(crate) datagrams: u64,
}

impl Work {
    /// The work since `earlier`. For a peer that counts backwards this is nothing.
    pub(crate) fn since(self, earlier: Work) -> Work {
        Work {
            visitors: self.visitors.saturating_sub(earlier.visitors),
            datagrams: self.datagrams.saturating_sub(earlier.datagrams),
        }
    }

    fn points(self) -> u64 {
        self.visitors
            .saturating_mul(VISITOR_POINTS)
            .saturating_add(self.datagrams)
    }
}

/// Points that were counted since some time.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    points: u64,
    since: Option<Instant>,
}

impl Window {
    fn restart(&mut self, now: Instant) {
        *self = Window {
            points: 0,
            since: Some(now),
        };
    }

    /// Adds work. When the window has lasted for `length`, returns the points per second and how
    /// long it has lasted, and begins it anew.
    fn add(&mut self, work: Work, length: Duration, now: Instant) -> Option<(f64, Duration)> {
        let since = *self.since.get_or_insert(now);
        self.points = self.points.saturating_add(work.points());
        let lasted = now.saturating_duration_since(since);
        if lasted < length || lasted.is_zero() {
            return None;
        }
        let rate = self.points as f64 / lasted.as_secs_f64();
        self.restart(now);
        Some((rate, lasted))
    }
}

/// A change of the number of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// There are to be this many more.
    Grown(usize),
    /// There are to be this many fewer.
    Shrunk(usize),
}

/// The number of lanes that one client wants to one server.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    client_cores: usize,
    /// The server's number of cores; 0 until the server has said it.
    server_cores: usize,
    wanted: usize,
    /// Whether the server has shown that it is of a version that reports no hand-overs.
    tells_nothing: bool,
    asked: Window,
    /// Windows in a row that asked for more lanes.
    asked_in_a_row: u32,
    carried: Window,
    /// For how many of the shortest windows the load must be low before the number halves.
    patience: u32,
    /// Whether nothing has asked for more lanes since the number was halved, but not for a whole
    /// window yet.
    has_just_shrunk: bool,
}

impl Demand {
    /// The number of lanes that are wanted; 0 until the server has said how many cores it has.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    fn fewest(&self) -> usize {
        self.client_cores.max(1)
    }

    /// The largest number of lanes: one for each core of the side that has more.
    fn most(&self) -> usize {
        self.fewest().max(self.server_cores)
    }

    /// The server has said how many cores it has, perhaps after a restart. The number of lanes that
    /// was reached stays, as far as there are cores for it.
    pub(crate) fn has_cores(&mut self, server_cores: usize, client_cores: usize, now: Instant) {
        self.client_cores = client_cores;
        self.server_cores = server_cores.min(CORES_MAX);
        self.wanted = if self.tells_nothing {
            self.most()
        } else {
            self.wanted.clamp(self.fewest(), self.most())
        };
        self.asked_in_a_row = 0;
        self.asked.restart(now);
        self.carried.restart(now);
    }

    /// The server has sent a heartbeat on a lane without having said that it reports hand-overs.
    pub(crate) fn is_told_nothing(&mut self) -> Option<Change> {
        self.tells_nothing = true;
        self.grow_to(self.most())
    }

    /// Takes the server's report of hand-overs. `left` lanes to the server are being left to the
    /// flows that they have. They count, so that there are never more than twice as many lanes as
    /// are useful.
    pub(crate) fn handed_over(&mut self, work: Work, left: usize, now: Instant) -> Option<Change> {
        self.tells_nothing = false;
        let (rate, lasted) = self.asked.add(work, ASK_WINDOW, now)?;
        if lasted > ASK_WINDOW_LONGEST {
            self.asked_in_a_row = 0;
        }
        let lacking = self.server_cores.saturating_sub(self.wanted);
        if lacking == 0 || rate / (lacking as f64) < GROW_POINTS {
            self.asked_in_a_row = 0;
            return None;
        }
        self.asked_in_a_row += 1;
        if self.asked_in_a_row < ASK_WINDOWS {
            return None;
        }
        // If as much comes in the next window, the number grows further.
        self.asked_in_a_row = ASK_WINDOWS - 1;
        let room = (2 * self.most()).saturating_sub(left);
        let change = self.grow_to((2 * self.wanted).min(self.most()).min(room));
        if change.is_some() {
            if std::mem::take(&mut self.has_just_shrunk) {
                self.patience = (2 * self.patience.max(1)).min(CALM_LONGEST);
            }
            self.carried.restart(now);
        }
        change
    }

    /// Takes what a lane has carried since its last report. Lanes report this with each heartbeat,
    /// every `heartbeat_interval`.
    pub(crate) fn carried(
        &mut self,
        work: Work,
        heartbeat_interval: Duration,
        now: Instant,
    ) -> Option<Change> {
        let window = heartbeat_interval * CALM_BEATS * self.patience.max(1);
        let (rate, _) = self.carried.add(work, window, now)?;
        let had_just_shrunk = std::mem::take(&mut self.has_just_shrunk);
        if self.tells_nothing || rate / (self.server_cores.max(1) as f64) >= SHRINK_POINTS {
            return None;
        }
        if self.wanted <= self.fewest() {
            if !had_just_shrunk {
                self.patience = (self.patience / 2).max(1);
            }
            return None;
        }
        let before = self.wanted;
        self.wanted = before.div_ceil(2).max(self.fewest());
        self.has_just_shrunk = true;
        Some(Change::Shrunk(before - self.wanted))
    }

    fn grow_to(&mut self, lanes: usize) -> Option<Change> {
        let more = lanes.checked_sub(self.wanted).filter(|more| *more > 0)?;
        self.wanted = lanes;
        Some(Change::Grown(more))
    }
}
