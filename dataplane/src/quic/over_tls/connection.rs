//! A TLS connection before an endpoint owns it: the handshake, on both sides.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use boring::ssl::{ErrorCode, Ssl, SslContext};

use super::pipe::{Side, TlsPipe};
use crate::core::time;
use crate::quic::tls;
use crate::sys::tcp::TcpSocket;

/// Bytes of one read in a handshake; a certificate chain takes several reads.
const CHUNK_BYTES: usize = 4 << 10;

/// Bytes that a peer may send before the handshake is complete. A chain of certificates is some
/// kilobytes.
const HANDSHAKE_BYTES_MAX: usize = 128 << 10;

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFailure {
    /// The connection to the network failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer ended the connection during the handshake.
    #[error("the peer closed the connection in the TLS handshake")]
    Closed,
    /// The handshake took too long.
    #[error("the TLS handshake did not complete in {} s", .0.as_secs())]
    Slow(Duration),
    /// The peer speaks TLS, but not this protocol in it.
    #[error(
        "a TLS server answers there, but it is no server of qmux-dp, or one with tls_fallback = false"
    )]
    OtherProtocol,
    /// The peer's certificate was refused.
    #[error("the server's certificate is not accepted: {0}")]
    BadCertificate(String),
    /// TLS has failed for another reason.
    #[error("TLS: {0}")]
    Tls(String),
    /// The peer sent more than belongs to a handshake.
    #[error("the peer sent too much in the TLS handshake")]
    TooMuch,
}

/// A TLS connection whose handshake is complete, on its way to the endpoint that will own it, which
/// may be on another core.
#[derive(Debug)]
pub(crate) struct TlsConnection {
    pub(super) stream: TcpStream,
    pub(super) pipe: TlsPipe,
    /// Clear bytes that have come and are not a whole packet, or have not been looked at.
    pub(super) rest: Vec<u8>,
    /// The peer's address, as TCP knows it.
    pub(crate) peer: SocketAddr,
    /// The local address.
    pub(crate) local: IpAddr,
    /// On a server, the deadline for a registered lane to use the connection.
    pub(crate) claim_until: Option<Instant>,
    /// Whether the core that accepted the connection has handed it over.
    pub(super) handed_over: bool,
}

/// Performs the handshake of a client on a connected socket.
///
/// # Errors
/// The reason why it failed.
pub(crate) async fn connect(
    socket: TcpSocket,
    context: &SslContext,
    server_name: &str,
    patience: Duration,
) -> Result<TlsConnection, TlsFailure> {
    let mut ssl = Ssl::new(context).map_err(|error| TlsFailure::Tls(error.to_string()))?;
    tls::expect_server(&mut ssl, server_name)
        .map_err(|error| TlsFailure::Tls(error.to_string()))?;
    shake_hands(socket, ssl, Side::Client, patience).await
}

/// Performs the handshake of a server on an accepted socket.
///
/// # Errors
/// The reason why it failed.
pub(crate) async fn accept(
    socket: TcpSocket,
    context: &SslContext,
    patience: Duration,
) -> Result<TlsConnection, TlsFailure> {
    let ssl = Ssl::new(context).map_err(|error| TlsFailure::Tls(error.to_string()))?;
    shake_hands(socket, ssl, Side::Server, patience).await
}

async fn shake_hands(
    socket: TcpSocket,
    ssl: Ssl,
    side: Side,
    patience: Duration,
) -> Result<TlsConnection, TlsFailure> {
    let mut pipe = TlsPipe::new(ssl, side).map_err(|error| TlsFailure::Tls(error.to_string()))?;
    let done = time::timeout(patience, complete(&socket, &mut pipe)).await;
    done.map_err(|_| TlsFailure::Slow(patience))??;
    if pipe.ssl().selected_alpn_protocol() != Some(qmux_proto::ALPN_OVER_TLS) {
        return Err(TlsFailure::OtherProtocol);
    }
    let stream = socket.try_clone()?;
    Ok(TlsConnection {
        peer: stream.peer_addr()?,
        local: stream.local_addr()?.ip(),
        stream,
        pipe,
        rest: Vec::new(),
        claim_until: None,
        handed_over: false,
    })
}

async fn complete(socket: &TcpSocket, pipe: &mut TlsPipe) -> Result<(), TlsFailure> {
    // The buffer is not in the future, which would then be as large for each stranger several times
    // over.
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut came = 0;
    loop {
        let done = pipe.handshake();
        // An alert is sent as well: it tells the peer the reason.
        send_all(socket, pipe.outgoing()).await?;
        match done {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => return Err(explain(pipe, &error)),
        }
        let count = match socket.try_read(&mut buffer) {
            Ok(0) => return Err(TlsFailure::Closed),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        came += count;
        if came > HANDSHAKE_BYTES_MAX {
            return Err(TlsFailure::TooMuch);
        }
        pipe.came(&buffer[..count]);
    }
}

fn explain(pipe: &TlsPipe, error: &boring::ssl::Error) -> TlsFailure {
    if let Err(why) = pipe.ssl().verify_result()
        && pipe.side() == Side::Client
    {
        return TlsFailure::BadCertificate(why.error_string().to_owned());
    }
    let text = match (error.code(), error.ssl_error()) {
        (ErrorCode::SSL, Some(stack)) => {
            let reasons = stack
                .errors()
                .iter()
                .filter_map(boring::error::Error::reason);
            reasons.collect::<Vec<_>>().join(", ")
        }
        _ => error.to_string(),
    };
    if text.contains("NO_APPLICATION_PROTOCOL") {
        return TlsFailure::OtherProtocol;
    }
    TlsFailure::Tls(text)
}

/// Sends all bytes, however long the socket takes.
async fn send_all(socket: &TcpSocket, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.try_write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    bytes.clear();
    Ok(())
}
