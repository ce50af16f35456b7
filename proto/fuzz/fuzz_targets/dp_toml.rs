//! dp.toml: no text makes the parser panic, a refusal says where and why in few words, and none
//! shows a token.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use qmux_config::{Admission, CertificateNames, ClientMatcher, Config, Server};
use qmux_config::certs::{CertsRequest, generate, write};

/// A directory with certificates, so that a config can be a good one.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/fuzz/dp_toml"
    ));
    let request = CertsRequest {
        server_names: vec!["a.test".into()],
        days: 30,
    };
    let certs = generate(&request).expect("certificates");
    write(&certs, &dir.join("certs"), true).expect("written");
    dir.join("dp.toml")
});

/// What must not be in a message: the seeds have it for a token.
const SECRET: &str = "fuzzed-secret-of-a-token";

/// Nobody is taken for a client whose proof it does not have.
fn check_clients(server: &Server) {
    let stranger = CertificateNames {
        common_names: vec!["a name of no seed".into()],
        dns_names: Vec::new(),
        uri_names: Vec::new(),
        fingerprint: [0x5a; 32],
    };
    let matcher = ClientMatcher::new(server);
    let admission = matcher.by_certificate(&stranger);
    assert_eq!(admission.may_serve("web"), server.clients.is_empty());
    assert_eq!(matcher.by_token(|_| false), Admission::Refused);
    assert!(server.sockets(1) > 0);
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Paths may lead anywhere, also to what never ends; those of the seeds do not.
    if text.contains("/") && !text.contains("certs/") || text.contains("..") {
        return;
    }
    // An environment of its own: what a run finds must not depend on where it runs.
    let environment = |name: &str| (name == "FUZZED").then(|| "fuzzed".into());
    match Config::parse_with(text, &PLACE, environment) {
        Ok(config) => {
            assert!(config.server.is_some() || config.client.is_some());
            assert!(!format!("{config:?}").contains(SECRET), "it shows a token");
            if let Some(server) = &config.server {
                check_clients(server);
            }
        }
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            let said = errors.to_string();
            assert!(!said.trim().is_empty());
            // Where the secret is no token's value, it may be quoted.
            let is_value = text.contains(&format!("\ntoken = \"{SECRET}\"\n"));
            let once = text.matches(SECRET).count() == 1;
            assert!(!(is_value && once && said.contains(SECRET)), "{said}");
        }
    }
});
