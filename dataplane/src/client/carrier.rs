//! TLS connections to servers, for lanes where UDP does not pass.

use std::rc::Rc;

use qmux_config::ServerTarget;

use super::ClientCore;
use super::server::ServerState;
use crate::core::time;
use crate::quic::over_tls::{self, TlsConnection};
use crate::quic::tls;
use crate::sys::tcp::TcpSocket;

/// Dials TLS at the server's address, which is where its QUIC is. Dropping this ends the attempt.
///
/// # Errors
/// Why there is no connection, for the operator.
pub(super) async fn dial(
    core: &Rc<ClientCore>,
    server: &ServerState,
) -> Result<TlsConnection, String> {
    let dialed = connect(core, server).await;
    let counters = &core.context.counters;
    let counter = match &dialed {
        Ok(_) => &counters.tls_dials,
        Err(_) => &counters.tls_dials_failed,
    };
    counter.increment();
    dialed.map_err(|why| format!("TLS to {}: {why}", server.address))
}

async fn connect(core: &Rc<ClientCore>, server: &ServerState) -> Result<TlsConnection, String> {
    let client = core.shared.client().ok_or("no [client] section")?;
    let patience = core.shared.config.quic.handshake_idle_timeout;
    let credentials = core.shared.credentials.get(client);
    let context = credentials
        .and_then(|credentials| tls::carrier_client(&credentials))
        .map_err(|error| error.to_string())?;
    let connecting = time::timeout(patience, TcpSocket::connect_carrier(server.address)).await;
    let socket = match connecting {
        Err(_) => return Err(format!("TCP is not answered within {} s", patience.as_secs_f32())),
        Ok(connected) => connected.map_err(|error| error.to_string())?,
    };
    over_tls::connect(socket, &context, &server.server_name, patience)
        .await
        .map_err(|failure| failure.to_string())
}

/// What the file says of the server.
pub(super) fn target<'a>(core: &'a ClientCore, server: &ServerState) -> Option<&'a ServerTarget> {
    core.shared.client()?.servers.get(server.target)
}
