//! Dialling TLS connections to servers, for lanes where UDP does not pass.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use qmux_config::Transport;
use qmux_config::proxy::Place;

use super::ClientCore;
use super::proxy;
use super::servers::server::ServerState;
use super::servers::stand_in;
use super::shared::{ProxyTarget, Target};
use crate::core::time;
use crate::quic::over_tls::{self, TlsConnection};
use crate::quic::tls;
use crate::sys::tcp::TcpSocket;

/// Addresses of a proxy that are tried, one after the other.
const PROXY_ADDRESSES_MAX: usize = 3;

/// Dials TLS at the server's address, which is the address of its QUIC. Dropping this future ends
/// the attempt.
///
/// # Errors
/// The reason why there is no connection, for the operator.
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
    dialed.map_err(|why| format!("TLS to {server}: {why}"))
}

async fn connect(core: &Rc<ClientCore>, server: &ServerState) -> Result<TlsConnection, String> {
    let settings = core.shared.settings();
    let client = settings.client().ok_or("no [client] section")?;
    let patience = settings.config.quic.handshake_idle_timeout;
    let credentials = core.shared.credentials.get(client);
    let context = credentials
        .and_then(|credentials| tls::carrier_client(&credentials))
        .map_err(|error| error.to_string())?;
    let target = target(core, server).ok_or("the server is not configured any more")?;
    let socket = match &target.proxy {
        Err(why) => return Err(why.clone()),
        Ok(None) if stand_in::is_one(server.address) => {
            return Err(format!(
                "this host cannot resolve {}, and no proxy is configured that could",
                target.configured.host
            ));
        }
        Ok(None) => connect_to(server.address, patience).await?,
        Ok(Some(proxy)) => {
            let place = place(core, server, &target);
            connect_through(&place, proxy, patience).await?
        }
    };
    over_tls::connect(socket, &context, &target.server_name, patience)
        .await
        .map_err(|failure| failure.to_string())
}

/// The configuration of the server.
fn target(core: &ClientCore, server: &ServerState) -> Option<Arc<Target>> {
    core.shared.targets().get(server.target()).cloned()
}

/// The configured transport for lanes to the server; TLS alone if only its proxy knows its address.
pub(super) fn transport(core: &ClientCore, server: &ServerState) -> Transport {
    if stand_in::is_one(server.address) {
        return Transport::Tls;
    }
    target(core, server).map_or(Transport::Quic, |it| it.configured.transport)
}

async fn connect_to(address: SocketAddr, patience: Duration) -> Result<TcpSocket, String> {
    match time::timeout(patience, TcpSocket::connect_carrier(address)).await {
        Err(_) => Err(format!(
            "no answer over TCP within {} s",
            patience.as_secs_f32()
        )),
        Ok(connected) => connected.map_err(|error| error.to_string()),
    }
}

async fn connect_through(
    place: &Place,
    target: &ProxyTarget,
    patience: Duration,
) -> Result<TcpSocket, String> {
    let ProxyTarget { proxy, name } = target;
    let named = |why: String| format!("the proxy {proxy}: {why}");
    let addresses = name.addresses();
    let mut last = "its name cannot be resolved".to_owned();
    for address in addresses.iter().take(PROXY_ADDRESSES_MAX) {
        let socket = match connect_to(*address, patience).await {
            Ok(socket) => socket,
            Err(why) => {
                last = why;
                continue;
            }
        };
        let opening = proxy::open(&socket, proxy, place);
        return match time::timeout(patience, opening).await {
            Err(_) => Err(named(format!("no way within {} s", patience.as_secs_f32()))),
            Ok(Err(why)) => Err(named(why)),
            Ok(Ok(())) => Ok(socket),
        };
    }
    Err(named(last))
}

/// The destination that the proxy is asked for: the name in dp.toml, which the proxy may resolve
/// better than this host does, unless that name stands for several servers whose addresses are
/// known.
fn place(core: &ClientCore, server: &ServerState, target: &Target) -> Place {
    let only = core.shared.other_addresses(server).is_empty();
    let configured = &target.configured;
    let is_name_alone = only || stand_in::is_one(server.address);
    if is_name_alone && configured.host.parse::<IpAddr>().is_err() {
        Place::Name(configured.host.clone(), configured.port)
    } else {
        Place::Address(server.address)
    }
}
