//! A peer that sends whatever hurts, beside flows that behave: memory stays bounded, and what comes
//! back is what was sent. Every run repeats by its seed:
//! `QMUX_SEED=7 cargo test --workspace hostile`.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use qmux_proto::datagram::{FRAGMENTS_MAX, UDP_PAYLOAD_MAX, split};
use qmux_proto::reassembly::{BYTES_MAX_MIN, Counters, DropReason, Limits, Reassembler};

use crate::random::Random;

const STEPS: usize = 20_000;
const SEEDS: u64 = 8;

/// Flows below this id behave.
const HONEST_FLOWS: u64 = 3;

/// Flow ids are below this.
const ALL_FLOWS: u64 = 53;

struct Simulation {
    random: Random,
    limits: Limits,
    reassembler: Reassembler,
    now: Instant,
    /// Fragments of honest packets that are still under way.
    under_way: Vec<(u64, u64, u8, u8, Vec<u8>)>,
    /// Every honest packet, to compare with what comes back.
    sent: HashMap<(u64, u64), Vec<u8>>,
    /// Honest packets that have come back.
    returned: HashSet<(u64, u64)>,
    /// How many honest packets came back.
    honest: u64,
    packet_ids: [u64; HONEST_FLOWS as usize],
    expected: Counters,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let limits = Limits {
            // Half of the runs remember every flow, half forget some of them.
            flows_max: if seed.is_multiple_of(2) {
                ALL_FLOWS
            } else {
                4 + random.below(20)
            } as usize,
            packets_max: 4 + random.below(60) as usize,
            packets_per_flow_max: 1 + random.below(8) as usize,
            bytes_max: BYTES_MAX_MIN + random.below(1 << 20) as usize,
            age_max: Duration::from_millis(200),
        };
        Self {
            random,
            limits,
            reassembler: Reassembler::new(limits),
            now: Instant::now(),
            under_way: Vec::new(),
            sent: HashMap::new(),
            packet_ids: [0; HONEST_FLOWS as usize],
            returned: HashSet::new(),
            honest: 0,
            expected: Counters::default(),
        }
    }

    fn step(&mut self) {
        let pause_us = if self.random.percent(1) {
            100_000
        } else {
            2_000
        };
        self.now += Duration::from_micros(self.random.below(pause_us));
        match self.random.below(100) {
            0..7 => self.send_honest_packet(),
            7..60 => self.deliver_honest_fragment(),
            60..97 => self.deliver_hostile_fragment(),
            97..99 => {
                self.reassembler.expire(self.now);
            }
            _ => {
                let flow_id = self.random.below(ALL_FLOWS);
                self.reassembler.forget_flow(flow_id);
                // What is forgotten may come back once more.
                self.returned.retain(|&(returned, _)| returned != flow_id);
            }
        }
        self.check_bounds();
    }

    fn send_honest_packet(&mut self) {
        let flow_id = self.random.below(HONEST_FLOWS);
        let packet_id = self.packet_ids[flow_id as usize];
        self.packet_ids[flow_id as usize] += 1;
        let length = 1 + self.random.below(9_000) as usize;
        let room = 200 + self.random.below(1_200) as usize;
        let packet = self.random.bytes(length);
        for (index, count, range) in split(length, room).expect("it fits") {
            let fragment = (flow_id, packet_id, index, count, packet[range].to_vec());
            self.under_way.push(fragment);
        }
        self.sent.insert((flow_id, packet_id), packet);
    }

    fn deliver_honest_fragment(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let reordered = self.under_way.len().min(12) as u64;
        let index = self.random.below(reordered) as usize;
        let (flow_id, packet_id, index, count, payload) = if self.random.percent(5) {
            self.under_way[index].clone()
        } else {
            self.under_way.remove(index)
        };
        if !self.random.percent(3) {
            self.push(flow_id, packet_id, index, count, &payload);
        }
    }

    fn deliver_hostile_fragment(&mut self) {
        let flow_id = HONEST_FLOWS + self.random.below(ALL_FLOWS - HONEST_FLOWS);
        let packet_id = match self.random.below(3) {
            0 => self.random.next(),
            _ => self.random.below(300),
        };
        let (index, count) = match self.random.below(4) {
            0 => (63, 64),
            1 => (self.random.next() as u8, self.random.next() as u8),
            _ => {
                let count = 1 + self.random.below(FRAGMENTS_MAX as u64);
                (self.random.below(count) as u8, count as u8)
            }
        };
        let length = match self.random.below(4) {
            0 => self.random.below(2),
            1 => self.random.below(UDP_PAYLOAD_MAX as u64 + 10),
            2 => UDP_PAYLOAD_MAX as u64 / u64::from(count.max(1)),
            _ => 500,
        };
        self.push(
            flow_id,
            packet_id,
            index,
            count,
            &vec![0xbb; length as usize],
        );
    }

    fn push(&mut self, flow_id: u64, packet_id: u64, index: u8, count: u8, payload: &[u8]) {
        let key = (flow_id, packet_id);
        match self
            .reassembler
            .push(self.now, flow_id, packet_id, index, count, payload)
        {
            Ok(Some(packet)) => {
                self.expected.completed += 1;
                assert!(packet.len() <= UDP_PAYLOAD_MAX);
                if flow_id < HONEST_FLOWS {
                    assert!(packet == self.sent[&key], "{key:?} was changed");
                    self.honest += 1;
                    let once = self.returned.insert(key);
                    let remembered = self.limits.flows_max >= ALL_FLOWS as usize;
                    assert!(once || !remembered, "{key:?} came back twice");
                } else {
                    assert!(packet.iter().all(|&byte| byte == 0xbb), "flows were mixed");
                }
            }
            Ok(None) => {}
            Err(DropReason::Duplicate) => self.expected.duplicates += 1,
            Err(DropReason::Late) => self.expected.late += 1,
            Err(DropReason::Invalid | DropReason::Inconsistent | DropReason::TooLarge) => {
                self.expected.refused += 1;
            }
        }
    }

    fn check_bounds(&self) {
        let Limits {
            flows_max,
            packets_max,
            bytes_max,
            ..
        } = self.limits;
        assert!(self.reassembler.flows() <= flows_max);
        assert!(self.reassembler.packets() <= packets_max);
        assert!(self.reassembler.allocated_bytes() <= bytes_max);
        assert_eq!(
            self.reassembler.next_expiry().is_some(),
            self.reassembler.packets() > 0
        );
    }

    /// Every fragment and every packet is accounted for.
    fn check_counters(&self) {
        let counters = self.reassembler.counters();
        let Counters {
            completed,
            duplicates,
            late,
            refused,
            ..
        } = *counters;
        assert_eq!(
            (completed, duplicates, late, refused),
            (
                self.expected.completed,
                self.expected.duplicates,
                self.expected.late,
                self.expected.refused
            )
        );
        assert!(
            self.honest > 100,
            "only {} honest packets came back",
            self.honest
        );
        for (what, count) in [
            ("completed", completed),
            ("duplicates", duplicates),
            ("late", late),
            ("refused", refused),
            ("expired", counters.expired),
            ("evicted", counters.evicted),
            ("forgotten", counters.forgotten),
            ("broken", counters.broken),
        ] {
            assert!(count > 0, "the simulation never saw {what}");
        }
    }
}

#[test]
fn memory_stays_bounded_and_honest_packets_stay_whole() {
    let seeds = match std::env::var("QMUX_SEED") {
        Ok(seed) => vec![seed.parse().expect("QMUX_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        println!("QMUX_SEED={seed}");
        let mut simulation = Simulation::new(seed);
        for _ in 0..STEPS {
            simulation.step();
        }
        simulation.check_counters();
    }
}

#[test]
fn tiny_last_fragments_of_large_packets_reserve_next_to_nothing() {
    let limits = Limits {
        flows_max: 10_000,
        packets_max: 10_000,
        packets_per_flow_max: 10_000,
        bytes_max: 1 << 20,
        age_max: Duration::from_secs(60),
    };
    let mut reassembler = Reassembler::new(limits);
    let now = Instant::now();
    for packet_id in 0..10_000 {
        assert_eq!(reassembler.push(now, 1, packet_id, 63, 64, b"x"), Ok(None));
    }
    assert_eq!(reassembler.allocated_bytes(), 1 << 20);
    assert_eq!(reassembler.packets(), (1 << 20) / 2_048);
}
