//! QMux's YAML: no text makes the import panic, and what comes out is TOML that the parser reads.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qmux_config::{Config, import};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // No file of it exists there: what the result lacks are certificates alone, or what its notes
    // say.
    let target = Path::new("/nowhere/dp.toml");
    let Ok(imported) = import::import(text, target) else {
        return;
    };
    if let Err(errors) = Config::parse(&imported.toml, target) {
        for problem in errors.problems() {
            let said = problem.to_string();
            assert!(!said.contains("TOML"), "{said}\n{}", imported.toml);
        }
    }
});
