//! Connection ids and steering.

use proptest::prelude::*;
use qmux_proto::cid::{CID_LEN, ConnectionId, core_of, core_of_packet};

proptest! {
    #[test]
    fn an_id_names_its_core_and_keeps_its_random_bytes(core: u8, random: [u8; 11]) {
        let id = ConnectionId::new(core, random);
        prop_assert_eq!(id.core(), core);
        prop_assert_eq!(core_of(id.as_ref()), Some(core));
        prop_assert_eq!(&id.as_bytes()[1..], &random);
        prop_assert_eq!(<[u8; CID_LEN]>::from(id), *id.as_bytes());
    }

    #[test]
    fn packets_of_a_lane_reach_its_core_with_either_header(
        core in 0..64u8,
        random: [u8; 11],
        first: u8,
        cores in 64..=256usize,
    ) {
        let id = ConnectionId::new(core, random);
        let long = [&[first | 0x80, 0, 0, 0, 1, CID_LEN as u8], id.as_ref()].concat();
        let short = [&[first & 0x7f], id.as_ref()].concat();
        prop_assert_eq!(core_of_packet(&long, cores), Some(usize::from(core)));
        prop_assert_eq!(core_of_packet(&short, cores), Some(usize::from(core)));
    }

    #[test]
    fn any_packet_reaches_a_core_that_exists(packet: Vec<u8>, cores in 1..300usize) {
        if let Some(core) = core_of_packet(&packet, cores) {
            prop_assert!(core < cores);
        } else {
            prop_assert!(packet.len() <= 6);
        }
    }
}

#[test]
fn the_initial_packet_of_the_rfc_is_steered_by_byte_6() {
    // RFC 9001 appendix A.2: the destination connection id is 0x8394c8f03e515708.
    let packet = [
        0xc3, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08,
    ];
    assert_eq!(core_of_packet(&packet, 256), Some(0x83));
    assert_eq!(core_of_packet(&packet, 4), Some(0x83 % 4));
}

#[test]
fn a_packet_that_is_too_short_names_no_core() {
    assert_eq!(core_of_packet(&[], 4), None);
    assert_eq!(core_of_packet(&[0x40], 4), None);
    assert_eq!(core_of_packet(&[0xc0, 0, 0, 0, 1, 8], 4), None);
    assert_eq!(core_of_packet(&[0x40, 9], 0), None);
    assert_eq!(core_of(&[]), None);
}
