//! Variable-length integers.

use proptest::prelude::*;
use qmux_proto::{DecodeError, varint};

use crate::strategies::number;

#[test]
fn the_samples_of_the_rfc_decode() {
    // RFC 9000 appendix A.1.
    let samples: [(&[u8], u64); 5] = [
        (
            &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
            151_288_809_941_952_652,
        ),
        (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
        (&[0x7b, 0xbd], 15_293),
        (&[0x25], 37),
        (&[0x40, 0x25], 37),
    ];
    for (mut bytes, value) in samples {
        assert_eq!(varint::get(&mut bytes), Ok(value));
        assert!(bytes.is_empty());
    }
}

#[test]
fn the_length_changes_at_the_powers_of_two() {
    let edges = [
        (0, 1),
        (63, 1),
        (64, 2),
        (16_383, 2),
        (16_384, 4),
        ((1 << 30) - 1, 4),
        (1 << 30, 8),
        (varint::MAX, 8),
    ];
    for (value, size) in edges {
        let mut out = Vec::new();
        varint::put(&mut out, value);
        assert_eq!((varint::size(value), out.len()), (size, size), "{value}");
    }
}

#[test]
#[should_panic(expected = "a varint holds at most 2^62 - 1")]
fn a_number_that_does_not_fit_is_a_fault_of_the_program() {
    varint::put(&mut Vec::new(), varint::MAX + 1);
}

proptest! {
    #[test]
    fn every_number_comes_back_and_the_rest_stays(value in number(), rest: Vec<u8>) {
        let mut out = Vec::new();
        varint::put(&mut out, value);
        out.extend_from_slice(&rest);
        let mut buf = out.as_slice();
        prop_assert_eq!(varint::get(&mut buf), Ok(value));
        prop_assert_eq!(buf, rest);
    }

    #[test]
    fn a_cut_number_leaves_the_input_as_it_was(value in number()) {
        let mut out = Vec::new();
        varint::put(&mut out, value);
        for cut in 0..out.len() {
            let mut buf = &out[..cut];
            prop_assert_eq!(varint::get(&mut buf), Err(DecodeError::Truncated { field: "varint" }));
            prop_assert_eq!(buf.len(), cut);
        }
    }
}
