//! Configs of rathole, the peer that comes without QUIC.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::BenchError;
use super::site::Addresses;
use qmux_harness::Launch;

/// How long `rathole --genkey` may take.
const GENKEY_LIMIT: Duration = Duration::from_secs(10);

/// A key pair of the noise transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    private: String,
    public: String,
}

impl Keys {
    /// Lets rathole make them.
    pub(super) fn generate(program: &Path) -> Result<Self, BenchError> {
        let launch = Launch::new("rathole --genkey", program).args(["--genkey"]);
        let output = launch.output(GENKEY_LIMIT)?;
        Self::parse(&output).ok_or_else(|| BenchError::Output {
            what: launch.name,
            problem: format!("no keys in {output:?}"),
        })
    }

    fn parse(output: &str) -> Option<Self> {
        // "Private Key:", the key in a line of its own, the same for the public one.
        let words: Vec<&str> = output.split_whitespace().collect();
        let keys: BTreeMap<&str, &str> = words
            .windows(3)
            .filter(|window| window[1] == "Key:")
            .map(|window| (window[0], window[2]))
            .collect();
        Some(Self {
            private: (*keys.get("Private")?).to_owned(),
            public: (*keys.get("Public")?).to_owned(),
        })
    }
}

/// The server's config.
pub(super) fn server_toml(addresses: &Addresses, keys: Option<&Keys>) -> String {
    let Addresses { quic, traffic, .. } = addresses;
    let transport = keys.map_or(String::new(), |keys| {
        let key = &keys.private;
        format!(
            "[server.transport]\ntype = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{key}\"\n"
        )
    });
    format!(
        "[server]\nbind_addr = \"{quic}\"\ndefault_token = \"bench\"\n{transport}\
         [server.services.tcp]\ntype = \"tcp\"\nbind_addr = \"{traffic}\"\n\
         [server.services.udp]\ntype = \"udp\"\nbind_addr = \"{traffic}\"\n"
    )
}

/// The client's config.
pub(super) fn client_toml(addresses: &Addresses, keys: Option<&Keys>) -> String {
    let Addresses { quic, service, .. } = addresses;
    let transport = keys.map_or(String::new(), |keys| {
        let key = &keys.public;
        format!(
            "[client.transport]\ntype = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{key}\"\n"
        )
    });
    format!(
        "[client]\nremote_addr = \"{quic}\"\ndefault_token = \"bench\"\n{transport}\
         [client.services.tcp]\ntype = \"tcp\"\nlocal_addr = \"{service}\"\n\
         [client.services.udp]\ntype = \"udp\"\nlocal_addr = \"{service}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_the_output() {
        let keys = Keys::parse("Private Key:\nabc+/=\n\nPublic Key:\ndef==\n").expect("keys");
        assert_eq!(
            (keys.private.as_str(), keys.public.as_str()),
            ("abc+/=", "def==")
        );
        assert_eq!(Keys::parse("usage: rathole"), None);
    }
}
