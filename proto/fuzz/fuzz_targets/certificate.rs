//! What is told of a peer's certificate: no bytes make it panic, and what is told stays short and
//! on one line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_config::CertificateFacts;

fuzz_target!(|bytes: &[u8]| {
    let Some(facts) = CertificateFacts::of(bytes) else {
        return;
    };
    let told = format!(
        "{} {} {} {} {}",
        facts.subject,
        facts.issuer,
        facts.names.join(", "),
        facts.not_before,
        facts.not_after
    );
    assert!(told.len() < 20_000 && !told.contains(char::is_control), "{told:?}");
});
