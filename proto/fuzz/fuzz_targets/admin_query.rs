//! The query of the admin endpoint's `/readyz`: no text makes it panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../dataplane/src/process/admin/query.rs"]
mod query;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let wanted = query::wanted(text);
    assert!(wanted.is_ok() || text.contains(|letter| letter != '&'));
});
