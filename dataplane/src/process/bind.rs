//! Binding every socket of every core, once and in order, before any core runs: errors come from one place.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use qmux_config::{AdminListen, Config, Listener, Server, TrafficAddr};

use crate::process::exit::Failure;
use crate::server::ListenerSockets;
use crate::sys::bind::{
    GrantedBuffers, UDP_BUFFER_BYTES, probe_free, raise_udp_buffers, tcp_reuseport, udp_reuseport,
};
use crate::sys::steering;

/// Where this machine has no IPv6 at all, `[::]`, which means every address, becomes `0.0.0.0`,
/// with a warning. `has_ipv6` is asked only if there is such an address.
pub(crate) fn without_ipv6(mut config: Config, has_ipv6: impl FnOnce() -> bool) -> Config {
    let admin = config
        .admin
        .iter_mut()
        .filter_map(|it| match &mut it.listen {
            AdminListen::Tcp(address) => Some(address),
            AdminListen::Unix(_) => None,
        });
    let mut addresses: Vec<&mut SocketAddr> = admin.collect();
    let mut traffic: Vec<&mut TrafficAddr> = Vec::new();
    for door in config.server.iter_mut().flat_map(|it| &mut it.doors) {
        addresses.extend(&mut door.quic_addrs);
        traffic.extend(door.services.iter_mut().map(|it| &mut it.traffic));
    }
    addresses.retain(|it| it.ip() == Ipv6Addr::UNSPECIFIED);
    traffic.retain(|it| it.ip() == Ipv6Addr::UNSPECIFIED);
    if (addresses.is_empty() && traffic.is_empty()) || has_ipv6() {
        return config;
    }
    tracing::warn!("this machine has no IPv6: [::] in the config is taken for 0.0.0.0");
    for address in addresses {
        address.set_ip(Ipv4Addr::UNSPECIFIED.into());
    }
    for address in traffic {
        address.set_ip(Ipv4Addr::UNSPECIFIED.into());
    }
    config
}

/// The sockets of all listeners, per core: `result[core][listener]`.
///
/// # Errors
/// The first address that cannot be bound, with the reason.
pub(crate) fn all(server: &Server, cores: usize) -> Result<Vec<Vec<ListenerSockets>>, Failure> {
    let mut per_core: Vec<Vec<ListenerSockets>> = (0..cores).map(|_| Vec::new()).collect();
    let mut warned = false;
    for listener in &server.listeners() {
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

/// Why an address cannot be had, with what to do.
pub(super) fn cannot(addr: SocketAddr, protocol: &str, error: &std::io::Error) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_for_all_becomes_that_of_ipv4_where_there_is_no_ipv6() {
        let config = || {
            let dir = tempfile::tempdir().expect("a directory");
            let request = qmux_config::certs::CertsRequest {
                server_names: vec!["tunnel.test".into()],
                days: 30,
            };
            let certs = qmux_config::certs::generate(&request).expect("certificates");
            qmux_config::certs::write(&certs, dir.path(), false).expect("written");
            let text = r#"
                [[server.listeners]]
                quic_addr = "[::]:8443"
                traffic_addr = "[::1]:8080"
                protocol = "both"
                [server.auth]
                method = "mtls"
                ca_cert_file = "ca.crt"
                [server.tls]
                server_cert_file = "server.crt"
                server_key_file = "server.key"
                [admin]
                listen = "[::]:9600"
            "#;
            Config::parse(text, &dir.path().join("dp.toml")).expect("a config")
        };
        let shown = |config: &Config| {
            let listener = &config.server.as_ref().expect("a server").listeners()[0];
            let admin = &config.admin.as_ref().expect("an admin endpoint").listen;
            let (quic, traffic) = (listener.quic_addr, listener.traffic_addr);
            [quic.to_string(), traffic.to_string(), admin.to_string()]
        };
        let without = without_ipv6(config(), || false);
        let expected = ["0.0.0.0:8443", "[::1]:8080", "0.0.0.0:9600"];
        assert_eq!(shown(&without), expected);
        let with = without_ipv6(config(), || true);
        assert_eq!(shown(&with), ["[::]:8443", "[::1]:8080", "[::]:9600"]);
    }
}
