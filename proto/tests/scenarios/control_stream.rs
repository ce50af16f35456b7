//! The control stream as a whole: pieces, skipping, limits, errors.

use proptest::collection::vec;
use proptest::prelude::*;
use qmux_proto::control::{
    BUFFER_BYTES_MAX, Decoder, FEED_BYTES_MAX, Heartbeat, MESSAGE_BYTES_MAX, Message,
};
use qmux_proto::{DecodeError, varint};

use crate::strategies::{damaged, message};

fn heartbeat(sequence: u64) -> Message {
    Message::Heartbeat(Heartbeat {
        sequence,
        acknowledged: 0,
    })
}

fn encoded(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        message.encode(&mut out);
    }
    out
}

fn frame_of_unknown_type(length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    varint::put(&mut out, length as u64);
    out.resize(out.len() + length, 0xee);
    out
}

/// The result of a stream: its messages, how many were skipped, and the error at its end.
type Outcome = (Vec<Message>, u64, Option<DecodeError>);

fn decode_in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for piece in pieces {
        let mut drain = || {
            decoder.feed(piece)?;
            while let Some(message) = decoder.next()? {
                messages.push(message);
            }
            Ok(())
        };
        if let Err(error) = drain() {
            return (messages, decoder.skipped(), Some(error));
        }
    }
    (messages, decoder.skipped(), None)
}

proptest! {
    #[test]
    fn messages_come_back_however_the_stream_is_cut(
        messages in vec(message(), 0..6),
        lengths in vec(1..400usize, 1..50),
    ) {
        let bytes = encoded(&messages);
        let mut rest = bytes.as_slice();
        let pieces = lengths.iter().cycle().map_while(|&length| {
            if rest.is_empty() {
                return None;
            }
            let (piece, behind) = rest.split_at(length.min(rest.len()));
            rest = behind;
            Some(piece)
        });
        prop_assert_eq!(decode_in_pieces(pieces), (messages, 0, None));
    }

    #[test]
    fn garbage_ends_the_same_way_however_it_is_cut(
        bytes in prop_oneof![
            vec(any::<u8>(), 0..300),
            damaged(vec(message(), 0..4).prop_map(|messages| encoded(&messages))),
        ],
        length in 1..100usize,
    ) {
        let whole = decode_in_pieces([bytes.as_slice()]);
        prop_assert_eq!(&whole, &decode_in_pieces(bytes.chunks(1)));
        prop_assert_eq!(&whole, &decode_in_pieces(bytes.chunks(length)));
    }
}

#[test]
fn messages_of_a_later_version_are_skipped_and_counted() {
    let bytes = [
        encoded(&[heartbeat(1)]),
        frame_of_unknown_type(1),
        frame_of_unknown_type(MESSAGE_BYTES_MAX),
        encoded(&[heartbeat(2)]),
    ]
    .concat();
    let expected = (vec![heartbeat(1), heartbeat(2)], 2, None);
    assert_eq!(decode_in_pieces([bytes.as_slice()]), expected);
    assert_eq!(decode_in_pieces(bytes.chunks(1)), expected);
}

#[test]
fn a_message_that_is_too_long_is_refused_before_it_arrives() {
    let mut length = Vec::new();
    varint::put(&mut length, MESSAGE_BYTES_MAX as u64 + 1);
    let (messages, _, error) = decode_in_pieces([length.as_slice()]);
    assert_eq!(messages, []);
    assert_eq!(
        error,
        Some(DecodeError::TooLong {
            field: "control message",
            length: MESSAGE_BYTES_MAX as u64 + 1,
            max: MESSAGE_BYTES_MAX as u64,
        })
    );
}

#[test]
fn a_message_without_a_type_is_refused() {
    let (_, _, error) = decode_in_pieces([[0u8].as_slice()]);
    assert!(matches!(
        error,
        Some(DecodeError::OutOfRange {
            field: "message length",
            ..
        })
    ));
}

#[test]
fn the_first_error_is_final() {
    let mut decoder = Decoder::new();
    decoder
        .feed(&[0])
        .expect("the error shows when the message is read");
    let error = decoder.next().expect_err("a length of 0 is refused");
    assert_eq!(decoder.feed(&encoded(&[heartbeat(1)])), Err(error));
    assert_eq!(decoder.next(), Err(error));
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn a_drained_decoder_always_takes_a_full_feed() {
    // The longest unfinished message, then the largest feed.
    let unfinished = frame_of_unknown_type(MESSAGE_BYTES_MAX);
    let unfinished = &unfinished[..unfinished.len() - 1];
    let mut decoder = Decoder::new();
    decoder.feed(unfinished).expect("it fits");
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(decoder.buffered(), unfinished.len());
    assert_eq!(decoder.feed(&[1; FEED_BYTES_MAX]), Ok(()));
}

#[test]
fn a_decoder_that_nobody_drains_stays_bounded() {
    let mut decoder = Decoder::new();
    let bytes = encoded(&[heartbeat(1)]);
    let outcome = (0..=BUFFER_BYTES_MAX / bytes.len()).try_for_each(|_| decoder.feed(&bytes));
    assert!(matches!(
        outcome,
        Err(DecodeError::TooLong {
            field: "control stream buffer",
            ..
        })
    ));
}

#[test]
fn a_stream_that_never_pauses_between_messages_does_not_fill_the_memory() {
    // Each piece ends inside a message, so the buffer is never empty.
    let mut decoder = Decoder::new();
    let bytes = encoded(&vec![heartbeat(1); 100]);
    let (first, rest) = bytes.split_at(1);
    decoder.feed(first).expect("it fits");
    let piece = [rest, first].concat();
    for _ in 0..1_000 {
        decoder.feed(&piece).expect("it fits");
        while decoder.next().expect("it is valid").is_some() {}
        assert_eq!(decoder.buffered(), 1);
    }
    let allocated = decoder.allocated_bytes();
    assert!(
        allocated <= 8 * piece.len(),
        "{allocated} bytes for pieces of {}",
        piece.len()
    );
}

#[test]
fn an_idle_decoder_gives_the_memory_of_a_large_message_back() {
    let mut decoder = Decoder::new();
    decoder
        .feed(&frame_of_unknown_type(MESSAGE_BYTES_MAX))
        .expect("it fits");
    assert!(decoder.allocated_bytes() >= MESSAGE_BYTES_MAX);
    assert_eq!(decoder.next(), Ok(None));
    assert!(decoder.allocated_bytes() <= 1024);
}
