//! Varints: what is read takes the bytes that it says, and reads the same when written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_proto::varint;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(value) = varint::get(&mut rest) {
        let mut out = Vec::new();
        varint::put(&mut out, value);
        assert_eq!(out.len(), varint::size(value));
        assert_eq!(varint::get(&mut out.as_slice()), Ok(value));
    }
    assert!(rest.len() < varint::BYTES_MAX);
});
