//! Seeded steps, compared with the simplest thing that could be right: a sorted list.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Wake;
use std::time::Duration;

use super::*;

const SEEDS: u64 = 1_000;
const STEPS: u64 = 3_000;
const SLEEPERS_MAX: usize = 200;

/// splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % bound
    }
}

struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Records which sleeper was woken last.
struct Sleeper(u64, Arc<AtomicU64>);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.1.store(self.0, Ordering::Relaxed);
    }
}

struct World {
    random: Random,
    deadlines: Deadlines,
    now: Instant,
    woken: Arc<AtomicU64>,
    /// What must come out, in this order: deadline, number of the sleeper, its key.
    sleepers: Vec<(Instant, u64, Key)>,
    out: Vec<Key>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random(seed),
            deadlines: Deadlines::new(),
            now: Instant::now() + Duration::from_secs(3_600),
            woken: Arc::default(),
            sleepers: Vec::new(),
            out: Vec::new(),
        }
    }

    fn step(&mut self, step: u64) {
        match self.random.below(10) {
            0..=3 if self.sleepers.len() < SLEEPERS_MAX => self.begin(step + 1),
            4..=5 => self.cut_short(),
            6 => self.reuse(),
            // The clock stands, goes on, leaps ahead, and even goes back.
            7 => self.now += Duration::from_micros(self.random.below(2_000)),
            8 if self.random.below(100) == 0 => self.now += Duration::from_secs(3_600),
            8 if self.random.below(100) == 0 => self.now -= Duration::from_secs(1),
            _ => self.wake_due(),
        }
        assert_eq!(
            self.deadlines.next(),
            self.sleepers.first().map(|(at, ..)| *at)
        );
        assert_eq!(self.deadlines.heap.len(), self.sleepers.len());
        let known = self.deadlines.free.len() + self.out.len() + self.sleepers.len();
        assert_eq!(self.deadlines.entries.len(), known, "no entry is lost");
        assert!(known <= SLEEPERS_MAX + self.out.len() + self.deadlines.free.len());
    }

    fn waker(&self, number: u64) -> Waker {
        Arc::new(Sleeper(number, Arc::clone(&self.woken))).into()
    }

    fn begin(&mut self, number: u64) {
        // There are few different deadlines, so that many are equal; some have passed already.
        let at = self.now + Duration::from_millis(self.random.below(40)) - Duration::from_millis(5);
        let key = self.deadlines.insert(at, self.waker(number));
        let place = self.sleepers.partition_point(|(other, ..)| *other <= at);
        self.sleepers.insert(place, (at, number, key));
    }

    fn cut_short(&mut self) {
        if self.sleepers.is_empty() {
            return;
        }
        let index = self.random.below(self.sleepers.len() as u64) as usize;
        let (_, _, key) = self.sleepers.remove(index);
        assert!(!self.deadlines.is_out(key));
        assert!(self.deadlines.remove(key).is_some(), "who was to be woken");
    }

    /// Sleepers that were woken start anew.
    fn reuse(&mut self) {
        for key in self.out.drain(..) {
            assert!(self.deadlines.is_out(key));
            assert!(self.deadlines.remove(key).is_none(), "it was woken already");
        }
    }

    fn wake_due(&mut self) {
        while let Some(waker) = self.deadlines.pop_due(self.now) {
            let (at, number, key) = self.sleepers.remove(0);
            assert!(at <= self.now, "never early");
            waker.wake();
            assert_eq!(self.woken.load(Ordering::Relaxed), number, "in this order");
            self.out.push(key);
        }
        let next = self.sleepers.first();
        assert!(
            next.is_none_or(|(at, ..)| *at > self.now),
            "none is forgotten"
        );
    }
}

#[test]
fn whatever_sleeps_is_woken_once_in_order_and_never_early() {
    for seed in 0..SEEDS {
        let _seed = PrintSeed(seed);
        let mut world = World::new(seed);
        for step in 0..STEPS {
            world.step(step);
        }
    }
}

#[test]
fn the_last_waker_is_the_one_that_is_woken() {
    let mut world = World::new(0);
    let key = world.deadlines.insert(world.now, world.waker(1));
    let other = world.waker(2);
    assert!(world.deadlines.set_waker(key, &other).is_some());
    assert!(
        world.deadlines.set_waker(key, &other).is_none(),
        "the same one"
    );
    let due = world.deadlines.pop_due(world.now);
    due.expect("due").wake();
    assert_eq!(world.woken.load(Ordering::Relaxed), 2);
}
