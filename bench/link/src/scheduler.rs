//! Decides when each packet leaves the link, and which packets never do.
//!
//! A packet passes, in this order: the MTU, the queue and the line, loss, the delay with its
//! jitter, then perhaps reordering and duplication. The scheduler knows neither a clock nor a
//! device nor a source of randomness: they come in as arguments, so that a test can run hours of a
//! link in a moment, and the same seed and packets give the same link.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::{Rng, RngExt};

use super::jitter::Jitter;
use super::line::Line;
use super::loss::LossProcess;
use super::profile::{Profile, ProfileError, QUEUE_BYTES_MAX};

/// One direction of a link, with the packets that are on it.
#[derive(Debug)]
pub struct Scheduler<P> {
    profile: Profile,
    delay: u64,
    reorder_ahead: u64,
    line: Line,
    loss: LossProcess,
    jitter: Jitter,
    on_link: BinaryHeap<Reverse<Departure<P>>>,
    on_link_bytes: u64,
    /// The departure of the last packet that kept its place.
    last_departure: u64,
    accepted: u64,
    /// The latest time that came in.
    now: u64,
    counters: Counters,
}

/// What happened to packets so far. Bytes are those of IP packets.
///
/// `offered + duplicated = delivered + lost + dropped_by_queue + dropped_by_mtu + those on the
/// link`, in packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came to the link.
    pub offered_packets: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Packets that left it, duplicates included.
    pub delivered_packets: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Packets that got lost as the profile asks for.
    pub lost_packets: u64,
    /// Packets that found the queue full or the policer without tokens.
    pub dropped_by_queue_packets: u64,
    /// Packets larger than the MTU.
    pub dropped_by_mtu_packets: u64,
    /// Packets that overtook another one.
    pub reordered_packets: u64,
    /// Second copies.
    pub duplicated_packets: u64,
}

/// A packet that does not come out at the other end, handed back so that its buffer can be used
/// again.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped<P> {
    /// Why the packet was dropped.
    pub cause: DropCause,
    /// The packet.
    pub packet: P,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropCause {
    /// The packet got lost behind the line.
    Loss,
    /// The queue in front of the line was full, or the policer had no tokens.
    Queue,
    /// The packet is larger than the MTU.
    Mtu,
}

/// A packet that leaves the link.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaving<P> {
    /// The packet.
    pub packet: P,
    /// The time at which the packet was due to leave.
    pub due: Duration,
    /// Whether it overtook others: nobody may put it back into order.
    pub reordered: bool,
}

#[derive(Debug)]
struct Departure<P> {
    at: u64,
    /// Packets that leave at the same time leave in the order in which they came.
    order: u64,
    bytes: usize,
    reordered: bool,
    packet: P,
}

impl<P> Departure<P> {
    fn key(&self) -> (u64, u64) {
        (self.at, self.order)
    }
}

impl<P> PartialEq for Departure<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for Departure<P> {}

impl<P> PartialOrd for Departure<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Departure<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<P: Clone> Scheduler<P> {
    /// A link without packets.
    ///
    /// # Errors
    ///
    /// The profile cannot be emulated.
    pub fn new(profile: Profile) -> Result<Self, ProfileError> {
        profile.check()?;
        Ok(Self {
            delay: nanos(profile.delay),
            reorder_ahead: nanos(profile.reorder_ahead),
            line: Line::new(&profile),
            loss: LossProcess::new(profile.loss),
            jitter: Jitter::new(nanos(profile.jitter)),
            on_link: BinaryHeap::new(),
            on_link_bytes: 0,
            last_departure: 0,
            accepted: 0,
            now: 0,
            counters: Counters::default(),
            profile,
        })
    }

    /// Puts a packet of `bytes` bytes on the link at `now`, the time since the link came up. A time
    /// before an earlier one counts as that one.
    ///
    /// # Errors
    ///
    /// The packet, if it will not come out at the other end.
    pub fn offer(
        &mut self,
        now: Duration,
        bytes: usize,
        packet: P,
        rng: &mut impl Rng,
    ) -> Result<(), Dropped<P>> {
        self.now = self.now.max(nanos(now));
        self.counters.offered_packets += 1;
        self.counters.offered_bytes += bytes as u64;
        let left_line = match self.pass_line(bytes, rng) {
            Ok(left_line) => left_line,
            Err(cause) => return Err(Dropped { cause, packet }),
        };
        let (at, reordered) = self.departure(left_line, rng);
        if self.draw(self.profile.duplicate, rng) {
            self.counters.duplicated_packets += 1;
            self.put(at, bytes, reordered, packet.clone());
        }
        self.put(at, bytes, reordered, packet);
        Ok(())
    }

    /// The time at which the packet has left the line, or the reason why it never does.
    fn pass_line(&mut self, bytes: usize, rng: &mut impl Rng) -> Result<u64, DropCause> {
        if bytes > usize::from(self.profile.mtu) {
            self.counters.dropped_by_mtu_packets += 1;
            return Err(DropCause::Mtu);
        }
        let has_memory = self.on_link_bytes + bytes as u64 <= ON_LINK_BYTES_MAX;
        let left_line = match self.line.pass(self.now, bytes) {
            Some(left_line) if has_memory => left_line,
            _ => {
                self.counters.dropped_by_queue_packets += 1;
                return Err(DropCause::Queue);
            }
        };
        if self.loss.takes_next(rng) {
            self.counters.lost_packets += 1;
            return Err(DropCause::Loss);
        }
        Ok(left_line)
    }

    /// The time at which a packet that has left the line arrives, and whether it overtakes another
    /// one.
    fn departure(&mut self, left_line: u64, rng: &mut impl Rng) -> (u64, bool) {
        let deviation = self.jitter.deviation(left_line, rng);
        // The jitter is not larger than the delay.
        let travel = self.delay.saturating_add_signed(deviation);
        if self.draw(self.profile.reorder, rng) {
            let at = left_line + travel.saturating_sub(self.reorder_ahead);
            let overtakes = at < self.last_departure;
            if overtakes {
                self.counters.reordered_packets += 1;
            } else {
                self.last_departure = at;
            }
            return (at, overtakes);
        }
        self.last_departure = self.last_departure.max(left_line + travel);
        (self.last_departure, false)
    }

    fn put(&mut self, at: u64, bytes: usize, reordered: bool, packet: P) {
        self.on_link_bytes += bytes as u64;
        self.accepted += 1;
        self.on_link.push(Reverse(Departure {
            at,
            order: self.accepted,
            bytes,
            reordered,
            packet,
        }));
    }

    /// Draws only if it matters, so that a link without reordering costs no randomness for it.
    fn draw(&self, p: f64, rng: &mut impl Rng) -> bool {
        p > 0.0 && rng.random_bool(p)
    }

    /// The next packet that has left the link at `now`, in the order of departures.
    pub fn take_due(&mut self, now: Duration) -> Option<Leaving<P>> {
        let Reverse(next) = self.on_link.peek()?;
        if next.at > nanos(now) {
            return None;
        }
        let Reverse(departure) = self.on_link.pop()?;
        self.on_link_bytes -= departure.bytes as u64;
        self.counters.delivered_packets += 1;
        self.counters.delivered_bytes += departure.bytes as u64;
        Some(Leaving {
            packet: departure.packet,
            due: Duration::from_nanos(departure.at),
            reordered: departure.reordered,
        })
    }

    /// The time at which the next packet leaves the link.
    pub fn next_departure(&self) -> Option<Duration> {
        let Reverse(next) = self.on_link.peek()?;
        Some(Duration::from_nanos(next.at))
    }

    /// How many packets are on the link.
    pub fn on_link(&self) -> usize {
        self.on_link.len()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

/// What a direction holds in memory at most: a full queue, and as much again on its way.
const ON_LINK_BYTES_MAX: u64 = 2 * QUEUE_BYTES_MAX;

/// Saturates after 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]
#[path = "scheduler_tests.rs"]
mod tests;
