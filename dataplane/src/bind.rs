//! Binding every socket of every core, once and in order, before any core runs: errors come from one place.

use std::net::{SocketAddr, TcpListener};

use qmux_config::{Admin, Listener, Server};

use crate::exit::Failure;
use crate::server::ListenerSockets;
use crate::sys::bind::{
    GrantedBuffers, UDP_BUFFER_BYTES, probe_free, raise_udp_buffers, tcp_alone, tcp_reuseport,
    udp_reuseport,
};
use crate::sys::steering;

/// The sockets of all listeners, per core: `result[core][listener]`.
///
/// # Errors
/// The first address that cannot be bound, with the reason.
pub(crate) fn all(server: &Server, cores: usize) -> Result<Vec<Vec<ListenerSockets>>, Failure> {
    let mut per_core: Vec<Vec<ListenerSockets>> = (0..cores).map(|_| Vec::new()).collect();
    let mut warned = false;
    for listener in &server.listeners {
        probe(listener)?;
        for sockets in &mut per_core {
            let bound = one(listener)?;
            if !warned {
                let granted = raise_udp_buffers(&bound.quic)
                    .map_err(|error| cannot(listener.quic_addr, "UDP", &error))?;
                warned = warn_of_small_buffers(granted);
            } else {
                // The same answer as before; warned of once.
                let _granted = raise_udp_buffers(&bound.quic);
            }
            if let Some(udp) = &bound.udp {
                let _granted = raise_udp_buffers(udp);
            }
            sockets.push(bound);
        }
        if cores > 1
            && let Some(first) = per_core[0].last()
        {
            steering::attach(&first.quic, cores).map_err(|error| {
                Failure::Running(format!(
                    "{}: packets cannot be steered to cores: {error}",
                    listener.quic_addr
                ))
            })?;
        }
    }
    Ok(per_core)
}

/// Fails if an address of `listener` is not free or not of this machine.
///
/// # Errors
/// The address and the reason.
pub(crate) fn probe(listener: &Listener) -> Result<(), Failure> {
    probe_free(listener.quic_addr, false)
        .map_err(|error| cannot(listener.quic_addr, "UDP", &error))?;
    if listener.protocol.tcp() {
        probe_free(listener.traffic_addr, true)
            .map_err(|error| cannot(listener.traffic_addr, "TCP", &error))?;
    }
    if listener.protocol.udp() {
        probe_free(listener.traffic_addr, false)
            .map_err(|error| cannot(listener.traffic_addr, "UDP", &error))?;
    }
    Ok(())
}

/// The socket of the admin endpoint.
///
/// # Errors
/// The address, its key and the reason.
pub(crate) fn admin(admin: &Admin) -> Result<TcpListener, Failure> {
    probe_free(admin.listen, true)
        .and_then(|()| tcp_alone(admin.listen))
        .map_err(|error| match cannot(admin.listen, "TCP", &error) {
            Failure::Input(text) => Failure::Input(format!("admin.listen: {text}")),
            other => other,
        })
}

fn one(listener: &Listener) -> Result<ListenerSockets, Failure> {
    let traffic = listener.traffic_addr;
    Ok(ListenerSockets {
        quic: udp_reuseport(listener.quic_addr)
            .map_err(|error| cannot(listener.quic_addr, "UDP", &error))?,
        tcp: if listener.protocol.tcp() {
            Some(tcp_reuseport(traffic).map_err(|error| cannot(traffic, "TCP", &error))?)
        } else {
            None
        },
        udp: if listener.protocol.udp() {
            Some(udp_reuseport(traffic).map_err(|error| cannot(traffic, "UDP", &error))?)
        } else {
            None
        },
    })
}

fn cannot(addr: SocketAddr, protocol: &str, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another program (or another qmux-dp) uses it",
        std::io::ErrorKind::AddrNotAvailable => "; it is no address of this machine",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    };
    Failure::Input(format!("cannot bind {protocol} {addr}: {error}{hint}"))
}

/// True if a warning was logged.
fn warn_of_small_buffers(granted: GrantedBuffers) -> bool {
    let smallest = granted.receive_bytes.min(granted.send_bytes);
    if smallest >= UDP_BUFFER_BYTES {
        return false;
    }
    tracing::warn!(
        granted_bytes = smallest,
        wanted_bytes = UDP_BUFFER_BYTES,
        "the kernel grants only small UDP buffers: expect loss under load; raise them with \
         `sysctl -w net.core.rmem_max={UDP_BUFFER_BYTES} net.core.wmem_max={UDP_BUFFER_BYTES}`"
    );
    true
}
