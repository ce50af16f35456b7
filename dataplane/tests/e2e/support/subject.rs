//! Which programs are tested: `qmux-dp` by default, or any pair that keeps the same contracts.

use std::path::PathBuf;

/// The program for the server role: `QMUX_E2E_SERVER`.
pub(crate) fn server() -> PathBuf {
    from_env("QMUX_E2E_SERVER")
}

/// The program for the client role: `QMUX_E2E_CLIENT`.
pub(crate) fn client() -> PathBuf {
    from_env("QMUX_E2E_CLIENT")
}

fn from_env(name: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| env!("CARGO_BIN_EXE_qmux-dp").into(), PathBuf::from)
}

/// Whether `QMUX_E2E_SUBSET=wire` asks only for what any program that speaks the protocol offers:
/// then tests of counters, steering and runtimes say so and return.
pub(crate) fn only_wire(test: &str) -> bool {
    let only = std::env::var("QMUX_E2E_SUBSET").is_ok_and(|subset| subset == "wire");
    if only {
        eprintln!("{test}: left out, because QMUX_E2E_SUBSET is \"wire\"");
    }
    only
}

/// A number that scales a test: the environment's, or `default`.
pub(crate) fn scale(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text:?} must be a whole number")),
        Err(_) => default,
    }
}
