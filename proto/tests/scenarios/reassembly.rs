//! Packets from their fragments: what comes back, what is dropped, what expires.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use qmux_proto::datagram::{UDP_PAYLOAD_MAX, split};
use qmux_proto::reassembly::{
    BYTES_MAX_MIN, Counters, DropReason, Limits, PACKET_WINDOW, Reassembler,
};

use crate::random::Random;

const LIMITS: Limits = Limits {
    flows_max: 4,
    packets_max: 16,
    packets_per_flow_max: 8,
    bytes_max: 1 << 20,
    age_max: Duration::from_secs(1),
};

const PART: &[u8] = &[7; 100];

/// A reassembler and a time that the test moves.
struct Bench {
    reassembler: Reassembler,
    now: Instant,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self {
            reassembler: Reassembler::new(limits),
            now: Instant::now(),
        }
    }

    fn push(
        &mut self,
        (flow_id, packet_id): (u64, u64),
        (index, count): (u8, u8),
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        self.reassembler
            .push(self.now, flow_id, packet_id, index, count, payload)
            .map(|packet| packet.map(<[u8]>::to_vec))
    }

    fn counters(&self) -> Counters {
        *self.reassembler.counters()
    }
}

fn sent_packet(flow_id: u64, packet_id: u64, length: usize) -> Vec<u8> {
    Random::new(flow_id << 32 ^ packet_id).bytes(length)
}

proptest! {
    #[test]
    fn exactly_the_complete_packets_come_back_once_each(
        packets in vec((0..3u64, 1..12_000usize, 300..1_400usize), 1..20),
        lossy_percent in 0..30u64,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut fragments = Vec::new();
        let mut complete = HashMap::new();
        for (packet_id, &(flow_id, length, room)) in packets.iter().enumerate() {
            let key = (flow_id, packet_id as u64);
            let packet = sent_packet(key.0, key.1, length);
            let loses = random.percent(lossy_percent);
            let parts: Vec<_> = split(length, room).expect("it fits").collect();
            let lost = loses.then(|| random.below(parts.len() as u64) as u8);
            for (index, count, range) in parts {
                let copies = if Some(index) == lost { 0 } else { 1 + u64::from(random.percent(20)) };
                for _ in 0..copies {
                    fragments.push((key, (index, count), packet[range.clone()].to_vec()));
                }
            }
            if !loses {
                complete.insert(key, packet);
            }
        }
        random.shuffle(&mut fragments);

        let limits = Limits { packets_max: 64, packets_per_flow_max: 64, bytes_max: 64 << 16, ..LIMITS };
        let mut bench = Bench::new(limits);
        let lossy = packets.len() - complete.len();
        for (key, place, payload) in fragments {
            match bench.push(key, place, &payload) {
                Ok(Some(packet)) => prop_assert_eq!(complete.remove(&key), Some(packet)),
                Ok(None) | Err(DropReason::Duplicate | DropReason::Late) => {}
                Err(reason) => prop_assert!(false, "{}", reason),
            }
        }
        prop_assert!(complete.is_empty(), "{} did not come back", complete.len());
        prop_assert!(bench.reassembler.packets() <= lossy);
        prop_assert_eq!(bench.counters().evicted, 0);
    }
}

#[test]
fn the_largest_packet_comes_back_in_either_order() {
    let packet = sent_packet(1, 1, UDP_PAYLOAD_MAX);
    let parts: Vec<_> = split(packet.len(), 1_100).expect("it fits").collect();
    let reversed: Vec<_> = parts.iter().rev().cloned().collect();
    // The smallest reassembler of all must still do it.
    let mut bench = Bench::new(Limits {
        bytes_max: BYTES_MAX_MIN,
        ..LIMITS
    });
    for (packet_id, parts) in [parts, reversed].into_iter().enumerate() {
        let mut came_back = None;
        for (index, count, range) in parts {
            let key = (1, packet_id as u64);
            came_back = bench
                .push(key, (index, count), &packet[range])
                .expect("it is used");
        }
        assert!(came_back.is_some_and(|came_back| came_back == packet));
    }
    assert_eq!(
        bench.counters(),
        Counters {
            completed: 2,
            ..Counters::default()
        }
    );
}

#[test]
fn a_last_fragment_that_comes_first_finds_its_place_in_a_larger_buffer() {
    // The tail of 1 byte asks for the smallest buffer, the bodies for a larger one.
    let mut bench = Bench::new(LIMITS);
    assert_eq!(bench.push((1, 1), (2, 3), b"z"), Ok(None));
    let small = bench.reassembler.allocated_bytes();
    assert_eq!(bench.push((1, 1), (1, 3), &[b'b'; 3_000]), Ok(None));
    assert!(bench.reassembler.allocated_bytes() > small);
    let expected = [[b'a'; 3_000].as_slice(), &[b'b'; 3_000], b"z"].concat();
    assert_eq!(
        bench.push((1, 1), (0, 3), &[b'a'; 3_000]),
        Ok(Some(expected))
    );
}

#[test]
fn a_buffer_that_became_too_small_is_used_again() {
    let mut bench = Bench::new(LIMITS);
    let mut allocated = Vec::new();
    for packet_id in 0..100 {
        assert_eq!(bench.push((1, packet_id), (1, 2), b"z"), Ok(None));
        let outcome = bench.push((1, packet_id), (0, 2), &[b'a'; 30_000]);
        assert_eq!(
            outcome.map(|packet| packet.map(|packet| packet.len())),
            Ok(Some(30_001))
        );
        allocated.push(bench.reassembler.allocated_bytes());
    }
    assert_eq!(allocated, [(2 + 64) * 1024; 100]);
}

#[test]
fn a_packet_of_one_fragment_comes_back_at_once() {
    let mut bench = Bench::new(LIMITS);
    assert_eq!(bench.push((1, 1), (0, 1), PART), Ok(Some(PART.to_vec())));
    assert_eq!(bench.push((1, 2), (0, 1), b""), Ok(Some(Vec::new())));
    assert_eq!(bench.reassembler.packets(), 0);
}

#[test]
fn a_buffer_that_is_used_again_shows_nothing_of_its_last_packet() {
    let mut bench = Bench::new(LIMITS);
    assert_eq!(bench.push((1, 1), (0, 2), &[b'x'; 900]), Ok(None));
    assert!(
        bench
            .push((1, 1), (1, 2), &[b'x'; 900])
            .is_ok_and(|packet| packet.is_some())
    );
    assert_eq!(bench.push((2, 1), (1, 2), b"2"), Ok(None));
    assert_eq!(bench.push((2, 1), (0, 2), b"11"), Ok(Some(b"112".to_vec())));
}

#[test]
fn a_duplicate_is_dropped_and_the_packet_goes_on() {
    let mut bench = Bench::new(LIMITS);
    assert_eq!(bench.push((1, 1), (0, 2), b"aa"), Ok(None));
    assert_eq!(
        bench.push((1, 1), (0, 2), b"bb"),
        Err(DropReason::Duplicate)
    );
    assert_eq!(bench.push((1, 1), (1, 2), b"c"), Ok(Some(b"aac".to_vec())));
    assert_eq!(
        bench.counters(),
        Counters {
            completed: 1,
            duplicates: 1,
            ..Counters::default()
        }
    );
}

#[test]
fn a_packet_never_comes_back_twice() {
    let mut bench = Bench::new(LIMITS);
    assert_eq!(bench.push((1, 5), (0, 1), PART), Ok(Some(PART.to_vec())));
    assert_eq!(bench.push((1, 5), (0, 1), PART), Err(DropReason::Late));
    // Another flow has packet ids of its own; an earlier packet may still come.
    assert!(
        bench
            .push((2, 5), (0, 1), PART)
            .is_ok_and(|packet| packet.is_some())
    );
    assert!(
        bench
            .push((1, 4), (0, 1), PART)
            .is_ok_and(|packet| packet.is_some())
    );
    assert_eq!(
        bench.counters(),
        Counters {
            completed: 3,
            late: 1,
            ..Counters::default()
        }
    );
}

#[test]
fn a_packet_far_behind_the_others_is_late() {
    let mut bench = Bench::new(LIMITS);
    let highest = 1_000;
    assert!(bench.push((1, highest), (0, 1), PART).is_ok());
    assert_eq!(
        bench.push((1, highest - PACKET_WINDOW), (0, 1), PART),
        Err(DropReason::Late)
    );
    assert!(
        bench
            .push((1, highest - PACKET_WINDOW + 1), (0, 1), PART)
            .is_ok()
    );
    // A leap ahead forgets the single packets and remembers that they are over.
    assert!(bench.push((1, u64::MAX), (0, 1), PART).is_ok());
    assert_eq!(
        bench.push((1, highest + 1), (0, 1), PART),
        Err(DropReason::Late)
    );
}

#[test]
fn fragments_that_contradict_each_other_give_the_packet_up() {
    let cases = [
        (
            "another count",
            (0, 3, 100),
            (1, 4, 100),
            DropReason::Inconsistent,
        ),
        (
            "another length",
            (0, 3, 100),
            (1, 3, 99),
            DropReason::Inconsistent,
        ),
        (
            "a longer tail",
            (0, 3, 100),
            (2, 3, 101),
            DropReason::Inconsistent,
        ),
        (
            "a body shorter than the tail",
            (2, 3, 101),
            (0, 3, 100),
            DropReason::Inconsistent,
        ),
        (
            "too large with this body",
            (2, 3, 1),
            (0, 3, 40_000),
            DropReason::TooLarge,
        ),
    ];
    for (case, first, second, reason) in cases {
        let mut bench = Bench::new(LIMITS);
        let mut push =
            |(index, count, length)| bench.push((1, 1), (index, count), &vec![0; length]);
        assert_eq!(push(first), Ok(None), "{case}");
        assert_eq!(push(second), Err(reason), "{case}");
        assert_eq!(push(first), Err(DropReason::Late), "{case}");
        let expected = Counters {
            broken: 1,
            refused: 1,
            late: 1,
            ..Counters::default()
        };
        assert_eq!(bench.counters(), expected, "{case}");
        assert_eq!(bench.reassembler.packets(), 0, "{case}");
    }
}

#[test]
fn a_fragment_that_no_packet_can_have_is_refused() {
    let mut bench = Bench::new(LIMITS);
    for (index, count, length) in [(0, 0, 1), (2, 2, 1), (0, 65, 1), (0, 2, 0), (0, 1, 65_508)] {
        assert_eq!(
            bench.push((1, 1), (index, count), &vec![0; length]),
            Err(DropReason::Invalid),
            "{index} of {count} with {length} bytes"
        );
    }
    assert_eq!(
        bench.counters(),
        Counters {
            refused: 5,
            ..Counters::default()
        }
    );
    assert_eq!(
        (
            bench.reassembler.flows(),
            bench.reassembler.allocated_bytes()
        ),
        (0, 0)
    );
}

#[test]
fn a_packet_whose_fragments_take_too_long_expires() {
    let mut bench = Bench::new(LIMITS);
    let start = bench.now;
    assert_eq!(bench.reassembler.next_expiry(), None);
    assert_eq!(bench.push((1, 1), (0, 2), PART), Ok(None));
    bench.now = start + Duration::from_millis(600);
    assert_eq!(bench.push((1, 2), (0, 2), PART), Ok(None));
    assert_eq!(
        bench.reassembler.next_expiry(),
        Some(start + Duration::from_secs(1))
    );

    assert_eq!(
        bench.reassembler.expire(start + Duration::from_millis(999)),
        0
    );
    assert_eq!(bench.reassembler.expire(start + Duration::from_secs(1)), 1);
    assert_eq!(
        bench.reassembler.next_expiry(),
        Some(start + Duration::from_millis(1_600))
    );
    assert_eq!(bench.push((1, 1), (1, 2), PART), Err(DropReason::Late));

    // Without a call of expire, a fragment that comes too late does not complete its packet.
    bench.now = start + Duration::from_millis(1_600);
    assert_eq!(bench.push((1, 2), (1, 2), PART), Err(DropReason::Late));
    assert_eq!(
        bench.counters(),
        Counters {
            expired: 2,
            late: 2,
            ..Counters::default()
        }
    );
}

#[test]
fn a_flow_that_has_ended_leaves_nothing_behind() {
    let mut bench = Bench::new(LIMITS);
    for packet_id in 0..3 {
        assert_eq!(bench.push((1, packet_id), (0, 2), PART), Ok(None));
    }
    assert_eq!(bench.push((2, 0), (0, 2), b"aa"), Ok(None));
    bench.reassembler.forget_flow(1);
    bench.reassembler.forget_flow(99);
    assert_eq!(
        (bench.reassembler.flows(), bench.reassembler.packets()),
        (1, 1)
    );
    assert_eq!(
        bench.counters(),
        Counters {
            forgotten: 3,
            ..Counters::default()
        }
    );
    assert_eq!(bench.push((2, 0), (1, 2), b"b"), Ok(Some(b"aab".to_vec())));
    // A new flow with the old id starts anew.
    assert_eq!(bench.push((1, 0), (0, 1), PART), Ok(Some(PART.to_vec())));
}

#[test]
fn a_flow_with_too_many_packets_loses_its_own_oldest_one() {
    let mut bench = Bench::new(Limits {
        packets_per_flow_max: 2,
        ..LIMITS
    });
    assert_eq!(bench.push((2, 1), (0, 2), b"aa"), Ok(None));
    for packet_id in 1..=3 {
        assert_eq!(bench.push((1, packet_id), (0, 2), b"aa"), Ok(None));
    }
    assert_eq!(bench.push((1, 1), (1, 2), b"b"), Err(DropReason::Late));
    for key in [(1, 2), (1, 3), (2, 1)] {
        assert_eq!(
            bench.push(key, (1, 2), b"b"),
            Ok(Some(b"aab".to_vec())),
            "{key:?}"
        );
    }
    assert_eq!(bench.counters().evicted, 1);
}

#[test]
fn too_many_packets_cost_the_oldest_one_of_all_when_the_flow_has_none() {
    let mut bench = Bench::new(Limits {
        packets_max: 2,
        ..LIMITS
    });
    for flow_id in 1..=3 {
        assert_eq!(bench.push((flow_id, 1), (0, 2), b"aa"), Ok(None));
    }
    assert_eq!(bench.push((1, 1), (1, 2), b"b"), Err(DropReason::Late));
    assert!(
        bench
            .push((2, 1), (1, 2), b"b")
            .is_ok_and(|packet| packet.is_some())
    );
    assert!(
        bench
            .push((3, 1), (1, 2), b"b")
            .is_ok_and(|packet| packet.is_some())
    );
    assert_eq!(bench.counters().evicted, 1);
}

#[test]
fn too_many_flows_cost_the_one_that_was_silent_for_longest() {
    let mut bench = Bench::new(Limits {
        flows_max: 2,
        ..LIMITS
    });
    assert_eq!(bench.push((1, 1), (0, 2), b"aa"), Ok(None));
    assert_eq!(bench.push((2, 1), (0, 2), b"aa"), Ok(None));
    assert_eq!(bench.push((1, 2), (0, 2), b"aa"), Ok(None));
    assert_eq!(bench.push((3, 1), (0, 2), b"aa"), Ok(None));
    assert_eq!(
        (bench.reassembler.flows(), bench.reassembler.packets()),
        (2, 3)
    );
    assert_eq!(bench.counters().evicted, 1);
    assert!(
        bench
            .push((1, 1), (1, 2), b"b")
            .is_ok_and(|packet| packet.is_some())
    );
}

#[test]
fn too_many_bytes_cost_the_oldest_packet_of_the_same_flow_first() {
    // Each packet takes the largest buffer: four fit.
    let mut bench = Bench::new(Limits {
        bytes_max: 2 * BYTES_MAX_MIN,
        ..LIMITS
    });
    let half = vec![1; 30_000];
    for key in [(1, 1), (2, 1), (2, 2), (3, 1)] {
        assert_eq!(bench.push(key, (0, 2), &half), Ok(None));
    }
    assert_eq!(bench.push((2, 3), (0, 2), &half), Ok(None));
    assert_eq!(bench.push((4, 1), (0, 2), &half), Ok(None));
    assert_eq!(bench.counters().evicted, 2);
    for (key, lost) in [
        ((1, 1), true),
        ((2, 1), true),
        ((2, 2), false),
        ((2, 3), false),
        ((3, 1), false),
        ((4, 1), false),
    ] {
        assert_eq!(
            bench.push(key, (1, 2), &half) == Err(DropReason::Late),
            lost,
            "{key:?}"
        );
    }
    assert_eq!(bench.counters().completed, 4);
}

#[test]
fn a_steady_stream_of_packets_uses_the_same_buffers_again() {
    let mut bench = Bench::new(LIMITS);
    let packet = sent_packet(1, 1, 9_000);
    let mut places = std::collections::HashSet::new();
    for packet_id in 0..1_000 {
        for (index, count, range) in split(packet.len(), 1_100).expect("it fits") {
            let part = &packet[range];
            let outcome = bench
                .reassembler
                .push(bench.now, 1, packet_id, index, count, part);
            if let Some(packet) = outcome.expect("it is used") {
                places.insert(packet.as_ptr());
            }
        }
    }
    assert_eq!(bench.counters().completed, 1_000);
    assert_eq!(places.len(), 1);
    assert_eq!(bench.reassembler.allocated_bytes(), 16 * 1024);
}

#[test]
#[should_panic(expected = "bytes_max is 1000")]
fn limits_that_cannot_hold_a_packet_are_a_fault_of_the_program() {
    Reassembler::new(Limits {
        bytes_max: 1_000,
        ..LIMITS
    });
}
