//! What can be wrong before anything runs. All of it is for the operator, and exits with 2.

use std::io;
use std::net::SocketAddr;

/// Why the program does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Config(#[from] qmux_config::Errors),
    #[error("{from}: {what}: {reason}")]
    Certificate {
        from: String,
        what: &'static str,
        reason: String,
    },
    #[error(
        "server.auth.method: quinn-dp knows \"mtls\" only; it must be \"mtls\", with \
         ca_cert_file and without crl_file"
    )]
    TokenAuth,
    #[error(
        "client.client_id: {0:?} cannot stand on the wire; it must be 1 to 128 bytes without control characters"
    )]
    ClientId(String),
    #[error(
        "quinn-dp knows [[server.listeners]] and [client.local] only, for comparison; it must be a \
         config without [[server.services]], [[server.clients]] and [[client.services]], and without \
         protocol and proxy_protocol in [client.local]"
    )]
    NamedServices,
    #[error(
        "{key} {address}: the {socket} socket cannot be bound: {source}; it must be a free address of this host"
    )]
    Bind {
        key: &'static str,
        address: SocketAddr,
        socket: &'static str,
        source: io::Error,
    },
}
