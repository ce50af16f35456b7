//! Whether lanes can go over TLS: TCP to the server's port, and a handshake in which the server
//! shows that it speaks the tunnel's protocol there.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use boring::ssl::{HandshakeError, Ssl};
use qmux_config::{Proxy, ServerTarget, Transport};
use qmux_proto::ALPN_OVER_TLS;

use super::credentials::Credentials;

/// How long TCP may take to connect, and each step of the handshake.
const PATIENCE: Duration = Duration::from_secs(5);

const THROUGH_A_PROXY: &str = "; whether TLS gets through the proxy, the client's log says";

/// The addition to a sentence that says that the server's name cannot be resolved; empty where no
/// proxy is asked for it.
pub(super) fn beside_the_name(server: &ServerTarget) -> String {
    match (server.transport, &server.proxy) {
        (Transport::Quic, _) | (_, Proxy::None) => String::new(),
        _ => format!("; the client gives the name to its proxy{THROUGH_A_PROXY}"),
    }
}

/// The addition to a sentence that says that UDP does not get through; empty where TLS is not to be
/// tried.
pub(super) fn beside_udp(
    server: &ServerTarget,
    credentials: &Credentials,
    peer: SocketAddr,
) -> String {
    match (server.transport, &server.proxy) {
        (Transport::Quic, _) => {
            "; transport = \"quic\" keeps the client from going over TLS, which \"auto\" does not"
                .into()
        }
        (_, Proxy::Fixed(_) | Proxy::Environment) => THROUGH_A_PROXY.into(),
        (_, Proxy::None) => match try_it(server, credentials, peer) {
            Ok(()) => format!(
                "; TLS to {peer} over TCP gets through, so the client serves over it meanwhile, and goes \
                 over UDP as soon as it can"
            ),
            Err(why) => format!("; nor does TLS over TCP: {why}"),
        },
    }
}

/// Tries a TLS handshake.
///
/// # Errors
/// The reason why it does not work.
pub(super) fn try_it(
    server: &ServerTarget,
    credentials: &Credentials,
    peer: SocketAddr,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect_timeout(&peer, PATIENCE).map_err(|error| text(&error))?;
    for timeout in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        timeout(&stream, Some(PATIENCE)).map_err(|error| text(&error))?;
    }
    let (mut context, _noted) = credentials.context().map_err(|error| text(&error))?;
    let mut protocols = vec![u8::try_from(ALPN_OVER_TLS.len()).unwrap_or(0)];
    protocols.extend_from_slice(ALPN_OVER_TLS);
    context
        .set_alpn_protos(&protocols)
        .map_err(|error| text(&error))?;
    let mut ssl = Ssl::new(&context.build()).map_err(|error| text(&error))?;
    let name = server.server_name.as_str();
    let expected = match name.parse() {
        Ok(ip) => ssl.param_mut().set_ip(ip),
        Err(_) => ssl
            .set_hostname(name)
            .and_then(|()| ssl.param_mut().set_host(name)),
    };
    expected.map_err(|error| text(&error))?;
    let stream = ssl.connect(stream).map_err(|error| match error {
        HandshakeError::WouldBlock(_) => "the handshake stalls".to_owned(),
        error => error.to_string(),
    })?;
    if stream.ssl().selected_alpn_protocol() == Some(ALPN_OVER_TLS) {
        Ok(())
    } else {
        Err("a TLS server answers there that is no server of qmux-dp".into())
    }
}
