//! Lifetimes against a naive model of them, by seeded simulation, with strangers who flood and a
//! clock that jumps. Every run repeats by its seed: `QMUX_SEED=7 cargo test --workspace
//! udp::lifetimes`.

use std::cell::Cell;
use std::net::Ipv4Addr;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const LIMITS: Limits = Limits {
    flows_max: 24,
    unanswered_timeout: Duration::from_secs(3),
    session_timeout: Duration::from_secs(20),
};
const SEEDS: u64 = 1_000;
const STEPS: usize = 3_000;

/// One flow as the model knows it; `number` counts the flows.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    key: usize,
    number: u64,
    ip: IpAddr,
    stage: Stage,
    last_activity: Instant,
    /// The order of events, where the clock does not tell it.
    touched: u64,
    kept: bool,
}

#[derive(Debug, Default)]
struct Seen {
    evicted_unanswered: u64,
    evicted_answered: u64,
    evicted_of_source: u64,
    refused: u64,
    expired: u64,
    expired_established: u64,
    kept: u64,
    honest_answered: u64,
}

struct Simulation {
    random: StdRng,
    now: Instant,
    lifetimes: Lifetimes<(u64, bool)>,
    /// The flows in the order in which they were opened.
    model: Vec<Known>,
    events: u64,
    opened: u64,
    ended: u64,
    seen: Seen,
    /// How likely strangers are, per 100 steps. It changes, so that tables fill and empty.
    flood: u32,
    /// Whether flows end only by the rule, so that in the end only established ones are left.
    crowded: bool,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        Simulation {
            random: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            lifetimes: Lifetimes::new(LIMITS),
            model: Vec::new(),
            events: 0,
            opened: 0,
            ended: 0,
            seen: Seen::default(),
            flood: 0,
            crowded: false,
        }
    }

    fn step(&mut self) {
        self.events += 1;
        if self.random.random_bool(0.002) {
            self.flood = [0, 10, 60, 90][self.random.random_range(0..4)];
            self.crowded = self.random.random_bool(0.3);
        }
        let flood = self.random.random_range(0..100) < self.flood;
        match self.random.random_range(0..100) {
            _ if flood => {
                let ip = self.stranger();
                self.open(ip);
            }
            0..15 => self.open(Ipv4Addr::new(192, 0, 2, 1).into()),
            15..45 => self.asked(),
            45..70 => self.answered(),
            70..99 if self.crowded => {}
            70..78 => self.remove(),
            78..92 => self.now += Duration::from_millis(self.random.random_range(0..500)),
            92 => self.now += Duration::from_secs(self.random.random_range(0..30)),
            _ => self.sweep(),
        }
    }

    /// The address of a stranger: of many networks, or of one that tries to take everything.
    fn stranger(&mut self) -> IpAddr {
        let random = &mut self.random;
        if random.random_bool(0.3) {
            let host: u16 = random.random();
            return Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 1, 2, 3, host).into();
        }
        let (c, d) = (random.random_range(0..50), random.random());
        Ipv4Addr::new(198, 51, c, d).into()
    }

    fn any(&mut self) -> Option<usize> {
        let flows = self.model.len();
        (flows > 0).then(|| self.random.random_range(0..flows))
    }

    fn oldest(&self, belongs: impl Fn(&Known) -> bool) -> Option<Known> {
        let flows = self.model.iter().copied().filter(|flow| belongs(flow));
        flows.min_by_key(|flow| flow.touched)
    }

    fn count(&self, stage: Stage) -> usize {
        self.model.iter().filter(|flow| flow.stage == stage).count()
    }

    /// The rule, computed in the simplest way.
    fn expected_room(&self, ip: IpAddr) -> Room {
        let mine =
            |flow: &&Known| source(flow.ip) == source(ip) && flow.stage != Stage::Established;
        if self.model.iter().filter(mine).count() >= LIMITS.per_source_max() {
            let first = self.model.iter().find(mine).expect("there are some");
            return Room::Instead(first.key, Why::Source);
        }
        if self.model.len() < LIMITS.flows_max {
            return Room::Free;
        }
        let answered = self.count(Stage::Answered) > self.count(Stage::Unanswered);
        let gives = if answered {
            Stage::Answered
        } else {
            Stage::Unanswered
        };
        let oldest = self.oldest(|flow| flow.stage == gives);
        oldest.map_or(Room::None, |flow| Room::Instead(flow.key, Why::Full))
    }

    fn open(&mut self, ip: IpAddr) {
        let room = self.lifetimes.room_for(ip);
        assert_eq!(room, self.expected_room(ip));
        match room {
            Room::Free => {}
            Room::None => {
                self.seen.refused += 1;
                assert_eq!(self.count(Stage::Established), LIMITS.flows_max);
                return;
            }
            Room::Instead(key, why) => {
                let at = self.at(key);
                let gone = self.model[at];
                match (why, gone.stage) {
                    (Why::Source, _) => self.seen.evicted_of_source += 1,
                    (_, Stage::Unanswered) => self.seen.evicted_unanswered += 1,
                    (_, Stage::Answered) => {
                        // Answered flows are evicted only for other answered ones, never for those
                        // of silent services.
                        assert!(self.count(Stage::Answered) > self.count(Stage::Unanswered));
                        self.seen.evicted_answered += 1;
                    }
                    (_, Stage::Established) => panic!("an established flow made room"),
                }
                self.take_out(at);
            }
        }
        let kept = self.random.random_bool(0.05);
        let number = self.opened;
        let key = self.lifetimes.open(ip, (number, kept), self.now);
        self.opened += 1;
        self.model.push(Known {
            key,
            number,
            ip,
            stage: Stage::Unanswered,
            last_activity: self.now,
            touched: self.events,
            kept,
        });
    }

    fn at(&self, key: usize) -> usize {
        let mut flows = self.model.iter();
        flows.position(|flow| flow.key == key).expect("it is known")
    }

    fn take_out(&mut self, at: usize) {
        let flow = self.model.remove(at);
        let value = self.lifetimes.remove(flow.key);
        assert_eq!(value, Some((flow.number, flow.kept)));
        self.ended += 1;
    }

    fn asked(&mut self) {
        let Some(at) = self.any() else { return };
        let flow = &mut self.model[at];
        flow.last_activity = self.now;
        flow.touched = self.events;
        if flow.stage == Stage::Answered {
            flow.stage = Stage::Established;
        }
        self.lifetimes.asked(flow.key, self.now);
    }

    fn answered(&mut self) {
        let Some(at) = self.any() else { return };
        let flow = &mut self.model[at];
        flow.last_activity = self.now;
        flow.touched = self.events;
        let first = flow.stage == Stage::Unanswered;
        if first {
            flow.stage = Stage::Answered;
            self.seen.honest_answered += 1;
        }
        assert_eq!(self.lifetimes.answered(flow.key, self.now), first);
    }

    fn remove(&mut self) {
        if let Some(at) = self.any() {
            self.take_out(at);
        }
        // A key that is not in use does nothing.
        let unused = 10 * LIMITS.flows_max;
        self.lifetimes.asked(unused, self.now);
        assert!(!self.lifetimes.answered(unused, self.now));
        assert_eq!(self.lifetimes.remove(unused), None);
    }

    fn is_due(&self, flow: &Known) -> bool {
        let timeout = match flow.stage {
            Stage::Unanswered => LIMITS.unanswered_timeout,
            _ => LIMITS.session_timeout,
        };
        self.now.saturating_duration_since(flow.last_activity) >= timeout
    }

    fn sweep(&mut self) {
        let work = Cell::new(0);
        let before = self.model.len();
        loop {
            let kept = |value: &(u64, bool)| {
                work.set(work.get() + 1);
                value.1
            };
            let Some(key) = self.lifetimes.next_expired(self.now, kept) else {
                break;
            };
            let at = self.at(key);
            let flow = self.model[at];
            assert!(self.is_due(&flow) && !flow.kept, "{flow:?}");
            self.seen.expired += 1;
            self.seen.expired_established += u64::from(flow.stage == Stage::Established);
            self.take_out(at);
        }
        assert!(work.get() <= 2 * before + 1, "each flow is looked at once");
        let mut due: Vec<usize> = (0..self.model.len())
            .filter(|at| self.is_due(&self.model[*at]))
            .collect();
        due.sort_by_key(|at| self.model[*at].touched);
        for at in due {
            let flow = &mut self.model[at];
            assert!(flow.kept, "{flow:?} outlived its time");
            self.seen.kept += 1;
            // The flow counts as active from the sweep on; of an established one only its deadline
            // shows that.
            if flow.stage != Stage::Established {
                self.events += 1;
                flow.touched = self.events;
                flow.last_activity = self.now;
            }
        }
    }

    fn check(&self) {
        let lives = &self.lifetimes;
        assert_eq!(lives.len(), self.model.len());
        assert!(lives.len() <= LIMITS.flows_max);
        assert_eq!(self.opened, self.ended + self.model.len() as u64);
        assert_eq!(lives.unanswered.len(), self.count(Stage::Unanswered));
        assert_eq!(lives.answered.len(), self.count(Stage::Answered));
        let of_sources: usize = lives.sources.values().map(List::len).sum();
        assert_eq!(of_sources, lives.unanswered.len() + lives.answered.len());
        assert!(lives.sources.values().all(|list| list.len() > 0));
        for flow in &self.model {
            assert_eq!(lives.stage(flow.key), Some(flow.stage));
            assert_eq!(lives.get(flow.key), Some(&(flow.number, flow.kept)));
        }
        let entries = lives.expiry.entries();
        assert!(entries <= Expiry::<(usize, u64)>::entries_max(LIMITS.flows_max));
    }
}

#[test]
fn lives_agree_with_a_naive_model_of_them() {
    let seeds = match std::env::var("QMUX_SEED") {
        Ok(seed) => vec![seed.parse().expect("QMUX_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    let all = seeds.len() > 1;
    let mut seen = Seen::default();
    for seed in seeds {
        println!("QMUX_SEED={seed}"); // Shown if the test fails.
        let mut simulation = Simulation::new(seed);
        for step in 0..STEPS {
            simulation.step();
            if step % 16 == 0 {
                simulation.check();
            }
        }
        simulation.check();
        let of_seed = &simulation.seen;
        seen.evicted_unanswered += of_seed.evicted_unanswered;
        seen.evicted_answered += of_seed.evicted_answered;
        seen.evicted_of_source += of_seed.evicted_of_source;
        seen.refused += of_seed.refused;
        seen.expired += of_seed.expired;
        seen.expired_established += of_seed.expired_established;
        seen.kept += of_seed.kept;
        seen.honest_answered += of_seed.honest_answered;
    }
    for (count, what) in [
        (seen.evicted_unanswered, "an unanswered flow that made room"),
        (seen.evicted_answered, "an answered flow that made room"),
        (seen.evicted_of_source, "a source with too many"),
        (seen.refused, "a refusal"),
        (seen.expired, "an end by time"),
        (
            seen.expired_established,
            "such an end of an established flow",
        ),
        (seen.kept, "a flow kept beyond its time"),
        (seen.honest_answered, "an answer"),
    ] {
        assert!(
            count > 0 || !all,
            "the simulation never saw {what}: {seen:?}"
        );
    }
}

/// The purpose in numbers: strangers at ten thousand a second, and a table of a thousand flows.
#[test]
fn a_flood_costs_no_exchange_that_goes_on_and_no_newcomer_its_answer() {
    for strangers_are_answered in [false, true] {
        let limits = Limits {
            flows_max: 1_000,
            unanswered_timeout: Duration::from_secs(30),
            session_timeout: Duration::from_secs(300),
        };
        let mut lives = Lifetimes::new(limits);
        let mut now = Instant::now();
        let honest: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        let old = lives.open(honest, 0, now);
        lives.answered(old, now);
        lives.asked(old, now);
        let (mut newcomer, mut answered) = (None, 0);
        for stranger in 0..40_000_u32 {
            now += Duration::from_micros(100);
            let ip: IpAddr = Ipv4Addr::from(0x0a00_0000 + stranger).into();
            if let Room::Instead(key, _) = lives.room_for(ip) {
                lives.remove(key);
            }
            let key = lives.open(ip, stranger + 1, now);
            if strangers_are_answered {
                lives.answered(key, now);
            }
            // Every 5 ms there is an honest visitor, whose answer takes 20 ms.
            if stranger % 250 == 0 {
                if let Room::Instead(key, _) = lives.room_for(honest) {
                    lives.remove(key);
                }
                newcomer = Some(lives.open(honest, 0, now));
            } else if stranger % 250 == 200
                && let Some(newcomer) = newcomer.take()
            {
                assert_eq!(lives.get(newcomer), Some(&0), "it was ended meanwhile");
                answered += u32::from(lives.answered(newcomer, now));
            }
        }
        assert_eq!(answered, 160);
        assert_eq!(lives.stage(old), Some(Stage::Established));
        assert!(lives.len() <= limits.flows_max);
    }
}
