//! How a service is told who its visitors are: by a PROXY protocol header before their bytes, as
//! specified by HAProxy (`doc/proxy-protocol.txt`).

use std::fmt;

use toml::Spanned;

use crate::section::Section;
use crate::server::ListenerProtocol;

/// The header that a service gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// There is none: the service gets the visitor's bytes alone.
    #[default]
    Off,
    /// Version 1, a line of text, for TCP only.
    V1,
    /// Version 2, which is binary, for TCP and UDP.
    V2,
}

/// The datagrams of a UDP flow that have the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocolUdp {
    /// Every datagram.
    #[default]
    Every,
    /// The first datagram to each socket address of the service.
    First,
}

const VERSIONS: [(&str, ProxyProtocol); 3] = [
    ("off", ProxyProtocol::Off),
    ("v1", ProxyProtocol::V1),
    ("v2", ProxyProtocol::V2),
];

const DATAGRAMS: [(&str, ProxyProtocolUdp); 2] = [
    ("every", ProxyProtocolUdp::Every),
    ("first", ProxyProtocolUdp::First),
];

impl fmt::Display for ProxyProtocol {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// Reads both keys of a service that speaks `protocol`.
pub(crate) fn read(
    section: &Section<'_>,
    protocol: ListenerProtocol,
) -> (ProxyProtocol, ProxyProtocolUdp) {
    let version = section.choice("proxy_protocol", &VERSIONS);
    let datagrams = section.choice("proxy_protocol_udp", &DATAGRAMS);
    if let Some(version) = &version
        && *version.get_ref() == ProxyProtocol::V1
        && protocol.udp()
    {
        let message = format!(
            "\"v1\" has no form for UDP, and this service speaks {protocol:?}; it must be \"v2\", \
             or the service must have protocol = \"tcp\"",
            protocol = protocol.to_string()
        );
        section.problem_at("proxy_protocol", &version.span(), message);
    }
    let version = version.map_or(ProxyProtocol::default(), Spanned::into_inner);
    if version == ProxyProtocol::Off {
        section.warn_unused(
            "proxy_protocol_udp",
            r#"is not used without proxy_protocol = "v2""#,
        );
    } else if !protocol.udp() {
        section.warn_unused(
            "proxy_protocol_udp",
            r#"is not used with protocol = "tcp": there are no datagrams"#,
        );
    }
    (
        version,
        datagrams.map_or(ProxyProtocolUdp::default(), Spanned::into_inner),
    )
}
