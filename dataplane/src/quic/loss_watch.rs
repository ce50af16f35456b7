//! Heavy losses: whether most of what is sent along a path is lost for several seconds.
//!
//! Networks that do not like UDP may drop it, which is silence, or let a trickle of it pass. Then
//! everything is answered now and then, and nothing gets on: through a policer of 64 kbit/s a lane
//! sends 145 packets per second, of which 8 arrive. A congested path, or a bad one, loses a part of
//! the packets for long, or most of them for a moment, which congestion control handles. Only a
//! path that loses most of them for seconds has failed.
//!
//! There is no I/O and no clock in here: time and counts come in as arguments.

use std::time::{Duration, Instant};

/// The counts of this long are judged together: several round trips of most paths.
pub(crate) const WINDOW: Duration = Duration::from_secs(2);

/// Windows in a row that must be bad.
const BAD_MAX: u32 = 2;

/// The fewest lost packets that make a window bad. Fewer prove nothing, because they may all belong
/// to one burst.
const LOST_MIN: u64 = 24;

/// Percentage of packets that must be lost in a bad window: more than on any path that is of use.
const LOST_PERCENT_MIN: u64 = 50;

/// Watches one lane for heavy losses; see the module.
#[derive(Debug)]
pub(crate) struct LossWatch {
    since: Instant,
    sent: u64,
    lost: u64,
    bad: u32,
    /// Percentage of packets lost in the last window.
    percent: u64,
}

impl LossWatch {
    /// A watch that begins now; `sent` packets have been sent so far, and `lost` of them were lost.
    pub(crate) fn new(now: Instant, (sent, lost): (u64, u64)) -> LossWatch {
        LossWatch {
            since: now,
            sent,
            lost,
            bad: 0,
            percent: 0,
        }
    }

    /// The time at which the next look is due.
    pub(crate) fn next(&self) -> Instant {
        self.since + WINDOW
    }

    /// The percentage of packets that are lost, if the path fails. Must be called from
    /// [`Self::next`] on, with the numbers of packets sent and lost so far.
    pub(crate) fn look(&mut self, now: Instant, (sent, lost): (u64, u64)) -> Option<u64> {
        if now > self.next() + WINDOW {
            // Nobody looked for a while, because the lane took another path or was idle.
            *self = LossWatch::new(now, (sent, lost));
            return None;
        }
        if now >= self.next() {
            let sent_now = sent.saturating_sub(self.sent);
            let lost_now = lost.saturating_sub(self.lost);
            // Losses of packets that were sent earlier may be detected only now.
            self.percent = (lost_now * 100 / sent_now.max(1)).min(100);
            let is_bad = lost_now >= LOST_MIN && self.percent >= LOST_PERCENT_MIN;
            self.bad = if is_bad { self.bad + 1 } else { 0 };
            (self.since, self.sent, self.lost) = (now, sent, lost);
        }
        (self.bad >= BAD_MAX).then_some(self.percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the watch reports after each of these windows, given as packets sent and packets lost.
    fn says(windows: &[(u64, u64)]) -> Vec<bool> {
        let begin = Instant::now();
        let mut watch = LossWatch::new(begin, (1_000, 10));
        let (mut now, mut sent, mut lost) = (begin, 1_000, 10);
        let mut said = Vec::new();
        for (sent_now, lost_now) in windows {
            now += WINDOW;
            sent += sent_now;
            lost += lost_now;
            assert_eq!(watch.next(), now);
            said.push(watch.look(now, (sent, lost)).is_some());
        }
        said
    }

    #[test]
    fn a_trickle_is_seen_in_the_second_window_and_its_end_in_the_next() {
        let windows = [(290, 274), (290, 274), (290, 274), (5_000, 20)];
        assert_eq!(says(&windows), [false, true, true, false]);
    }

    #[test]
    fn a_path_that_loses_a_third_for_long_or_all_for_a_moment_does_not_fail() {
        assert_eq!(says(&[(3_000, 1_000); 20]), [false; 20]);
        let windows = [(5_000, 4_000), (5_000, 200), (5_000, 4_000), (5_000, 200)];
        assert_eq!(says(&windows), [false; 4]);
    }

    #[test]
    fn a_quiet_lane_says_nothing_whatever_it_loses() {
        assert_eq!(says(&[(8, 8); 20]), [false; 20]);
    }

    #[test]
    fn a_time_in_which_nobody_looked_is_not_judged() {
        let begin = Instant::now();
        let mut watch = LossWatch::new(begin, (0, 0));
        assert_eq!(watch.look(begin + WINDOW, (300, 290)), None);
        let later = begin + WINDOW * 10;
        assert_eq!(watch.look(later, (50_000, 40_000)), None);
        assert_eq!(watch.next(), later + WINDOW);
        assert_eq!(watch.look(later + WINDOW, (50_300, 40_290)), None, "anew");
        let says = watch.look(later + WINDOW * 2, (50_600, 40_580));
        assert!(says.is_some());
    }

    #[test]
    fn nothing_is_judged_before_a_window_is_over() {
        let begin = Instant::now();
        let mut watch = LossWatch::new(begin, (0, 0));
        assert_eq!(watch.look(begin + WINDOW / 2, (500, 500)), None);
        assert_eq!(watch.look(begin + WINDOW, (500, 500)), None);
        assert_eq!(watch.look(begin + WINDOW * 3 / 2, (600, 600)), None);
        assert_eq!(watch.look(begin + WINDOW * 2, (900, 900)), Some(100));
    }
}
