//! The QUIC endpoints of quinn: their sockets and their configuration.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn::crypto::HmacKey;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use crate::cid::CoreConnectionIds;
use crate::gso_socket::GsoSocket;
use crate::transport::Settings;

/// The configuration that all endpoints of a server share.
pub(crate) struct QuicServer {
    config: ServerConfig,
    /// The key from which stateless reset tokens are computed (RFC 9000, section 10.3).
    reset_key: Arc<dyn HmacKey>,
}

impl QuicServer {
    /// The reset key is derived from the private key and so survives a restart: a client of the
    /// previous run learns from the answer to its next packet that its lane is gone, rather than
    /// from its idle timeout.
    pub(crate) fn new(tls: QuicServerConfig, private_key: &[u8], settings: &Settings) -> Self {
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(settings.server());
        let key = hmac::Key::new(hmac::HMAC_SHA256, private_key);
        let derived = hmac::sign(&key, b"qmux-dp stateless reset");
        Self {
            config,
            reset_key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())),
        }
    }
}

/// Binds a UDP socket, for an endpoint or for UDP visitors.
pub(crate) fn bind(address: SocketAddr, settings: &Settings) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    set_buffers(&socket, settings);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Gives the buffers of a UDP socket the size from the settings.
pub(crate) fn set_buffers(socket: &Socket, settings: &Settings) {
    if let Some(bytes) = settings.socket_buffer_bytes() {
        for result in [
            socket.set_recv_buffer_size(bytes),
            socket.set_send_buffer_size(bytes),
        ] {
            if let Err(error) = result {
                warn!(%error, "the buffers of a UDP socket stay at the system's default");
            }
        }
    }
}

/// The server's endpoint on a socket from [`bind`]. It must be called within the Tokio runtime.
pub(crate) fn server(
    socket: UdpSocket,
    server: &QuicServer,
    settings: &Settings,
) -> io::Result<Endpoint> {
    let mut endpoint = EndpointConfig::new(Arc::clone(&server.reset_key));
    adjust(&mut endpoint, settings);
    endpoint.cid_generator(|| Box::new(CoreConnectionIds));
    start(endpoint, Some(server.config.clone()), socket, settings)
}

/// The client's endpoint. Its socket has the address family of `server`, because the host may have
/// no IPv6.
pub(crate) fn client(settings: &Settings, server: SocketAddr) -> io::Result<Endpoint> {
    let address: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = bind(address, settings)?;
    let mut endpoint = EndpointConfig::default();
    adjust(&mut endpoint, settings);
    start(endpoint, None, socket, settings)
}

fn adjust(config: &mut EndpointConfig, settings: &Settings) {
    if settings.tuned() {
        let result = config.max_udp_payload_size(settings.packet_bytes_max());
        debug_assert!(result.is_ok(), "config allows at least 1,200 bytes");
    }
}

fn start(
    config: EndpointConfig,
    server: Option<ServerConfig>,
    socket: UdpSocket,
    settings: &Settings,
) -> io::Result<Endpoint> {
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    if !settings.tuned() {
        return Endpoint::new(config, server, socket, runtime);
    }
    let socket: Arc<dyn AsyncUdpSocket> = Arc::new(GsoSocket(runtime.wrap_udp_socket(socket)?));
    Endpoint::new_with_abstract_socket(config, server, socket, runtime)
}
