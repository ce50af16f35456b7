//! The Open header of a TCP flow.

use proptest::collection::vec;
use proptest::prelude::*;
use qmux_proto::open::OPEN_HEADER_BYTES_MAX;
use qmux_proto::{DecodeError, OpenHeader, varint};

use crate::strategies::{damaged, open_header};

fn encoded(header: &OpenHeader) -> Vec<u8> {
    let mut out = Vec::new();
    header.encode(&mut out);
    out
}

proptest! {
    #[test]
    fn every_header_comes_back_and_the_visitors_bytes_stay(
        header in open_header(),
        stream in vec(any::<u8>(), 0..50),
    ) {
        let mut bytes = encoded(&header);
        let length = bytes.len();
        prop_assert!(length <= OPEN_HEADER_BYTES_MAX);
        bytes.extend_from_slice(&stream);
        prop_assert_eq!(OpenHeader::decode(&bytes), Ok(Some((header, length))));
    }

    #[test]
    fn a_cut_header_asks_for_more(header in open_header()) {
        let bytes = encoded(&header);
        for cut in 0..bytes.len() {
            prop_assert_eq!(OpenHeader::decode(&bytes[..cut]), Ok(None));
        }
    }

    #[test]
    fn fields_of_a_later_version_are_skipped(
        header in open_header(),
        more in vec(any::<u8>(), 0..=300),
    ) {
        let bytes = encoded(&header);
        let mut body = bytes.as_slice();
        let length = varint::get(&mut body).expect("a length is there");
        let mut longer = Vec::new();
        varint::put(&mut longer, length + more.len() as u64);
        longer.extend_from_slice(body);
        longer.extend_from_slice(&more);
        let total = longer.len();
        longer.extend_from_slice(b"GET /");
        prop_assert_eq!(OpenHeader::decode(&longer), Ok(Some((header, total))));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop_oneof![
        vec(any::<u8>(), 0..600),
        damaged(open_header().prop_map(|header| encoded(&header))),
    ]) {
        if let Ok(Some((header, length))) = OpenHeader::decode(&bytes) {
            prop_assert!(length <= bytes.len());
            let again = encoded(&header);
            prop_assert_eq!(OpenHeader::decode(&again), Ok(Some((header, again.len()))));
        }
    }
}

#[test]
fn a_header_that_is_too_long_is_refused_before_it_arrives() {
    let with_length = |length| {
        let mut out = Vec::new();
        varint::put(&mut out, length);
        OpenHeader::decode(&out)
    };
    assert_eq!(with_length(510), Ok(None));
    assert_eq!(
        with_length(511),
        Err(DecodeError::TooLong {
            field: "open header",
            length: 511,
            max: 510
        })
    );
    assert!(matches!(
        with_length(varint::MAX),
        Err(DecodeError::TooLong { .. })
    ));
}

#[test]
fn a_header_without_its_fields_is_refused() {
    assert_eq!(
        OpenHeader::decode(&[0]),
        Err(DecodeError::Truncated { field: "flow id" })
    );
    assert!(matches!(
        OpenHeader::decode(&[2, 1, 9]),
        Err(DecodeError::OutOfRange {
            field: "protocol",
            value: 9,
            ..
        })
    ));
    assert_eq!(
        OpenHeader::decode(&[4, 1, 1, 0, 5]),
        Err(DecodeError::AddressFamily {
            field: "visitor",
            family: 5
        })
    );
}
