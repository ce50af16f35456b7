//! The file of sessions: no bytes make it panic, with and without a right digest, and what is read
//! reads the same when written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_config::{decode_sessions, encode_sessions, sealed_sessions};

fuzz_target!(|bytes: &[u8]| {
    let _damaged = decode_sessions(bytes);
    let Ok(lines) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some(sessions) = decode_sessions(sealed_sessions(lines).as_bytes()) else {
        return;
    };
    let again = decode_sessions(encode_sessions(&sessions).as_bytes());
    let kept = sessions.iter().filter(|it| {
        ![&it.address, &it.name].iter().any(|text| text.contains(char::is_control))
    });
    assert!(again.is_some_and(|again| again.iter().eq(kept)));
});
