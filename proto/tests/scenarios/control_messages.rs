//! What each control message may hold.

use proptest::prelude::*;
use qmux_proto::DecodeError;
use qmux_proto::control::{
    AuthProof, Capabilities, Decoder, Message, Protocols, RefuseReason, Register, RegisterAck,
    RegisterOutcome, ServiceOffer, is_valid_client_id,
};

use crate::strategies::{damaged, message};

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out);
    out
}

fn decode(bytes: &[u8]) -> Result<Option<Message>, DecodeError> {
    let mut decoder = Decoder::new();
    decoder.feed(bytes)?;
    decoder.next()
}

/// A frame of the type with these fields.
fn frame(type_byte: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    assert!(body.len() < 63, "the length must fit into one byte");
    [&[body.len() as u8 + 1, type_byte], body.as_slice()].concat()
}

fn register(client_id: &str) -> Register {
    Register {
        protocol_version: 1,
        client_id: client_id.to_owned(),
        instance_id: [0; 16],
        lane_index: 0,
        lane_count: 1,
        capabilities: Capabilities::NONE,
        services: Vec::new(),
    }
}

proptest! {
    #[test]
    fn every_message_comes_back(message in message()) {
        prop_assert_eq!(decode(&encoded(&message)), Ok(Some(message)));
    }

    #[test]
    fn fields_of_a_later_version_are_ignored(message in message(), more in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes = encoded(&message);
        let mut body = bytes.as_slice();
        let length = qmux_proto::varint::get(&mut body).expect("a length is there");
        let mut longer = Vec::new();
        qmux_proto::varint::put(&mut longer, length + more.len() as u64);
        longer.extend_from_slice(body);
        longer.extend_from_slice(&more);
        prop_assert_eq!(decode(&longer), Ok(Some(message)));
    }

    #[test]
    fn damaged_messages_are_refused_or_read_but_never_a_panic(
        bytes in damaged(message().prop_map(|message| encoded(&message)))
    ) {
        if let Ok(Some(message)) = decode(&bytes) {
            // What was read is valid: it can be written, and reads the same.
            prop_assert_eq!(decode(&encoded(&message)), Ok(Some(message)));
        }
    }
}

#[test]
fn a_message_that_ends_inside_a_field_is_refused() {
    let heartbeat_without_acknowledged = frame(3, &[&[5]]);
    assert_eq!(
        decode(&heartbeat_without_acknowledged),
        Err(DecodeError::Truncated {
            field: "heartbeat acknowledged"
        })
    );
}

#[test]
fn a_client_without_a_name_is_refused() {
    assert!(matches!(
        decode(&frame(1, &[&[1, 0]])),
        Err(DecodeError::OutOfRange {
            field: "client id length",
            ..
        })
    ));
}

#[test]
fn a_client_whose_name_would_forge_a_log_line_is_refused() {
    assert_eq!(
        decode(&frame(1, &[&[1, 3], b"a\nb"])),
        Err(DecodeError::ControlCharacter { field: "client id" })
    );
    assert_eq!(
        decode(&frame(1, &[&[1, 2], &[0xff, 0xfe]])),
        Err(DecodeError::NotUtf8 { field: "client id" })
    );
}

#[test]
fn a_client_id_has_1_to_253_bytes() {
    assert!(!is_valid_client_id(""));
    assert!(is_valid_client_id(&"é".repeat(126)));
    assert!(!is_valid_client_id(&"é".repeat(127)));
    assert!(!is_valid_client_id("tab\tin"));
    let mut too_long = vec![0x41, 34, 1, 1];
    too_long.extend([0x40, 254]);
    too_long.resize(300, b'a');
    assert_eq!(
        decode(&too_long),
        Err(DecodeError::TooLong {
            field: "client id",
            length: 254,
            max: 253
        })
    );
}

#[test]
fn the_largest_register_passes_and_one_more_service_does_not() {
    let offer = ServiceOffer {
        protocols: Protocols {
            tcp: true,
            udp: false,
        },
        ..ServiceOffer::new("x".repeat(128))
    };
    let message = Message::Register(Register {
        services: vec![offer; 64],
        ..register(&"c".repeat(253))
    });
    assert_eq!(decode(&encoded(&message)), Ok(Some(message)));

    let instance_lane_and_capabilities = [0; 16 + 3];
    let one_too_many = frame(
        1,
        &[&[1, 1, b'c'], &instance_lane_and_capabilities, &[0x40, 65]],
    );
    assert_eq!(
        decode(&one_too_many),
        Err(DecodeError::TooLong {
            field: "services",
            length: 65,
            max: 64
        })
    );
}

#[test]
#[should_panic(expected = "is not valid")]
fn a_client_id_of_our_own_that_is_not_valid_is_a_fault_of_the_program() {
    encoded(&Message::Register(register("")));
}

#[test]
fn a_refusal_of_a_later_version_keeps_its_code() {
    let instance_and_cores = [0; 16 + 2];
    let bytes = frame(2, &[&[1, 0x40, 200, 0], &instance_and_cores]);
    let Ok(Some(Message::RegisterAck(RegisterAck { outcome, .. }))) = decode(&bytes) else {
        panic!("no RegisterAck");
    };
    let expected = RegisterOutcome::Refused {
        reason: RefuseReason::Other(200),
        text: String::new(),
    };
    assert_eq!(outcome, expected);
}

#[test]
fn a_refusal_is_made_fit_to_be_logged() {
    let ack = |text: String| {
        Message::RegisterAck(RegisterAck {
            outcome: RegisterOutcome::Refused {
                reason: RefuseReason::BadRequest,
                text,
            },
            server_instance_id: [0; 16],
            server_cores: 1,
            lane_core: 0,
        })
    };
    // 1,024 is no multiple of 3: the cut must not fall into a character.
    let sent = ack(format!("\r\n{}", "€".repeat(400)));
    let received = ack(format!("  {}", "€".repeat(340)));
    assert_eq!(decode(&encoded(&sent)), Ok(Some(received)));
}

#[test]
fn capabilities_of_a_later_version_survive() {
    let known = Capabilities::TCP | Capabilities::UDP;
    let later = Capabilities::from_bits(known.bits() | 1 << 61).expect("62 bits fit");
    assert!(later.contains(known));
    assert!(!later.contains(Capabilities::FRAGMENTATION));
    let message = Message::Register(Register {
        capabilities: later,
        ..register("c")
    });
    assert_eq!(decode(&encoded(&message)), Ok(Some(message)));
    assert_eq!(Capabilities::from_bits(1 << 62), None);
}

#[test]
fn a_flow_id_that_no_datagram_could_carry_is_refused() {
    let bytes = frame(4, &[&[0xd0, 0, 0, 0, 0, 0, 0, 0], &[0]]);
    assert!(matches!(
        decode(&bytes),
        Err(DecodeError::OutOfRange {
            field: "flow id",
            ..
        })
    ));
}

#[test]
fn neither_healthy_nor_unhealthy_is_refused() {
    assert!(matches!(
        decode(&frame(8, &[&[0, 2]])),
        Err(DecodeError::OutOfRange {
            field: "service health",
            value: 2,
            ..
        })
    ));
}

#[test]
fn a_proof_never_shows_in_a_log() {
    let proof = AuthProof {
        mac: vec![0xab; 32],
    };
    let debug = format!("{:?}", Message::AuthProof(proof));
    assert!(
        debug.contains("32") && !debug.contains("171") && !debug.contains("ab"),
        "{debug}"
    );
}
