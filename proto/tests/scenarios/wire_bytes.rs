//! The exact bytes of each encoding. A change here breaks peers that are already deployed.

use qmux_proto::control::{
    AuthChallenge, AuthProof, Capabilities, FlowClosed, GoAway, GoAwayReason, HandOvers, Heartbeat,
    Message, NoMoreFlows, Protocols, RefuseReason, Register, RegisterAck, RegisterOutcome,
    ServiceAnswer, ServiceAnswers, ServiceHealth, ServiceOffer, ServiceVerdict, TrafficPorts,
    WayFails,
};
use qmux_proto::datagram::Header;
use qmux_proto::{FlowError, OpenHeader, Protocol};

fn assert_message(message: &Message, expected: &[&[u8]]) {
    let mut out = Vec::new();
    message.encode(&mut out);
    assert_eq!(out, expected.concat(), "{message:?}");
}

#[test]
fn register() {
    let message = Message::Register(Register {
        protocol_version: 1,
        client_id: "edge".into(),
        instance_id: [7; 16],
        lane_index: 2,
        lane_count: 64,
        capabilities: Capabilities::TCP | Capabilities::FRAGMENTATION,
        services: vec![ServiceOffer::new(""), ServiceOffer::new("web")],
    });
    let fields: [&[u8]; 8] = [
        &[35, 1, 1, 4],
        b"edge",
        &[7; 16],
        &[2, 0x40, 64, 0b101],
        &[2, 0],
        &[3],
        b"web",
        &[0b11, 0b11],
    ];
    assert_message(&message, &fields);
}

#[test]
fn register_of_services_that_speak_one_protocol() {
    let udp = Protocols {
        tcp: false,
        udp: true,
    };
    let message = Message::Register(Register {
        protocol_version: 1,
        client_id: "edge".into(),
        instance_id: [7; 16],
        lane_index: 0,
        lane_count: 1,
        capabilities: Capabilities::NAMED_SERVICES,
        services: vec![
            ServiceOffer::new("web"),
            ServiceOffer {
                protocols: udp,
                ..ServiceOffer::new("dns")
            },
        ],
    });
    let fields: [&[u8]; 8] = [
        &[37, 1, 1, 4],
        b"edge",
        &[7; 16],
        &[0, 1, 0b1_0000],
        &[2, 3],
        b"web",
        &[3, b'd', b'n', b's'],
        &[0b11, 0b10],
    ];
    assert_message(&message, &fields);
}

#[test]
fn service_answers() {
    let answer = |name: &str, verdict, ports| ServiceAnswer {
        name: name.into(),
        verdict,
        ports,
    };
    let message = Message::ServiceAnswers(ServiceAnswers {
        answers: vec![
            answer(
                "ssh",
                ServiceVerdict::Accepted,
                TrafficPorts::new(30_000, 100),
            ),
            answer("", ServiceVerdict::Unknown, None),
            answer("db", ServiceVerdict::NotAllowed, None),
        ],
    });
    let fields: [&[u8]; 8] = [
        &[25, 12, 3],
        &[3],
        b"ssh",
        &[0, 0x75, 0x30, 0, 100],
        &[0, 1, 0, 0, 0, 0],
        &[2],
        b"db",
        &[2, 0, 0, 0, 0],
    ];
    assert_message(&message, &fields);
}

#[test]
fn register_ack() {
    let accepted = RegisterAck {
        outcome: RegisterOutcome::Accepted,
        server_instance_id: [9; 16],
        server_cores: 4,
        lane_core: 3,
    };
    let refused = RegisterAck {
        outcome: RegisterOutcome::Refused {
            reason: RefuseReason::Draining,
            text: "no".into(),
        },
        ..accepted.clone()
    };
    assert_message(
        &Message::RegisterAck(accepted),
        &[&[20, 2, 0], &[9; 16], &[4, 3]],
    );
    assert_message(
        &Message::RegisterAck(refused),
        &[&[24, 2, 1, 4, 2], b"no", &[9; 16], &[4, 3]],
    );
}

#[test]
fn the_small_messages() {
    let heartbeat = Message::Heartbeat(Heartbeat {
        sequence: 5,
        acknowledged: 4,
    });
    assert_message(&heartbeat, &[&[3, 3, 5, 4]]);
    let closed = Message::FlowClosed(FlowClosed {
        flow_id: 6,
        reason: FlowError::Expired,
    });
    assert_message(&closed, &[&[3, 4, 6, 8]]);
    let go_away = Message::GoAway(GoAway {
        reason: GoAwayReason::Shutdown,
        drain_timeout_ms: 30_000,
    });
    assert_message(&go_away, &[&[6, 5, 0, 0x80, 0, 0x75, 0x30]]);
    let challenge = Message::AuthChallenge(AuthChallenge { nonce: [1; 32] });
    assert_message(&challenge, &[&[33, 6], &[1; 32]]);
    let proof = Message::AuthProof(AuthProof { mac: vec![2; 32] });
    assert_message(&proof, &[&[34, 7, 32], &[2; 32]]);
    let health = Message::ServiceHealth(ServiceHealth {
        service: "db".into(),
        healthy: true,
    });
    assert_message(&health, &[&[5, 8, 2], b"db", &[1]]);
    let no_more = Message::NoMoreFlows(NoMoreFlows { flows_opened: 7 });
    assert_message(&no_more, &[&[2, 11, 7]]);
    let hand_overs = Message::HandOvers(HandOvers {
        visitors: 5,
        datagrams: 70,
    });
    assert_message(&hand_overs, &[&[4, 13, 5, 0x40, 70]]);
    let fails = Message::WayFails(WayFails { lost_percent: 60 });
    assert_message(&fails, &[&[2, 14, 60]]);
}

#[test]
fn open_header() {
    let header = OpenHeader {
        flow_id: 9,
        protocol: Protocol::Tcp,
        service: "s".into(),
        visitor: ([192, 0, 2, 1], 0x1234).into(),
        traffic: (std::net::Ipv6Addr::LOCALHOST, 80).into(),
        opened_at_us: 1,
    };
    let mut out = Vec::new();
    header.encode(&mut out);
    let localhost = &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80];
    let fields: [&[u8]; 4] = [
        &[31, 9, 1, 1, b's'],
        &[4, 192, 0, 2, 1, 0x12, 0x34],
        localhost,
        &[1],
    ];
    assert_eq!(out, fields.concat());
}

#[test]
fn datagrams() {
    let visitor = ([192, 0, 2, 1], 0x1234).into();
    let address = [4, 192, 0, 2, 1, 0x12, 0x34];
    let (flow_id, packet_id, index, count) = (3, 70, 1, 5);
    let traffic = ([192, 0, 2, 9], 80).into();
    let headers: [(Header<'_>, &[&[u8]]); 5] = [
        (Header::Whole { flow_id }, &[&[0b1100]]),
        (
            Header::First {
                flow_id,
                visitor,
                traffic: None,
                service: "s",
            },
            &[&[0b1101], &address, &[1, b's']],
        ),
        (
            Header::First {
                flow_id,
                visitor,
                traffic: Some(traffic),
                service: "s",
            },
            &[
                &[0b1101, 0x14],
                &address[1..],
                &[4, 192, 0, 2, 9, 0, 80],
                &[1, b's'],
            ],
        ),
        (
            Header::Fragment {
                flow_id,
                packet_id,
                index,
                count,
            },
            &[&[0b1110, 0x40, 70, 1, 5]],
        ),
        (
            Header::FirstFragment {
                flow_id,
                packet_id,
                index,
                count,
                visitor,
                traffic: None,
                service: "",
            },
            &[&[0b1111, 0x40, 70, 1, 5], &address, &[0]],
        ),
    ];
    for (header, expected) in headers {
        let mut out = Vec::new();
        header.encode(&mut out);
        assert_eq!(out, expected.concat(), "{header:?}");
    }
}
