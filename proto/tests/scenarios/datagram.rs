//! Headers of datagrams.

use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use qmux_proto::datagram::{
    BUNDLE_MARK, Bundle, FIRST_FRAGMENT_HEADER_BYTES_MAX, FRAGMENT_HEADER_BYTES_MAX, FRAGMENTS_MAX,
    Header, begin_bundle, bundled_len, put_bundled_len,
};
use qmux_proto::{DecodeError, FLOW_ID_MAX, varint};

use crate::strategies::{address, damaged, flow_id, number, service};

/// The parts of a header; which of them it uses depends on its kind.
#[derive(Clone, Debug)]
struct Parts {
    kind: u8,
    flow_id: u64,
    packet_id: u64,
    index: u8,
    count: u8,
    visitor: SocketAddr,
    traffic: Option<SocketAddr>,
    service: String,
}

impl Parts {
    fn header(&self) -> Header<'_> {
        let &Self {
            kind,
            flow_id,
            packet_id,
            index,
            count,
            visitor,
            traffic,
            ref service,
        } = self;
        match kind {
            0 => Header::Whole { flow_id },
            1 => Header::First {
                flow_id,
                visitor,
                traffic,
                service,
            },
            2 => Header::Fragment {
                flow_id,
                packet_id,
                index,
                count,
            },
            _ => Header::FirstFragment {
                flow_id,
                packet_id,
                index,
                count,
                visitor,
                traffic,
                service,
            },
        }
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let place = (1..=FRAGMENTS_MAX as u8).prop_flat_map(|count| (0..count, Just(count)));
    let traffic = proptest::option::of(address());
    let addresses = (address(), traffic);
    (0..4u8, flow_id(), number(), place, addresses, service()).prop_map(
        |(kind, flow_id, packet_id, (index, count), (visitor, traffic), service)| Parts {
            kind,
            flow_id,
            packet_id,
            index,
            count,
            visitor,
            traffic,
            service,
        },
    )
}

fn datagram(header: &Header<'_>, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    header.encode(&mut out);
    assert_eq!(out.len(), header.encoded_len());
    out.extend_from_slice(payload);
    out
}

proptest! {
    #[test]
    fn every_header_comes_back_with_its_payload(
        parts in parts(),
        payload in vec(any::<u8>(), 0..100),
    ) {
        let header = parts.header();
        let bytes = datagram(&header, &payload);
        prop_assert_eq!(Header::decode(&bytes), Ok((header, payload.as_slice())));
    }

    #[test]
    fn a_payload_that_looks_like_a_header_stays_a_payload(
        outer in parts(),
        inner in vec(parts(), 1..4),
    ) {
        let payload: Vec<u8> =
            inner.iter().flat_map(|parts| datagram(&parts.header(), b"")).collect();
        let header = outer.header();
        let bytes = datagram(&header, &payload);
        let (decoded, rest) = Header::decode(&bytes).expect("it was just encoded");
        prop_assert_eq!(decoded.fragment().is_some(), outer.kind >= 2);
        prop_assert_eq!((decoded, rest), (header, payload.as_slice()));
    }

    #[test]
    fn a_cut_header_is_refused(parts in parts()) {
        let bytes = datagram(&parts.header(), b"");
        for cut in 0..bytes.len() {
            let outcome = Header::decode(&bytes[..cut]);
            prop_assert!(matches!(outcome, Err(DecodeError::Truncated { .. })), "{:?}", outcome);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop_oneof![
        vec(any::<u8>(), 0..200),
        damaged(parts().prop_map(|parts| datagram(&parts.header(), b"payload"))),
    ]) {
        if let Ok((header, payload)) = Header::decode(&bytes) {
            let again = datagram(&header, payload);
            prop_assert_eq!(Header::decode(&again), Ok((header, payload)));
        }
    }
}

#[test]
fn an_empty_packet_is_a_packet() {
    let visitor = ([127, 0, 0, 1], 9).into();
    for header in [
        Header::Whole { flow_id: 1 },
        Header::First {
            flow_id: 1,
            visitor,
            traffic: None,
            service: "",
        },
    ] {
        let bytes = datagram(&header, b"");
        assert_eq!(Header::decode(&bytes), Ok((header, b"".as_slice())));
    }
}

#[test]
fn a_datagram_without_a_byte_is_refused() {
    assert_eq!(
        Header::decode(b""),
        Err(DecodeError::Truncated {
            field: "flow id and kind"
        })
    );
}

#[test]
fn the_longest_headers_are_as_long_as_their_constants_say() {
    let (flow_id, packet_id, index, count) = (FLOW_ID_MAX, varint::MAX, 63, 64);
    let fragment = Header::Fragment {
        flow_id,
        packet_id,
        index,
        count,
    };
    assert_eq!(fragment.encoded_len(), FRAGMENT_HEADER_BYTES_MAX);
    let visitor = (std::net::Ipv6Addr::LOCALHOST, 1).into();
    let first = Header::FirstFragment {
        flow_id,
        packet_id,
        index,
        count,
        visitor,
        traffic: Some(visitor),
        service: "",
    };
    assert_eq!(first.encoded_len(), FIRST_FRAGMENT_HEADER_BYTES_MAX);
}

#[test]
fn a_fragment_outside_its_packet_is_refused() {
    let fragment = |index, count| [0b10, 0, index, count];
    assert!(Header::decode(&fragment(63, 64)).is_ok());
    for (index, count) in [(0, 0), (0, 65), (0, 255)] {
        assert!(matches!(
            Header::decode(&fragment(index, count)),
            Err(DecodeError::OutOfRange {
                field: "fragment count",
                ..
            })
        ));
    }
    assert_eq!(
        Header::decode(&fragment(5, 5)),
        Err(DecodeError::OutOfRange {
            field: "fragment index",
            value: 5,
            min: 0,
            max: 4
        })
    );
}

#[test]
#[should_panic(expected = "flow id")]
fn a_flow_id_of_our_own_that_is_too_large_is_a_fault_of_the_program() {
    datagram(
        &Header::Whole {
            flow_id: FLOW_ID_MAX + 1,
        },
        b"",
    );
}

/// A bundle of these packets.
fn bundle(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    begin_bundle(&mut out);
    for packet in packets {
        put_bundled_len(&mut out, packet.len());
        out.extend_from_slice(packet);
    }
    out
}

proptest! {
    #[test]
    fn every_packet_of_a_bundle_comes_back(
        packets in vec(vec(any::<u8>(), 0..300), 0..20)
    ) {
        let bytes = bundle(&packets);
        let length: usize = packets.iter().map(|packet| bundled_len(packet.len())).sum();
        prop_assert_eq!(bytes.len(), BUNDLE_MARK.len() + length);
        let read: Result<Vec<_>, _> = Bundle::of(&bytes).expect("the mark is there").collect();
        prop_assert_eq!(read, Ok(packets.iter().map(Vec::as_slice).collect()));
    }

    #[test]
    fn a_cut_bundle_gives_its_whole_packets_and_then_an_error(
        packets in vec(vec(any::<u8>(), 1..300), 1..20),
        cut in 1_usize..300,
    ) {
        let mut bytes = bundle(&packets);
        let cut = cut.min(packets[packets.len() - 1].len());
        bytes.truncate(bytes.len() - cut);
        let read: Vec<_> = Bundle::of(&bytes).expect("the mark is there").collect();
        let (last, whole) = read.split_last().expect("one was begun");
        prop_assert!(last.is_err());
        prop_assert_eq!(whole.len(), packets.len() - 1);
    }
}

#[test]
fn no_header_begins_like_a_bundle() {
    let mut out = Vec::new();
    Header::Whole { flow_id: 0 }.encode(&mut out);
    assert!(Bundle::of(&out).is_none());
    assert!(Bundle::of(&[0xff; 7]).is_none());
    assert_eq!(Bundle::of(&BUNDLE_MARK).expect("an empty one").count(), 0);
}
