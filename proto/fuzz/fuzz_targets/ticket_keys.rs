//! The file of session ticket keys: no bytes make it panic, what is read reads the same when
//! written again, and a refusal shows nothing of a key.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_config::{TICKET_KEYS_MAX, parse_ticket_keys};

fuzz_target!(|bytes: &[u8]| {
    match parse_ticket_keys(bytes) {
        Ok(keys) => {
            assert!((1..=TICKET_KEYS_MAX).contains(&keys.len()));
            let text: String = keys.iter().map(|key| key.to_line() + "\n").collect();
            assert_eq!(parse_ticket_keys(text.as_bytes()), Ok(keys));
        }
        Err(why) => {
            assert!(!why.is_empty() && why.len() < 1_000);
            let Ok(text) = std::str::from_utf8(bytes) else {
                return;
            };
            for word in text.split_whitespace().filter(|word| word.len() >= 32) {
                assert!(!why.contains(word), "it shows a line");
            }
        }
    }
});
