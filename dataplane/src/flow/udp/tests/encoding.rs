//! One packet into a lane: whole, cut, or dropped and counted.

use std::cell::Cell;
use std::net::SocketAddr;

use qmux_proto::datagram::{DATAGRAM_BYTES_MIN, Header, UDP_PAYLOAD_MAX};

use super::super::encode::{Introduction, send};
use super::super::fake::FakeLane;
use super::support::payload;
use crate::core::counters::CoreCounters;

const FLOW: u64 = 300;

fn visitor() -> SocketAddr {
    "198.51.100.7:40000".parse().expect("literal")
}

struct Sent {
    datagrams: Vec<Vec<u8>>,
    counters: CoreCounters,
    packet_id: u64,
}

fn sent(lane: &FakeLane, introduce: bool, payload: &[u8], fragmentation: bool) -> Sent {
    let counters = CoreCounters::default();
    let packet_id = Cell::new(5);
    let introduction = introduce.then(|| Introduction {
        visitor: visitor(),
        traffic: None,
        service: "",
    });
    send(
        lane,
        FLOW,
        introduction,
        payload,
        &packet_id,
        fragmentation,
        &counters,
    );
    Sent {
        datagrams: lane.take(),
        counters,
        packet_id: packet_id.get(),
    }
}

#[test]
fn a_packet_that_fits_is_never_cut() {
    let lane = FakeLane::new(1_150);
    for introduce in [false, true] {
        let header = match introduce {
            false => Header::Whole { flow_id: FLOW },
            true => Header::First {
                flow_id: FLOW,
                visitor: visitor(),
                traffic: None,
                service: "",
            },
        };
        let most = 1_150 - header.encoded_len();
        for bytes in [0, 1, most] {
            let payload = payload(0, bytes);
            let sent = sent(&lane, introduce, &payload, true);
            assert_eq!(sent.datagrams.len(), 1);
            assert_eq!(
                Header::decode(&sent.datagrams[0]),
                Ok((header, &payload[..]))
            );
            assert_eq!(sent.packet_id, 5);
            assert_eq!(sent.counters.udp_datagrams_in.get(), 1);
            assert_eq!(sent.counters.udp_bytes_in.get(), bytes as u64);
        }
        let sent = sent(&lane, introduce, &payload(0, most + 1), true);
        assert_eq!(sent.datagrams.len(), 2);
        assert_eq!(sent.counters.udp_datagrams_fragmented.get(), 1);
        assert_eq!(sent.counters.udp_datagrams_in.get(), 1);
        assert_eq!(sent.packet_id, 6);
    }
}

#[test]
fn the_largest_packet_passes_in_the_smallest_datagrams() {
    let lane = FakeLane::new(DATAGRAM_BYTES_MIN);
    let payload = payload(0, UDP_PAYLOAD_MAX);
    for introduce in [false, true] {
        let sent = sent(&lane, introduce, &payload, true);
        let mut joined = Vec::new();
        for (number, datagram) in sent.datagrams.iter().enumerate() {
            assert!(datagram.len() <= DATAGRAM_BYTES_MIN);
            let (header, part) = Header::decode(datagram).expect("our own");
            let count = sent.datagrams.len() as u8;
            assert_eq!(header.fragment(), Some((5, number as u8, count)));
            assert_eq!(header.introduction(), introduce.then(|| (visitor(), "")));
            joined.extend_from_slice(part);
        }
        assert!(joined == payload);
    }
}

#[test]
fn without_fragmentation_a_large_packet_is_dropped_and_counted() {
    let lane = FakeLane::new(1_150);
    let sent = sent(&lane, false, &payload(0, 2_000), false);
    assert!(sent.datagrams.is_empty());
    assert_eq!(sent.counters.udp_dropped_too_large.get(), 1);
    assert_eq!(sent.counters.udp_datagrams_in.get(), 0);
}

#[test]
fn a_packet_beyond_all_fragments_is_dropped_and_counted() {
    let lane = FakeLane::new(500);
    let sent = sent(&lane, false, &payload(0, UDP_PAYLOAD_MAX), true);
    assert!(sent.datagrams.is_empty());
    assert_eq!(sent.counters.udp_dropped_too_large.get(), 1);
}

#[test]
fn a_queue_that_fills_up_ends_the_packet() {
    let lane = FakeLane::new(1_150);
    lane.queue_max.set(3);
    let cut = sent(&lane, false, &payload(0, 9_000), true);
    assert_eq!(cut.datagrams.len(), 3);
    assert_eq!(cut.counters.udp_dropped_queue_full.get(), 1);
    assert_eq!(cut.counters.udp_datagrams_in.get(), 0);
    assert_eq!(cut.counters.udp_datagrams_fragmented.get(), 0);
    lane.queue_max.set(0);
    let whole = sent(&lane, false, &payload(0, 90), true);
    assert_eq!(whole.counters.udp_dropped_queue_full.get(), 1);
}

#[test]
fn a_lane_without_datagrams_is_counted() {
    let lane = FakeLane::new(0);
    for bytes in [0, 90] {
        let sent = sent(&lane, true, &payload(0, bytes), true);
        assert!(sent.datagrams.is_empty());
        assert_eq!(sent.counters.udp_dropped_no_client.get(), 1);
    }
}
