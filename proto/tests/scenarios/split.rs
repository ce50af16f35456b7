//! The cutting of packets into fragments.

use proptest::prelude::*;
use qmux_proto::datagram::{
    DATAGRAM_BYTES_MIN, FIRST_FRAGMENT_HEADER_BYTES_MAX, FRAGMENTS_MAX, UDP_PAYLOAD_MAX, split,
};

proptest! {
    #[test]
    fn fragments_cover_the_packet_in_order_and_are_as_few_as_can_be(
        payload_len in 1..=UDP_PAYLOAD_MAX,
        room in 1..=2_000usize,
    ) {
        let Some(fragments) = split(payload_len, room) else {
            prop_assert!(payload_len > room * FRAGMENTS_MAX);
            return Ok(());
        };
        let fragments: Vec<_> = fragments.collect();
        let count = fragments.len();
        prop_assert_eq!(count, payload_len.div_ceil(room));
        let first_length = fragments[0].2.len();
        let mut end = 0;
        for (n, (index, of, range)) in fragments.into_iter().enumerate() {
            prop_assert_eq!((usize::from(index), usize::from(of)), (n, count));
            prop_assert_eq!(range.start, end);
            prop_assert!(!range.is_empty() && range.len() <= room);
            if n + 1 < count {
                prop_assert_eq!(range.len(), first_length);
            } else {
                // Balanced: a byte less per fragment at most.
                prop_assert!(range.len() <= first_length && range.len() + count > first_length);
            }
            end = range.end;
        }
        prop_assert_eq!(end, payload_len);
    }
}

#[test]
fn the_largest_packet_passes_on_the_smallest_path() {
    let room = DATAGRAM_BYTES_MIN - FIRST_FRAGMENT_HEADER_BYTES_MAX;
    let fragments = split(UDP_PAYLOAD_MAX, room).expect("it fits");
    assert_eq!(fragments.len(), 60);
    assert_eq!(fragments.fragments(), 60);
}

#[test]
fn a_packet_larger_than_udp_allows_is_not_cut() {
    assert!(split(UDP_PAYLOAD_MAX, UDP_PAYLOAD_MAX).is_some());
    assert!(split(UDP_PAYLOAD_MAX + 1, UDP_PAYLOAD_MAX + 1).is_none());
}

#[test]
fn a_packet_that_needs_too_many_fragments_is_not_cut() {
    assert!(split(64 * 100, 100).is_some());
    assert!(split(64 * 100 + 1, 100).is_none());
    assert!(split(1, 0).is_none());
}

#[test]
fn an_empty_packet_is_one_empty_fragment() {
    let fragments: Vec<_> = split(0, 100).expect("it fits").collect();
    assert_eq!(fragments, [(0, 1, 0..0)]);
}
