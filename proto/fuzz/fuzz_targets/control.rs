//! The control stream: no bytes make the decoder panic, the pieces in which they arrive change
//! nothing, and what is read reads the same when written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_proto::DecodeError;
use qmux_proto::control::{Decoder, Message};

type Outcome = (Vec<Message>, u64, Option<DecodeError>);

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for piece in pieces {
        if let Err(error) = decode_piece(&mut decoder, piece, &mut messages) {
            return (messages, decoder.skipped(), Some(error));
        }
    }
    (messages, decoder.skipped(), None)
}

fn decode_piece(
    decoder: &mut Decoder,
    piece: &[u8],
    messages: &mut Vec<Message>,
) -> Result<(), DecodeError> {
    decoder.feed(piece)?;
    while let Some(message) = decoder.next()? {
        messages.push(message);
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&piece_bytes, stream)) = bytes.split_first() else {
        return;
    };
    let whole = decode(std::iter::once(stream));
    assert_eq!(
        whole,
        decode(stream.chunks(usize::from(piece_bytes).max(1)))
    );

    let (messages, _, _) = whole;
    let mut out = Vec::new();
    for message in &messages {
        message.encode(&mut out);
    }
    assert_eq!(decode(std::iter::once(out.as_slice())), (messages, 0, None));
});
