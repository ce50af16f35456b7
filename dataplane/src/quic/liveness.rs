//! Liveness: when a lane asks its peer for a sign of life.
//!
//! A restarted server answers the next packet of a lane that it does not know with a stateless
//! reset, so a client learns of the restart by sending anything. A client that has died answers
//! nothing, and a server learns of it in the same way. So one lane to each peer probes it (with a
//! PING, which is answered by an acknowledgement) whenever nothing was heard for a while. If the
//! answer stays away, the peer is suspected: the lane asks faster, and all other lanes to the peer
//! ask as well, until something is heard or the lane ends.
//!
//! The owner decides what counts as heard, and passes it as a number that grows. A server counts
//! packets. A client counts acknowledgements, because these also show whether only its own packets
//! are lost. A lane may also probe for itself alone ([`Liveness::alone`]), or beside the one that
//! has the role ([`Liveness::asks_aside`]). There is no clock and no I/O in here: time comes in as
//! an argument.

use std::time::{Duration, Instant};

/// The least time to wait for the answer to a probe, and between two probes of a suspicious lane:
/// several of them fit into the second in which a client should be back.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Answers in a row that may be missing before the lane asks less often. A peer that has not
/// answered ten questions is rarely back within the next 200 ms, and thousands of lanes may have
/// lost theirs at the same time.
const ASKED_OFTEN_MAX: u32 = 10;

/// Time between two probes after that.
const ASK_SELDOM: Duration = Duration::from_secs(1);

/// On long paths the lane waits for twice the round trip, but not longer than this.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);

/// What the owner of the lane must do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Duty {
    /// Send a PING.
    pub(crate) ping: bool,
    /// Tell the other lanes to the peer that it may be gone.
    pub(crate) alarm: bool,
}

/// A question that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    /// The number of packets heard when the question was asked; a larger number is the answer.
    heard: u64,
    /// Whether it was answered, as [`Liveness::unanswered_since`] has found.
    answered: bool,
    /// Whether the answer was missing before, or another lane says that the peer may be gone.
    suspicious: bool,
    /// The time of the first question that nothing has answered yet.
    first_at: Instant,
    /// Number of questions since then.
    count: u32,
}

/// The liveness of one lane's peer.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Time between probes; `None` if there are none.
    interval: Option<Duration>,
    /// Time between probes while another lane has the role; `None` if there are none.
    aside: Option<Duration>,
    probes: bool,
    /// Whether the lane probes for itself, and alarms nobody.
    alone: bool,
    asked: Option<Asked>,
    /// The number of packets heard at the last check.
    heard: u64,
    next: Option<Instant>,
}

impl Liveness {
    /// A lane that probes at `interval` when it has the role; zero means never.
    pub(crate) fn new(interval: Duration) -> Liveness {
        Liveness {
            interval: (!interval.is_zero()).then_some(interval),
            aside: None,
            probes: false,
            alone: false,
            asked: None,
            heard: 0,
            next: None,
        }
    }

    /// A lane that probes for itself from `now` on, whatever other lanes do.
    pub(crate) fn alone(interval: Duration, now: Instant, heard: u64) -> Liveness {
        Liveness {
            probes: true,
            alone: true,
            heard,
            next: Some(now + interval / 2),
            ..Liveness::new(interval)
        }
    }

    /// Makes this lane ask for itself at each `interval` while another lane has the probing role:
    /// its own path may fail where the other lane's does not.
    pub(crate) fn asks_aside(&mut self, interval: Duration, now: Instant, heard: u64) {
        self.aside = Some(interval);
        if !self.probes && self.asked.is_none() {
            self.heard = heard;
            self.next = Some(now + interval / 2);
        }
    }

    /// Whether the lane asks for itself, and nobody else relies on it.
    pub(crate) fn is_for_itself(&self) -> bool {
        self.alone || !self.probes
    }

    /// Skips the next probe, which the lane does not need now, unless an answer is missing already.
    pub(crate) fn skip(&mut self, now: Instant, heard: u64) {
        if self.next.is_some_and(|next| now >= next) && self.asked.is_none() {
            self.heard = heard;
            self.next = self.interval().map(|interval| now + interval);
        }
    }

    /// Whether this lane wants the probing role and does not have it.
    pub(crate) fn wants_to_probe(&self) -> bool {
        self.interval.is_some() && !self.probes
    }

    /// Gives this lane the probing role. `heard` counts its packets so far.
    pub(crate) fn probe(&mut self, now: Instant, heard: u64) {
        self.probes = true;
        self.heard = heard;
        if self.asked.is_none() {
            self.next = self.interval.map(|interval| now + interval / 2);
        }
    }

    /// The time at which [`Liveness::due`] is to be called.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Another lane says that the peer may be gone. `heard` counts the packets of this lane so far.
    pub(crate) fn alarm(&mut self, now: Instant, heard: u64, rtt: Duration) -> Duty {
        if self
            .asked
            .is_some_and(|asked| asked.suspicious && asked.heard == heard)
        {
            return Duty::default();
        }
        self.ask(now, heard, rtt, true)
    }

    /// Called when the time of [`Liveness::next`] has come.
    pub(crate) fn due(&mut self, now: Instant, heard: u64, rtt: Duration) -> Duty {
        if self.next.is_none_or(|next| now < next) {
            return Duty::default();
        }
        let before = std::mem::replace(&mut self.heard, heard);
        match self.asked {
            Some(asked) if asked.heard == heard => {
                let duty = self.ask(now, heard, rtt, true);
                Duty {
                    alarm: self.probes && !self.alone && !asked.suspicious,
                    ..duty
                }
            }
            Some(asked) => {
                self.asked = None;
                self.next = self.interval().map(|interval| asked.at + interval);
                Duty::default()
            }
            // Anything that was heard since the last look is as good as an answer, but it may have
            // been long ago.
            None if heard != before => {
                self.next = self.interval().map(|interval| now + interval / 2);
                Duty::default()
            }
            None => self.ask(now, heard, rtt, false),
        }
    }

    /// The time since which nothing has been heard although it was asked for. `heard` is called
    /// only while an answer is missing.
    pub(crate) fn unanswered_since(&mut self, heard: impl FnOnce() -> u64) -> Option<Instant> {
        let asked = self.asked.as_mut().filter(|asked| !asked.answered)?;
        asked.answered = asked.heard != heard();
        (!asked.answered).then_some(asked.first_at)
    }

    fn ask(&mut self, now: Instant, heard: u64, rtt: Duration, suspicious: bool) -> Duty {
        let earlier = self.asked.filter(|asked| asked.heard == heard);
        let count = earlier.map_or(0, |earlier| earlier.count).saturating_add(1);
        self.asked = Some(Asked {
            at: now,
            heard,
            answered: false,
            suspicious,
            first_at: earlier.map_or(now, |earlier| earlier.first_at),
            count,
        });
        let patience = (rtt * 2).clamp(ASK_AGAIN, ASK_AGAIN_MAX);
        self.next = Some(if count > ASKED_OFTEN_MAX {
            now + patience.max(ASK_SELDOM)
        } else {
            now + patience
        });
        Duty {
            ping: true,
            alarm: false,
        }
    }

    /// Time between this lane's probes, if it has the role or asks for itself.
    fn interval(&self) -> Option<Duration> {
        self.interval.filter(|_| self.probes).or(self.aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(500);
    const RTT: Duration = Duration::from_millis(1);
    const PING: Duty = Duty {
        ping: true,
        alarm: false,
    };

    /// Runs it over `length`: each ping is answered if `answered` says so for its time. Returns the
    /// times of pings and alarms, in milliseconds.
    fn run(
        liveness: &mut Liveness,
        start: Instant,
        length: Duration,
        mut heard: u64,
        answered: impl Fn(u64) -> bool,
    ) -> (Vec<u64>, Vec<u64>) {
        let (mut pings, mut alarms) = (Vec::new(), Vec::new());
        if liveness.wants_to_probe() {
            liveness.probe(start, heard);
        }
        while let Some(now) = liveness.next().filter(|next| *next <= start + length) {
            let at = (now - start).as_millis() as u64;
            let duty = liveness.due(now, heard, RTT);
            if duty.alarm {
                alarms.push(at);
            }
            if duty.ping {
                pings.push(at);
                heard += u64::from(answered(at));
            }
        }
        (pings, alarms)
    }

    #[test]
    fn an_idle_server_is_asked_at_each_interval_and_nobody_is_alarmed() {
        let mut liveness = Liveness::new(INTERVAL);
        let (pings, alarms) = run(
            &mut liveness,
            Instant::now(),
            Duration::from_secs(10),
            0,
            |_| true,
        );
        assert_eq!(pings[..3], [250, 750, 1_250]);
        assert_eq!(alarms, [0; 0]);
    }

    #[test]
    fn a_silent_server_is_asked_faster_and_the_others_are_alarmed_once() {
        let mut liveness = Liveness::new(INTERVAL);
        let (pings, alarms) = run(
            &mut liveness,
            Instant::now(),
            Duration::from_millis(1_500),
            0,
            |_| false,
        );
        assert_eq!(pings, [250, 450, 650, 850, 1_050, 1_250, 1_450]);
        assert_eq!(alarms, [450]);
    }

    #[test]
    fn an_answer_after_a_silence_calms_and_the_next_silence_alarms_again() {
        let mut liveness = Liveness::new(INTERVAL);
        let (_, alarms) = run(
            &mut liveness,
            Instant::now(),
            Duration::from_secs(5),
            0,
            |at| (1_000..3_000).contains(&at),
        );
        assert_eq!(alarms.len(), 2, "{alarms:?}");
    }

    #[test]
    fn a_lane_that_hears_something_asks_nothing() {
        let mut liveness = Liveness::new(INTERVAL);
        let start = Instant::now();
        liveness.probe(start, 0);
        for heard in 1..20 {
            let now = liveness.next().expect("it goes on");
            assert_eq!(liveness.due(now, heard, RTT), Duty::default());
        }
    }

    #[test]
    fn a_silence_is_noticed_within_little_more_than_an_interval_whenever_it_begins() {
        for last_heard_ms in 0..2_000 {
            let mut liveness = Liveness::new(INTERVAL);
            let start = Instant::now();
            liveness.probe(start, 0);
            let last_heard = start + Duration::from_millis(last_heard_ms);
            let noticed = loop {
                let now = liveness.next().expect("it goes on");
                // Something is heard all the time, until then.
                let heard = (now.min(last_heard) - start).as_millis() as u64;
                if liveness.due(now, heard, RTT).ping && now > last_heard {
                    break now - last_heard;
                }
            };
            assert!(noticed <= INTERVAL + ASK_AGAIN, "{noticed:?}");
        }
    }

    #[test]
    fn an_alarmed_lane_asks_until_it_hears_something_and_no_longer() {
        let mut liveness = Liveness::new(Duration::ZERO);
        assert!(!liveness.wants_to_probe());
        let start = Instant::now();
        assert!(liveness.alarm(start, 5, RTT).ping);
        assert_eq!(
            liveness.alarm(start, 5, RTT),
            Duty::default(),
            "asked already"
        );
        let (pings, alarms) = run(&mut liveness, start, Duration::from_secs(1), 5, |at| {
            at >= 600
        });
        assert_eq!(pings.last(), Some(&600));
        assert_eq!(alarms, [0; 0], "only the prober alarms others");
        assert_eq!(liveness.next(), None);
        assert!(liveness.alarm(start, 9, RTT).ping, "and again another time");
    }

    #[test]
    fn a_peer_that_never_answers_is_asked_less_often_after_two_seconds() {
        let mut liveness = Liveness::new(INTERVAL);
        let length = Duration::from_secs(30);
        let (pings, alarms) = run(&mut liveness, Instant::now(), length, 0, |_| false);
        assert_eq!(alarms.len(), 1);
        assert!((35..=40).contains(&pings.len()), "{pings:?}");
        assert!(pings.windows(2).all(|two| two[1] - two[0] <= 1_000));
    }

    #[test]
    fn it_is_known_since_when_nothing_answers() {
        let mut liveness = Liveness::new(INTERVAL);
        let start = Instant::now();
        liveness.probe(start, 7);
        assert_eq!(liveness.unanswered_since(|| 7), None, "not asked yet");
        let first = start + INTERVAL / 2;
        assert!(liveness.due(first, 7, RTT).ping);
        let next = liveness.next().expect("it asks on");
        assert!(liveness.due(next, 7, RTT).ping);
        assert_eq!(liveness.unanswered_since(|| 7), Some(first));
        assert_eq!(liveness.unanswered_since(|| 8), None, "an answer");
        assert_eq!(
            liveness.unanswered_since(|| unreachable!("it is known")),
            None
        );
        let next = liveness.next().expect("it goes on");
        assert_eq!(liveness.due(next, 8, RTT), Duty::default());
        let again = liveness.next().expect("it goes on");
        assert!(liveness.due(again, 8, RTT).ping);
        assert_eq!(liveness.unanswered_since(|| 8), Some(again));
    }

    #[test]
    fn a_lane_that_asks_for_itself_alarms_nobody_and_rests_when_it_has_no_need() {
        let start = Instant::now();
        let mut liveness = Liveness::alone(INTERVAL, start, 0);
        assert!(!liveness.wants_to_probe() && liveness.is_for_itself());
        for _ in 0..10 {
            let now = liveness.next().expect("it goes on");
            liveness.skip(now, 0);
            assert_eq!(liveness.due(now, 0, RTT), Duty::default());
        }
        let began = liveness.next().expect("it goes on");
        let (pings, alarms) = run(&mut liveness, began, Duration::from_secs(1), 0, |_| false);
        assert_eq!(pings, [0, 200, 400, 600, 800, 1_000]);
        assert_eq!(alarms, [0; 0]);
        let now = liveness.next().expect("it asks on");
        liveness.skip(now, 0);
        assert!(liveness.due(now, 0, RTT).ping, "an answer is missing");
    }

    #[test]
    fn a_lane_without_the_role_asks_for_itself_alarms_nobody_and_still_wants_the_role() {
        let start = Instant::now();
        let aside = Duration::from_secs(1);
        let mut liveness = Liveness::new(INTERVAL);
        liveness.asks_aside(aside, start, 0);
        assert!(liveness.wants_to_probe() && liveness.is_for_itself());
        let first = start + aside / 2;
        assert!(liveness.due(first, 0, RTT).ping);
        let next = liveness.next().expect("it asks on");
        assert_eq!(liveness.due(next, 0, RTT), PING, "no alarm");
        assert_eq!(liveness.unanswered_since(|| 0), Some(first));
        let answered = liveness.next().expect("it asks on");
        assert_eq!(liveness.due(answered, 1, RTT), Duty::default());
        assert_eq!(liveness.next(), Some(next + aside));
        assert!(liveness.alarm(answered, 1, RTT).ping);
        let calm = liveness.next().expect("it asks on");
        assert_eq!(liveness.due(calm, 2, RTT), Duty::default());
        assert_eq!(liveness.next(), Some(answered + aside), "it goes on");
        liveness.probe(calm, 2);
        assert!(!liveness.is_for_itself());
        let (pings, alarms) = run(&mut liveness, calm, Duration::from_millis(600), 2, |_| {
            false
        });
        assert_eq!((pings.as_slice(), alarms.len()), (&[250, 450][..], 1));
    }

    #[test]
    fn a_long_path_is_given_time_to_answer() {
        let mut liveness = Liveness::new(INTERVAL);
        let start = Instant::now();
        liveness.probe(start, 0);
        let rtt = Duration::from_millis(600);
        assert!(liveness.due(start + INTERVAL, 0, rtt).ping);
        assert_eq!(liveness.next(), Some(start + INTERVAL + rtt * 2));
        liveness.due(start + INTERVAL + rtt * 2, 0, Duration::from_secs(60));
        let patience = liveness.next().expect("it asks on") - (start + INTERVAL + rtt * 2);
        assert_eq!(patience, ASK_AGAIN_MAX);
    }
}
