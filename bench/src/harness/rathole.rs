//! Configs of rathole, the peer that comes without QUIC.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use qmux_harness::Launch;

use super::site::Addresses;

/// How long `rathole --genkey` may take.
const GENKEY_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    private: String,
    public: String,
}

impl Keys {
    pub(super) fn generate(program: &Path) -> Result<Self> {
        let launch = Launch::new("rathole --genkey", program).args(["--genkey"]);
        let output = launch.output(GENKEY_LIMIT)?;
        Self::parse(&output).with_context(|| format!("{}: no keys in {output:?}", launch.name))
    }

    /// "Private Key:", the key in a line of its own, the same for the public one.
    fn parse(output: &str) -> Option<Self> {
        let of = |which: &str| {
            let (_, rest) = output.split_once(&format!("{which} Key:"))?;
            rest.split_whitespace().next().map(str::to_owned)
        };
        Some(Self {
            private: of("Private")?,
            public: of("Public")?,
        })
    }
}

pub(super) fn configs(addresses: &Addresses, keys: Option<&Keys>) -> [String; 2] {
    let Addresses {
        quic,
        traffic,
        service,
        ..
    } = addresses;
    let config = |role, at, (name, key): (&str, Option<&String>), to| {
        let noise = key.map_or(String::new(), |key| {
            let transport = format!("[{role}.transport]\ntype = \"noise\"\n");
            format!("{transport}[{role}.transport.noise]\n{name} = \"{key}\"\n")
        });
        format!(
            "[{role}]\n{at} = \"{quic}\"\ndefault_token = \"bench\"\n{noise}\
             [{role}.services.tcp]\ntype = \"tcp\"\n{to}\"\n\
             [{role}.services.udp]\ntype = \"udp\"\n{to}\"\n"
        )
    };
    let private = ("local_private_key", keys.map(|it| &it.private));
    let public = ("remote_public_key", keys.map(|it| &it.public));
    [
        config(
            "server",
            "bind_addr",
            private,
            format!("bind_addr = \"{traffic}"),
        ),
        config(
            "client",
            "remote_addr",
            public,
            format!("local_addr = \"{service}"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_the_output() {
        let keys = Keys::parse("Private Key:\nabc+/=\n\nPublic Key:\ndef==\n").expect("keys");
        let keys = [keys.private, keys.public];
        assert_eq!(keys, ["abc+/=", "def=="]);
        assert_eq!(Keys::parse("usage: rathole"), None);
    }
}
