//! Floods of every kind beside honest clients, in a model of what an endpoint does with the
//! verdicts.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const SEEDS: u64 = 1_000;
const STEPS: usize = 3_000;

/// A client gives up its handshake after this time, and repeats its first packet after 1, 2, 4 s
/// (RFC 9002, 6.2).
const PATIENCE: Duration = Duration::from_secs(10);

/// A lane whose peer stops in the middle is given up after this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An honest client that is not in yet.
struct Client {
    ip: IpAddr,
    came: Instant,
    proved: bool,
    sends_at: Instant,
    pause: Duration,
}

/// What the peer of a lane does.
struct Open {
    honest: bool,
    since: Instant,
    ends: Instant,
}

#[derive(Default)]
struct Counts {
    unproved: u64,
    proved: u64,
    answers: u64,
    honest_in: u64,
    honest_late: u64,
    displaced: u64,
}

struct World {
    random: StdRng,
    start: Instant,
    now: Instant,
    admission: Admission,
    lanes: BTreeMap<u64, Open>,
    next_lane: u64,
    clients: Vec<Client>,
    /// Networks that the attackers own, and receive in.
    attackers: u16,
    /// Whether the attackers have so few networks that nobody else may suffer.
    few: bool,
    /// Whether they also forge addresses of any network.
    invent: bool,
    packets_per_step_max: u32,
    step_us_max: u64,
    counts: Counts,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let start = Instant::now();
        let few = random.random_range(0..4) > 0;
        let most = if few { 6 } else { 2_000 };
        World {
            start,
            now: start,
            admission: Admission::new(random.random(), start),
            lanes: BTreeMap::new(),
            next_lane: 0,
            clients: Vec::new(),
            attackers: random.random_range(0..=most),
            few,
            invent: random.random(),
            packets_per_step_max: if random.random_range(0..8) == 0 {
                100
            } else {
                random.random_range(1..=6)
            },
            step_us_max: [100, 2_000, 20_000, 100_000][random.random_range(0..4_usize)],
            counts: Counts::default(),
            random,
        }
    }

    fn step(&mut self) {
        let jump = self.random.random_range(0..1_000) == 0;
        // After the machine was suspended, nobody's clock has run meanwhile except this one.
        let us = if jump {
            self.random.random_range(0..60_000_000)
        } else {
            self.random.random_range(0..self.step_us_max)
        };
        self.now += Duration::from_micros(us);
        if jump {
            for client in &mut self.clients {
                client.came += Duration::from_micros(us);
            }
        }
        self.end_lanes();
        for _ in 0..self.random.random_range(0..=self.packets_per_step_max) {
            self.attack();
        }
        if self.clients.len() < 20 && self.random.random_range(0..50) == 0 {
            self.clients.push(Client {
                ip: IpAddr::from([198, 51, self.random.random(), self.random.random()]),
                came: self.now,
                proved: false,
                sends_at: self.now,
                pause: Duration::from_secs(1),
            });
        }
        self.serve_clients();
        self.check();
    }

    /// Ends lanes that are registered, failed or given up.
    fn end_lanes(&mut self) {
        let now = self.now;
        let ended: Vec<u64> = self
            .lanes
            .iter()
            .filter(|(_, lane)| lane.ends <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in ended {
            self.counts.honest_in += u64::from(self.lanes[&number].honest);
            self.lanes.remove(&number);
            self.admission.give_back(number);
            self.admission.give_back(number); // Told twice, it counts once.
        }
    }

    fn attack(&mut self) {
        let owned = self.attackers > 0 && (!self.invent || self.random.random());
        if !owned && !self.invent {
            return;
        }
        let ip = if owned {
            let network = self.random.random_range(0..self.attackers);
            let [high, low] = network.to_be_bytes();
            IpAddr::from([203, high, low, self.random.random()])
        } else {
            IpAddr::from(self.random.random::<[u8; 4]>())
        };
        // Only those who receive at an address can prove it.
        let proved = owned && self.random.random();
        if let Some(lane) = self.first_packet(ip, proved, false)
            && self.random.random()
        {
            // Garbage is found at once.
            self.lanes.remove(&lane);
            self.admission.give_back(lane);
        }
    }

    fn serve_clients(&mut self) {
        for at in (0..self.clients.len()).rev() {
            let (ip, proved, came) = {
                let client = &self.clients[at];
                (client.ip, client.proved, client.came)
            };
            let given_up = self.now.saturating_duration_since(came) > PATIENCE;
            if given_up {
                // Nothing is promised against attackers with thousands of networks.
                assert!(!self.few, "an honest client did not get in");
                self.counts.honest_late += 1;
                self.clients.swap_remove(at);
                continue;
            }
            if self.clients[at].sends_at > self.now {
                continue;
            }
            let before = self.counts.answers;
            if self.first_packet(ip, proved, true).is_some() {
                self.clients.swap_remove(at);
            } else if self.counts.answers > before {
                self.clients[at].proved = true;
                self.clients[at].sends_at = self.now + Duration::from_millis(40);
            } else {
                let client = &mut self.clients[at];
                client.sends_at = self.now + client.pause;
                client.pause *= 2;
            }
        }
    }

    /// Handles a first packet as the endpoint does; returns the lane that begins.
    fn first_packet(&mut self, ip: IpAddr, proved: bool, honest: bool) -> Option<u64> {
        let before = self.admission.places();
        match self.admission.judge(ip, proved, self.now) {
            Verdict::Begin { displaces } => {
                if let Some(old) = displaces {
                    let old_lane = self.lanes.remove(&old).expect("one that holds a place");
                    assert!(self.now - old_lane.since >= STALE_AFTER);
                    assert_eq!(before, PLACES_MAX);
                    self.counts.displaced += 1;
                    self.admission.give_back(old);
                }
                let counter = if proved {
                    &mut self.counts.proved
                } else {
                    &mut self.counts.unproved
                };
                *counter += 1;
                let number = self.next_lane;
                self.next_lane += 1;
                let stays = if honest {
                    Duration::from_millis(self.random.random_range(1..500))
                } else {
                    HANDSHAKE_TIMEOUT
                };
                self.lanes.insert(
                    number,
                    Open {
                        honest,
                        since: self.now,
                        ends: self.now + stays,
                    },
                );
                self.admission.take(number, ip, self.now);
                Some(number)
            }
            Verdict::Retry => {
                assert!(!proved, "who has proved it is not asked again");
                self.counts.answers += 1;
                None
            }
            Verdict::Refuse(_) => None,
        }
    }

    fn check(&self) {
        assert_eq!(self.admission.places(), self.lanes.len());
        assert!(self.lanes.len() <= PLACES_MAX);
        let held: usize = self.admission.held.values().sum();
        assert_eq!(held, self.lanes.len(), "counts balance");
        assert!(self.admission.held.values().all(|held| *held > 0));
        let elapsed = self.now - self.start;
        for (begun, rates) in [
            (self.counts.unproved, &[UNPROVED][..]),
            (self.counts.proved, &[PROVED.quiet, PROVED.all]),
            (self.counts.answers, &[ANSWERS.quiet, ANSWERS.all]),
        ] {
            let at_most = |rate: &Rate| {
                let refilled = elapsed.as_nanos() / rate.interval().as_nanos();
                u128::from(rate.burst) + refilled + 1
            };
            let most: u128 = rates.iter().map(at_most).sum();
            assert!(u128::from(begun) <= most, "{begun} of {most}");
        }
    }
}

#[test]
fn honest_clients_get_in_whatever_others_send_and_nothing_leaks() {
    let mut total = Counts::default();
    for seed in 0..SEEDS {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            // Everybody leaves.
            world.now += HANDSHAKE_TIMEOUT;
            world.end_lanes();
            assert_eq!(world.admission.places(), 0);
            assert!(world.admission.held.is_empty(), "nothing leaks");
            world.counts
        });
        let counts = outcome.unwrap_or_else(|panic| {
            println!("seed {seed}");
            std::panic::resume_unwind(panic)
        });
        total.honest_in += counts.honest_in;
        total.honest_late += counts.honest_late;
        total.displaced += counts.displaced;
        total.unproved += counts.unproved;
        total.proved += counts.proved;
        total.answers += counts.answers;
    }
    println!(
        "{} honest clients in, {} not in time; begun {} unproved, {} proved; {} answers; \
         {} displaced",
        total.honest_in,
        total.honest_late,
        total.unproved,
        total.proved,
        total.answers,
        total.displaced
    );
    assert!(total.honest_in > 10_000 && total.proved > 10_000 && total.answers > 10_000);
    assert!(total.displaced > 100);
}
