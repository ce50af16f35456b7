//! Busy polling: a core that gets the next message within microseconds looks out for it for a
//! moment before it sleeps.
//!
//! Where two programs talk in turns, each message finds each core on its way asleep, and to put it
//! to sleep and to wake it takes the system longer than the core needs for the message. So after a
//! turn the core looks into its ring's memory ([`RingView`]) for up to [`LONGEST`], without a
//! system call. That uses CPU time, so it is done only while it is seen to pay: a window of time
//! with it is compared with the windows before and after, which are without, and unless an eighth
//! more bytes get through, it is given up for a while, longer each time. Traffic that does not wait
//! for answers, answers that take longer, and a machine without CPU time to spare gain nothing by
//! it, and so have hardly any of it. Large messages, whose cost is their bytes and not turns, have
//! none.
//!
//! A core that polls must have nothing else to do: no task may be ready. The flush task, which runs
//! behind the flows, knows that by counting ([`woken`]): ready tasks are run in the order in which
//! they were woken; all that wakes tasks is counted, except the runtime, which does so only when it
//! takes completions from the ring, and the ring counts those, and when its timers are due, before
//! any task has its turn. The core's main task (its mail) is in no queue: it may wait for a poll.

use std::cell::{Cell, OnceCell};
use std::time::{Duration, Instant};

use super::counters::CoreCounters;
use crate::sys::ring::RingView;

/// How long a core looks out for the next message.
const LONGEST: Duration = Duration::from_micros(100);

/// After this time, what the runtime would give to the kernel with its next system call is given to
/// it: sockets that had something in this round are not waited for before. Where two programs talk
/// in turns, the next message comes earlier, and on another socket.
const SUBMIT_AFTER: Duration = Duration::from_micros(30);

/// Looks at the ring between two at the clock.
const LOOKS_PER_CLOCK: u32 = 16;

/// If the clock has moved on by this much between two looks at it, the CPU was somebody else's
/// meanwhile.
const AWAY_MIN: Duration = Duration::from_micros(20);

/// Times that this may happen in a window, and polls per time. After more, polling is given up: it
/// would only take the CPU from others.
const TIMES_AWAY_MAX: u32 = 4;
const POLLS_PER_TIME_AWAY: u32 = 8;

/// Time over which bytes are counted.
const WINDOW: Duration = Duration::from_millis(20);

/// The least number of turns in a window for which it is tried: they are then 400 µs apart.
const TURNS_MIN: u64 = 50;

/// The most bytes of a turn, on average, for which it is tried.
const TURN_BYTES_MAX: u64 = 4 << 10;

/// It pays if this many eighths of the bytes get through.
const EIGHTHS_MIN: u64 = 9;

/// Windows with it after which it is compared again: 1.3 seconds.
const WINDOWS_MAX: u32 = 64;

/// How long it is not tried after it has not paid for the first time, and at most.
const REST: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(8);

thread_local! {
    static WAKES: Cell<u32> = const { Cell::new(0) };
    static RING: OnceCell<RingView> = const { OnceCell::new() };
    static POLICY: Policy = const { Policy::new() };
}

/// Notes that a task of this core is being woken. Returns what [`last_wake`] returns until another
/// one is.
pub(crate) fn woken() -> u32 {
    WAKES.set(WAKES.get().wrapping_add(1));
    last_wake()
}

/// A number that changes whenever a task of this core is woken.
pub(crate) fn last_wake() -> u32 {
    let taken = RING.with(|ring| ring.get().map_or(0, RingView::taken));
    WAKES.get().wrapping_add(taken)
}

/// Lets this core, whose ring it is, poll.
pub(crate) fn watch(ring: RingView) {
    let _first = RING.with(|cell| cell.set(ring));
}

/// Whether turns of this core end with polling at the moment.
pub(crate) fn is_on() -> bool {
    POLICY.with(|policy| policy.phase.get().is_on())
}

/// Ends a turn at `now`: polls, if that is likely to pay, until `deadline` at most. The caller has
/// made sure that no task is ready.
pub(crate) fn turn_over(counters: &CoreCounters, now: Instant, deadline: Instant) {
    RING.with(|ring| {
        let Some(ring) = ring.get() else { return };
        POLICY.with(|policy| {
            if !policy.turn(now, bytes_carried(counters)) {
                return;
            }
            counters.busy_polls.increment();
            let polled = poll(ring, now, deadline.min(now + LONGEST));
            if !polled.has_come {
                counters.busy_polls_in_vain.increment();
            }
            policy.polled(polled);
        });
    });
}

/// How a moment of polling ended.
#[derive(Debug, Clone, Copy)]
struct Polled {
    /// Whether something came.
    has_come: bool,
    /// When it ended.
    at: Instant,
    /// Whether the CPU was somebody else's meanwhile.
    was_away: bool,
}

/// Looks into the ring, from `now` on, until something has come.
fn poll(ring: &RingView, now: Instant, until: Instant) -> Polled {
    let (mut at, mut was_away, mut has_submitted) = (now, false, false);
    loop {
        let has_come = (0..LOOKS_PER_CLOCK).any(|_| {
            std::hint::spin_loop();
            ring.has_completion()
        });
        let before = std::mem::replace(&mut at, Instant::now());
        was_away |= at - before > AWAY_MIN;
        if has_come || at >= until {
            return Polled {
                has_come,
                at,
                was_away,
            };
        }
        if at >= now + SUBMIT_AFTER && !std::mem::replace(&mut has_submitted, true) {
            ring.submit();
            at = Instant::now();
        }
    }
}

fn bytes_carried(counters: &CoreCounters) -> u64 {
    let CoreCounters {
        tcp_bytes_in,
        tcp_bytes_out,
        udp_bytes_in,
        udp_bytes_out,
        ..
    } = counters;
    let tcp = tcp_bytes_in.get().wrapping_add(tcp_bytes_out.get());
    let udp = udp_bytes_in.get().wrapping_add(udp_bytes_out.get());
    tcp.wrapping_add(udp)
}

/// What a window of time is for. Bytes are counted as if each had been exactly as long as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Without polling.
    Without,
    /// With it, to compare with the bytes of the one before.
    Trial { before: u64 },
    /// Without it again, to compare the bytes of both.
    After { before: u64, trial: u64 },
    /// With it: it pays. This many were before this one.
    With { windows: u32 },
}

impl Phase {
    fn is_on(self) -> bool {
        matches!(self, Phase::Trial { .. } | Phase::With { .. })
    }
}

/// Whether a core polls. It knows no clock: time comes in as an argument.
#[derive(Debug)]
struct Policy {
    phase: Cell<Phase>,
    window_began: Cell<Option<Instant>>,
    turns: Cell<u32>,
    /// Turns after which nothing came in time.
    in_vain: Cell<u32>,
    /// Times that the CPU was somebody else's meanwhile.
    times_away: Cell<u32>,
    /// Bytes carried when the window began.
    bytes: Cell<u64>,
    rests_until: Cell<Option<Instant>>,
    /// How long it rests the next time.
    rest: Cell<Duration>,
}

impl Policy {
    const fn new() -> Policy {
        Policy {
            phase: Cell::new(Phase::Without),
            window_began: Cell::new(None),
            turns: Cell::new(0),
            in_vain: Cell::new(0),
            times_away: Cell::new(0),
            bytes: Cell::new(0),
            rests_until: Cell::new(None),
            rest: Cell::new(REST),
        }
    }

    /// Notes that a turn has ended, and that `bytes` have been carried so far. Returns whether to
    /// poll.
    fn turn(&self, now: Instant, bytes: u64) -> bool {
        self.turns.set(self.turns.get().saturating_add(1));
        match self.window_began.get() {
            Some(began) if now < began + WINDOW => {}
            Some(began) if now < began + 2 * WINDOW => {
                self.phase.set(self.judge(now, now - began, bytes));
                self.begin_window(now, bytes);
            }
            // After a longer time without a turn, the window says less than it seems to.
            _ => {
                self.phase.set(Phase::Without);
                self.begin_window(now, bytes);
            }
        }
        self.phase.get().is_on()
    }

    /// Notes how a moment of polling ended.
    fn polled(&self, polled: Polled) {
        if !polled.has_come {
            self.in_vain.set(self.in_vain.get().saturating_add(1));
        }
        if polled.was_away {
            let times = self.times_away.get() + 1;
            self.times_away.set(times);
            if times > TIMES_AWAY_MAX && times * POLLS_PER_TIME_AWAY > self.turns.get() {
                self.phase.set(self.give_up(polled.at));
            }
        }
    }

    /// Decides at the end of a window, which took `elapsed`, what the next one is for.
    fn judge(&self, now: Instant, elapsed: Duration, bytes: u64) -> Phase {
        let in_a_window = |count: u64| {
            let scaled = u128::from(count) * WINDOW.as_nanos() / elapsed.as_nanos().max(1);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        let carried = in_a_window(bytes.wrapping_sub(self.bytes.get()));
        let turns = in_a_window(self.turns.get().into());
        if turns < TURNS_MIN || carried == 0 || carried > turns * TURN_BYTES_MAX {
            return match self.phase.get() {
                Phase::Without | Phase::With { .. } => Phase::Without,
                // Polling itself may have made the turns fewer.
                Phase::Trial { .. } | Phase::After { .. } => self.give_up(now),
            };
        }
        let mostly_in_vain = 2 * self.in_vain.get() > self.turns.get();
        match self.phase.get() {
            Phase::Without if self.rests_until.get().is_some_and(|until| now < until) => {
                Phase::Without
            }
            Phase::Without => Phase::Trial { before: carried },
            Phase::Trial { before } if pays(carried, before) && !mostly_in_vain => Phase::After {
                before,
                trial: carried,
            },
            Phase::After { before, trial } if pays(trial, before.max(carried)) => {
                // One success may be chance, or somebody's doing.
                self.rest.set((self.rest.get() / 2).max(REST));
                Phase::With { windows: 0 }
            }
            Phase::With { windows } if !mostly_in_vain && windows < WINDOWS_MAX => Phase::With {
                windows: windows + 1,
            },
            Phase::With { .. } if !mostly_in_vain => Phase::Without,
            _ => self.give_up(now),
        }
    }

    fn give_up(&self, now: Instant) -> Phase {
        let rest = self.rest.get();
        self.rests_until.set(Some(now + rest));
        self.rest.set((2 * rest).min(REST_MAX));
        Phase::Without
    }

    fn begin_window(&self, now: Instant, bytes: u64) {
        self.window_began.set(Some(now));
        self.turns.set(0);
        self.in_vain.set(0);
        self.times_away.set(0);
        self.bytes.set(bytes);
    }
}

fn pays(with: u64, without: u64) -> bool {
    u128::from(with) * 8 >= u128::from(without) * u128::from(EIGHTHS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a simulated core did.
    #[derive(Debug, Default)]
    struct Run {
        turns: u32,
        polls: u32,
        polled: Duration,
    }

    impl Run {
        fn share_of(&self, of: Duration) -> f64 {
            self.polled.as_secs_f64() / of.as_secs_f64()
        }
    }

    /// Turns of `bytes` each. The next message comes `wait(polls, at)` after a turn.
    fn turns(of: Duration, bytes: u64, wait: impl Fn(bool, Duration) -> Duration) -> Run {
        turns_on_a_busy_cpu(of, bytes, u32::MAX, wait)
    }

    /// The same on a CPU that is somebody else's once in so many polls.
    fn turns_on_a_busy_cpu(
        of: Duration,
        bytes: u64,
        of_polls_away: u32,
        wait: impl Fn(bool, Duration) -> Duration,
    ) -> Run {
        let policy = Policy::new();
        let begin = Instant::now();
        let (mut now, mut carried, mut run) = (begin, 0, Run::default());
        while now < begin + of {
            run.turns += 1;
            carried += bytes;
            let polls = policy.turn(now, carried);
            let wait = wait(polls, now - begin);
            if polls {
                run.polls += 1;
                run.polled += wait.min(LONGEST);
                policy.polled(Polled {
                    has_come: wait <= LONGEST,
                    at: now + wait.min(LONGEST),
                    was_away: run.polls % of_polls_away == 0,
                });
            }
            now += wait;
        }
        run
    }

    const LONG: Duration = Duration::from_secs(20);

    const fn us(microseconds: u64) -> Duration {
        Duration::from_micros(microseconds)
    }

    #[test]
    fn two_programs_that_talk_in_turns_are_polled_for() {
        let run = turns(LONG, 64, |polls, _| if polls { us(45) } else { us(95) });
        assert!(run.polls * 10 > run.turns * 9, "{run:?}");
    }

    #[test]
    fn traffic_that_waits_for_nobody_costs_little() {
        let run = turns(LONG, 64, |_, _| us(50));
        assert!(run.polls > 0, "it is tried");
        assert!(run.share_of(LONG) < 0.02, "{run:?}");
    }

    #[test]
    fn answers_that_take_longer_cost_little() {
        let run = turns(LONG, 64, |polls, _| us(if polls { 240 } else { 300 }));
        assert!(run.polls > 0, "it is tried");
        assert!(run.share_of(LONG) < 0.02, "{run:?}");
    }

    #[test]
    fn a_core_that_polling_slows_gives_it_up() {
        let run = turns(LONG, 64, |polls, _| us(if polls { 60 } else { 50 }));
        assert!(run.share_of(LONG) < 0.02, "{run:?}");
    }

    #[test]
    fn a_trial_ends_at_once_where_others_want_the_cpu() {
        let wait = |polls: bool, _| us(if polls { 60 } else { 50 });
        let (free, busy) = (
            turns(LONG, 64, wait),
            turns_on_a_busy_cpu(LONG, 64, 4, wait),
        );
        assert!(busy.polls > 0, "it is tried");
        assert!(busy.polls * 5 < free.polls, "{busy:?} of {free:?}");
        let wait = |polls: bool, _| us(if polls { 45 } else { 95 });
        let run = turns_on_a_busy_cpu(LONG, 64, 16, wait);
        assert!(
            run.polls * 10 > run.turns * 9,
            "now and then does not matter"
        );
    }

    #[test]
    fn turns_that_polling_makes_fewer_cost_little() {
        let run = turns(LONG, 64, |polls, _| us(if polls { 410 } else { 390 }));
        assert!(run.polls > 0, "it is tried");
        assert!(run.share_of(LONG) < 0.02, "{run:?}");
    }

    #[test]
    fn traffic_that_grows_by_itself_is_no_gain() {
        // It doubles in each half second, at whose end it begins anew.
        let run = turns(LONG, 64, |_, at| {
            let grown = (at.as_secs_f64() / 0.5).fract().exp2();
            us(100).div_f64(grown)
        });
        assert!(run.share_of(LONG) < 0.02, "{run:?}");
    }

    #[test]
    fn neither_rare_nor_large_messages_are_polled_for() {
        let rare = turns(LONG, 64, |polls, _| us(if polls { 200 } else { 450 }));
        assert_eq!(rare.polls, 0, "{rare:?}");
        let large = turns(LONG, 2 * TURN_BYTES_MAX, |polls, _| {
            us(if polls { 45 } else { 95 })
        });
        assert_eq!(large.polls, 0, "{large:?}");
    }

    #[test]
    fn what_has_ended_is_not_polled_for_when_it_begins_again() {
        let policy = Policy::new();
        let mut now = Instant::now();
        let mut carried = 0;
        let mut turn = |after: Duration| {
            now += after;
            carried += 64;
            policy.turn(now, carried)
        };
        while !matches!(policy.phase.get(), Phase::With { .. }) {
            turn(if policy.phase.get().is_on() {
                us(45)
            } else {
                us(95)
            });
        }
        assert!(turn(us(45)));
        assert!(!turn(Duration::from_secs(1)));
    }

    #[test]
    fn each_waking_of_a_task_changes_the_number() {
        let first = woken();
        assert_eq!(last_wake(), first);
        assert_ne!(woken(), first);
        assert_ne!(last_wake(), first);
    }
}
