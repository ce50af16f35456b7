//! Arbitrary values of every type on the wire.

use std::net::{IpAddr, SocketAddr};

use proptest::array::{uniform16, uniform32};
use proptest::collection::vec;
use proptest::prelude::*;
use qmux_proto::control::{
    AuthChallenge, AuthProof, Capabilities, FlowClosed, GoAway, GoAwayReason, HandOvers, Heartbeat,
    Message, NoMoreFlows, PathChallenge, PathResponse, Protocols, RefuseReason, Register,
    RegisterAck, RegisterOutcome, ServiceAnswer, ServiceAnswers, ServiceHealth, ServiceOffer,
    ServiceVerdict, TrafficPorts, WayFails,
};
use qmux_proto::{FLOW_ID_MAX, FlowError, OpenHeader, Protocol, varint};

/// Numbers of every length of a varint, with the edges.
pub(crate) fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..0x80u64,
        0..0x8000u64,
        0..0x8000_0000u64,
        0..=varint::MAX,
        Just(varint::MAX),
    ]
}

pub(crate) fn flow_id() -> impl Strategy<Value = u64> {
    prop_oneof![0..0x40u64, 0..=FLOW_ID_MAX, Just(FLOW_ID_MAX)]
}

pub(crate) fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

pub(crate) fn service() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), text(128)]
}

/// Text without control characters of at most `bytes_max` bytes.
fn text(bytes_max: usize) -> impl Strategy<Value = String> {
    vec(
        any::<char>().prop_filter("control character", |c| !c.is_control()),
        0..=bytes_max,
    )
    .prop_map(move |chars| {
        let mut text = String::new();
        for c in chars {
            if text.len() + c.len_utf8() <= bytes_max {
                text.push(c);
            }
        }
        text
    })
}

pub(crate) fn open_header() -> impl Strategy<Value = OpenHeader> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (
        flow_id(),
        protocol,
        service(),
        address(),
        address(),
        number(),
    )
        .prop_map(
            |(flow_id, protocol, service, visitor, traffic, opened_at_us)| OpenHeader {
                flow_id,
                protocol,
                service,
                visitor,
                traffic,
                opened_at_us,
            },
        )
}

pub(crate) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        register().prop_map(Message::Register),
        register_ack().prop_map(Message::RegisterAck),
        (number(), number()).prop_map(|(sequence, acknowledged)| {
            Message::Heartbeat(Heartbeat {
                sequence,
                acknowledged,
            })
        }),
        (flow_id(), number()).prop_map(|(flow_id, code)| {
            Message::FlowClosed(FlowClosed {
                flow_id,
                reason: FlowError::from_code(code),
            })
        }),
        (number(), number()).prop_map(|(code, drain_timeout_ms)| {
            Message::GoAway(GoAway {
                reason: GoAwayReason::from_code(code),
                drain_timeout_ms,
            })
        }),
        uniform32(any::<u8>()).prop_map(|nonce| Message::AuthChallenge(AuthChallenge { nonce })),
        vec(any::<u8>(), 0..=64).prop_map(|mac| Message::AuthProof(AuthProof { mac })),
        (service(), any::<bool>()).prop_map(|(service, healthy)| {
            Message::ServiceHealth(ServiceHealth { service, healthy })
        }),
        number().prop_map(|flows_opened| Message::NoMoreFlows(NoMoreFlows { flows_opened })),
        service_answers().prop_map(Message::ServiceAnswers),
        (number(), number()).prop_map(|(visitors, datagrams)| {
            Message::HandOvers(HandOvers {
                visitors,
                datagrams,
            })
        }),
        number().prop_map(|lost_percent| Message::WayFails(WayFails { lost_percent })),
        number().prop_map(|nonce| Message::PathChallenge(PathChallenge { nonce })),
        number().prop_map(|nonce| Message::PathResponse(PathResponse { nonce })),
    ]
}

fn register() -> impl Strategy<Value = Register> {
    let client_id = text(253).prop_map(|id| if id.is_empty() { "a".to_owned() } else { id });
    let offer = (service(), any::<bool>(), any::<bool>()).prop_map(|(name, tcp, udp)| {
        let protocols = Protocols { tcp, udp };
        ServiceOffer { name, protocols }
    });
    let offers = vec(offer, 0..=64);
    (
        number(),
        client_id,
        uniform16(any::<u8>()),
        (number(), number()),
        number(),
        offers,
    )
        .prop_map(
            |(
                protocol_version,
                client_id,
                instance_id,
                (lane_index, lane_count),
                bits,
                services,
            )| {
                Register {
                    protocol_version,
                    client_id,
                    instance_id,
                    lane_index,
                    lane_count,
                    capabilities: Capabilities::from_bits(bits).expect("a varint's bits fit"),
                    services,
                }
            },
        )
}

fn service_answers() -> impl Strategy<Value = ServiceAnswers> {
    let ports = (1..=u16::MAX, 0..=u16::MAX);
    let answer = (service(), number(), ports).prop_map(|(name, code, (first, more))| {
        let verdict = ServiceVerdict::from_code(code % 4);
        let accepted = verdict == ServiceVerdict::Accepted;
        let count = more.min(u16::MAX - first) + 1;
        let ports = TrafficPorts::new(first, count).filter(|_| accepted);
        ServiceAnswer {
            name,
            verdict,
            ports,
        }
    });
    vec(answer, 0..=64).prop_map(|answers| ServiceAnswers { answers })
}

fn register_ack() -> impl Strategy<Value = RegisterAck> {
    let outcome = prop_oneof![
        Just(RegisterOutcome::Accepted),
        (number(), text(1024)).prop_map(|(code, text)| RegisterOutcome::Refused {
            reason: RefuseReason::from_code(code),
            text,
        }),
    ];
    (outcome, uniform16(any::<u8>()), number(), number()).prop_map(
        |(outcome, server_instance_id, server_cores, lane_core)| RegisterAck {
            outcome,
            server_instance_id,
            server_cores,
            lane_core,
        },
    )
}

/// Bytes that are almost what `encoded` gives: some are changed, the end may be cut or longer.
pub(crate) fn damaged(encoded: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (
        encoded,
        changes,
        any::<prop::sample::Index>(),
        vec(any::<u8>(), 0..8),
    )
        .prop_map(|(mut bytes, changes, cut, tail)| {
            for (index, byte) in changes {
                if !bytes.is_empty() {
                    let index = index.index(bytes.len());
                    bytes[index] = byte;
                }
            }
            if tail.len() < 4 {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes.extend(tail);
            bytes
        })
}
