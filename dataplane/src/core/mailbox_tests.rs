//! Seeded steps of cores that send and one that takes, with what must always hold; and the same
//! with real threads.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::core::time::timeout;
use crate::sys::wake::WakeReceiver;

const SEEDS: u64 = 1_000;
const STEPS: usize = 3_000;

/// The queues are short, so that they are full now and then.
fn few_places(kind: Kind) -> usize {
    [3, 40, 7, 150][kind as usize]
}

/// A message of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Letter(Kind);

impl Mail for Letter {
    fn kind(&self) -> Kind {
        self.0
    }
}

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

/// One core's mailbox, with what should be in it.
struct World {
    random: Random,
    queues: Queues<(Kind, u64)>,
    expected: [VecDeque<u64>; Kind::ALL.len()],
    sent: u64,
    dropped: u64,
    handled: u64,
    /// Whether a wake-up is on its way to the core.
    woken: bool,
    /// Whether the core has left some mail, and comes back for it by itself.
    comes_back: bool,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Random(seed),
            queues: Queues::new(few_places),
            expected: Default::default(),
            sent: 0,
            dropped: 0,
            handled: 0,
            woken: false,
            comes_back: false,
        }
    }

    fn step(&mut self) {
        match self.random.below(8) {
            // Datagrams come in floods, everything else now and then.
            0..=2 => {
                let flood = self.random.below(30) == 0;
                let most = if flood { 400 } else { 8 };
                for _ in 0..self.random.below(most) {
                    self.send(Kind::Datagram);
                }
            }
            3 => {
                for _ in 0..self.random.below(20) {
                    self.send(Kind::Visitor);
                }
            }
            4 => self.send(Kind::Packet),
            5 => self.send(Kind::Control),
            _ if self.woken || self.comes_back => self.take_turn(),
            _ => {}
        }
        let waiting: usize = self.expected.iter().map(VecDeque::len).sum();
        assert_eq!(self.queues.is_empty(), waiting == 0);
        assert!(
            waiting == 0 || self.woken || self.comes_back,
            "mail that nobody comes for"
        );
        assert_eq!(self.sent, self.handled + self.dropped + waiting as u64);
    }

    fn send(&mut self, kind: Kind) {
        self.sent += 1;
        let expected = &mut self.expected[kind as usize];
        if self.queues.of(kind).push((kind, self.sent)).is_ok() {
            expected.push_back(self.sent);
            self.woken = true;
        } else {
            assert_eq!(expected.len(), few_places(kind), "there was a place");
            self.dropped += 1;
        }
    }

    fn take_turn(&mut self) {
        self.woken = false;
        let stops_at = self.random.below(400);
        let queues = std::mem::replace(&mut self.queues, Queues::new(|_| 1));
        let mut turn = Turn {
            queues: &queues,
            taken: Default::default(),
        };
        let mut handled = 0;
        // The core's share of time may be used up before that.
        while handled < stops_at
            && let Some((kind, number)) = turn.next()
        {
            handled += 1;
            let expected = self.expected[kind as usize].pop_front();
            assert_eq!(
                expected,
                Some(number),
                "{kind:?} in the order in which it was sent"
            );
            for earlier in &Kind::ALL[..kind as usize] {
                let waits = !self.expected[*earlier as usize].is_empty();
                let has_had_its_share = turn.taken[*earlier as usize] >= earlier.per_turn();
                assert!(!waits || has_had_its_share, "{kind:?} before {earlier:?}");
            }
        }
        assert!(handled <= Kind::ALL.map(Kind::per_turn).iter().sum::<usize>() as u64);
        self.handled += handled;
        self.comes_back = !queues.is_empty();
        self.queues = queues;
    }
}

#[test]
fn whatever_floods_a_mailbox_takes_no_place_and_no_turn_of_the_other_kinds() {
    for seed in 0..SEEDS {
        let _seed = PrintSeed(seed);
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        assert!(world.handled > 0 && world.dropped > 0);
    }
}

#[test]
fn a_mailbox_full_of_packets_takes_control_and_hands_it_out_first() {
    let (mailbox, _wake) = Mailbox::new().expect("a socket pair");
    while mailbox.send(Letter(Kind::Packet)).is_ok() {}
    assert!(mailbox.send(Letter(Kind::Control)).is_ok());
    assert!(mailbox.has_no_visitor());
    let turn: Vec<Letter> = mailbox.turn().collect();
    assert_eq!(turn[0], Letter(Kind::Control));
    assert_eq!(turn.len(), 1 + Kind::Packet.per_turn());
    assert!(!mailbox.is_empty(), "the others wait for the next turn");
}

#[test]
fn a_core_that_goes_to_sleep_after_each_turn_misses_no_wake_up() {
    const SENDERS: u64 = 3;
    const EACH: u64 = 20_000;
    let (mailbox, wake) = Mailbox::new().expect("a socket pair");
    let mailbox = Arc::new(mailbox);
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let mailbox = Arc::clone(&mailbox);
            std::thread::spawn(move || {
                for _ in 0..EACH {
                    while mailbox.send(Letter(Kind::Control)).is_err() {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let mut runtime = monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
        .enable_timer()
        .build()
        .expect("a runtime");
    let taken = runtime.block_on(async {
        let wake = WakeReceiver::new(wake).expect("adopted");
        let mut taken = 0;
        while taken < SENDERS * EACH {
            // A wake-up that is lost would be waited for in vain.
            let woken = timeout(Duration::from_secs(60), wake.wait()).await;
            assert!(matches!(woken, Ok(Ok(()))), "{taken} taken: {woken:?}");
            mailbox.rearm();
            while !mailbox.is_empty() {
                taken += mailbox.turn().count() as u64;
            }
        }
        taken
    });
    assert_eq!(taken, SENDERS * EACH);
    for sender in senders {
        sender.join().expect("no panic");
    }
}
