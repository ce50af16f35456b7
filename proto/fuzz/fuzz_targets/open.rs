//! Open headers: no bytes make the decoder panic, an answer does not change when more bytes come,
//! and what is read reads the same when written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_proto::OpenHeader;
use qmux_proto::open::OPEN_HEADER_BYTES_MAX;

fuzz_target!(|bytes: &[u8]| {
    let answer = OpenHeader::decode(bytes);
    let Ok(Some((header, length))) = &answer else {
        assert!(answer.is_err() || bytes.len() < OPEN_HEADER_BYTES_MAX);
        return;
    };
    assert!(*length <= bytes.len().min(OPEN_HEADER_BYTES_MAX));
    assert_eq!(OpenHeader::decode(&bytes[..*length]), answer);
    assert_eq!(OpenHeader::decode(&bytes[..length - 1]), Ok(None));

    let mut out = Vec::new();
    header.encode(&mut out);
    assert_eq!(
        OpenHeader::decode(&out),
        Ok(Some((header.clone(), out.len())))
    );
});
