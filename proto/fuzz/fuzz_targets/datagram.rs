//! Datagrams: no bytes make the decoder panic, and what is read reads the same when written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_proto::datagram::{Bundle, Header};

fuzz_target!(|bytes: &[u8]| {
    if let Some(bundle) = Bundle::of(bytes) {
        let read: usize = bundle.flatten().map(<[u8]>::len).sum();
        assert!(read < bytes.len());
    }
    let Ok((header, payload)) = Header::decode(bytes) else {
        return;
    };
    assert!(bytes.ends_with(payload));
    let mut out = Vec::new();
    header.encode(&mut out);
    assert_eq!(out.len(), header.encoded_len());
    out.extend_from_slice(payload);
    assert_eq!(Header::decode(&out), Ok((header, payload)));
});
