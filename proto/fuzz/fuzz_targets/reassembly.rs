//! Reassembly: whatever fragments come, memory stays within the limits and every packet that comes
//! back is made of the fragments that were sent for it.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use qmux_proto::datagram::UDP_PAYLOAD_MAX;
use qmux_proto::reassembly::{BYTES_MAX_MIN, Limits, Reassembler};

const LIMITS: Limits = Limits {
    flows_max: 3,
    packets_max: 6,
    packets_per_flow_max: 3,
    bytes_max: BYTES_MAX_MIN,
    age_max: Duration::from_millis(100),
};

/// One step takes this many bytes of the input: flow, packet, index, count, length, pause.
const STEP_BYTES: usize = 7;

fuzz_target!(|bytes: &[u8]| {
    let mut reassembler = Reassembler::new(LIMITS);
    let mut now = Instant::now();
    for step in bytes.chunks_exact(STEP_BYTES) {
        let &[
            flow,
            packet,
            index,
            count,
            length_high,
            length_low,
            pause_ms,
        ] = step
        else {
            unreachable!("chunks are exact");
        };
        now += Duration::from_millis(pause_ms.into());
        let (flow_id, packet_id) = (u64::from(flow % 8), u64::from(packet));
        if flow == u8::MAX {
            reassembler.forget_flow(packet_id % 8);
            continue;
        }
        // The payload tells its packet and its place, so that a mix-up shows.
        let length = usize::from(u16::from_be_bytes([length_high, length_low]));
        let mark = (flow % 8) ^ packet.rotate_left(3);
        let mut payload = vec![mark; length];
        if let Some(first) = payload.first_mut() {
            *first = index;
        }
        let pushed = reassembler.push(now, flow_id, packet_id, index, count, &payload);
        if let Ok(Some(whole)) = pushed {
            check(whole, count, mark);
        }
        assert!(reassembler.flows() <= LIMITS.flows_max);
        assert!(reassembler.packets() <= LIMITS.packets_max);
        assert!(reassembler.allocated_bytes() <= LIMITS.bytes_max);
    }
    reassembler.expire(now + LIMITS.age_max);
    assert_eq!(
        (reassembler.packets(), reassembler.next_expiry()),
        (0, None)
    );
});

/// Cuts the packet as a sender would have: each part starts with its index, then come marks.
fn check(whole: &[u8], count: u8, mark: u8) {
    assert!(whole.len() <= UDP_PAYLOAD_MAX);
    if whole.is_empty() {
        assert_eq!(count, 1, "only a packet of one part can be empty");
        return;
    }
    let length = part_length(whole, count, mark).expect("the parts are in their places");
    assert_eq!(whole.chunks(length).len(), usize::from(count));
}

/// The length of all parts but the last: the one with which every part starts with its index.
fn part_length(whole: &[u8], count: u8, mark: u8) -> Option<usize> {
    let count = usize::from(count);
    let shortest = whole.len().div_ceil(count).max(1);
    let longest = match count {
        1 => shortest,
        _ => whole.len().saturating_sub(1) / (count - 1),
    };
    // The second part starts with its index, too. Looking there first spares most lengths a look at
    // everything, which took seconds.
    let may_be = |length: &usize| count == 1 || whole.get(*length) == Some(&1);
    (shortest..=longest).filter(may_be).find(|&length| {
        whole.chunks(length).enumerate().all(|(index, part)| {
            let (first, marks) = part.split_first().unwrap_or((&0, &[]));
            usize::from(*first) == index && marks.iter().all(|&byte| byte == mark)
        })
    })
}
