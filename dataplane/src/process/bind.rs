//! Binding every socket of every core, once and in order, before any core runs: errors come from
//! one place.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use qmux_config::{AdminListen, Config, Door, Server, TlsFallback, TrafficAddr};

use crate::process::exit::Failure;
use crate::process::handover::Inherited;
use crate::server::shared::plan::{DoorSockets, EntranceSockets, Plan, SharedEntrance};
use crate::server::succession::SocketUse;
use crate::sys::bind::{
    GrantedBuffers, UDP_BUFFER_BYTES, probe_free, raise_udp_buffers, tcp_reuseport, udp_reuseport,
};
use crate::sys::steering;

/// Replaces `[::]`, which means every address, by `0.0.0.0`, with a warning, if this machine has no
/// IPv6 at all. `has_ipv6` is called only if there is such an address.
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
    let taken = "this machine has no IPv6: [::] in the config is taken for 0.0.0.0";
    config.warnings.push(taken.into());
    for address in addresses {
        address.set_ip(Ipv4Addr::UNSPECIFIED.into());
    }
    for address in traffic {
        address.set_ip(Ipv4Addr::UNSPECIFIED.into());
    }
    config
}

/// The sockets of everything that a plan opens, per core: `result[core][door]`. `is_ours` returns
/// true for addresses that are not free because this process has them.
///
/// # Errors
/// The first address that cannot be bound, with the reason. Then nothing is bound.
pub(crate) fn all(
    plan: &Plan,
    cores: usize,
    inherited: Option<&mut Inherited>,
    is_ours: impl Fn(SocketAddr, bool) -> bool,
) -> Result<Vec<Vec<DoorSockets>>, Failure> {
    let mut per_core: Vec<Vec<DoorSockets>> = (0..cores).map(|_| Vec::new()).collect();
    let mut warned = false;
    let mut source = Source(inherited);
    for door in &plan.doors {
        let quic_addrs = if door.is_new { door.quic_addrs() } else { &[] };
        for address in quic_addrs {
            if !source.has(SocketUse::Quic, *address) {
                let free = probe_free(*address, false);
                free.map_err(|error| for_clients(plan, *address, &error))?;
            }
        }
        for entrance in door.services.iter().flat_map(|it| &it.opened) {
            let address = entrance.traffic_addr;
            for (tcp, wanted) in [(true, entrance.tcp), (false, entrance.udp)] {
                let used_for = if tcp { SocketUse::Tcp } else { SocketUse::Udp };
                if wanted && !is_ours(address, tcp) && !source.has(used_for, address) {
                    let free = probe_free(address, tcp);
                    free.map_err(|error| for_visitors(plan, address, tcp, &error))?;
                }
            }
        }
        for (core, sockets) in per_core.iter_mut().enumerate() {
            let services = door.services.iter();
            let services = services.map(|it| entrances(&it.opened, core, &mut source));
            let services: Vec<_> = services.collect::<Result<_, _>>()?;
            sockets.push(DoorSockets {
                quic: quic(quic_addrs, core, &mut source, &mut warned)?,
                tls: Vec::new(),
                services,
            });
        }
        let first = per_core.first().and_then(|sockets| sockets.last());
        let quic = first.map_or(&[][..], |sockets| &sockets.quic);
        for (socket, address) in quic.iter().zip(quic_addrs).filter(|_| cores > 1) {
            steering::attach(socket, cores).map_err(|error| {
                let text = format!("{address}: packets cannot be steered to cores: {error}");
                Failure::Running(text)
            })?;
        }
    }
    let inherits = source.0.is_some();
    bind_tls(plan, &mut per_core, inherits)?;
    Ok(per_core)
}

/// The source of sockets: those of the process before this one first.
struct Source<'a>(Option<&'a mut Inherited>);

impl Source<'_> {
    fn has(&self, used_for: SocketUse, address: SocketAddr) -> bool {
        let inherited = self.0.as_ref();
        inherited.is_some_and(|inherited| inherited.has(used_for, address))
    }

    fn take(
        &mut self,
        used_for: SocketUse,
        address: SocketAddr,
        core: usize,
    ) -> Result<Option<OwnedFd>, Failure> {
        let Some(inherited) = &mut self.0 else {
            return Ok(None);
        };
        if !inherited.has(used_for, address) {
            return Ok(None);
        }
        let socket = inherited.take(used_for, address, core);
        let missing = || {
            let text = format!("{address}: the process before this one lends too few sockets");
            Failure::Running(text)
        };
        socket.map(Some).ok_or_else(missing)
    }
}

/// Adds the sockets for TLS at the addresses of new doors, after all others: where a port is taken,
/// and the configuration does not require TLS, there is none. The process before this one, if there
/// is one, has its own beside them.
fn bind_tls(plan: &Plan, per_core: &mut [Vec<DoorSockets>], inherits: bool) -> Result<(), Failure> {
    let server = plan.server();
    if server.tls_fallback == TlsFallback::Off {
        return Ok(());
    }
    for (number, door) in plan.doors.iter().enumerate().filter(|(_, it)| it.is_new) {
        for address in door.quic_addrs() {
            let shared =
                inherits && !server.takes_tcp_at(*address) && tcp_reuseport(*address).is_ok();
            let free = shared || is_for_tls(server, *address)?;
            for sockets in &mut *per_core {
                let socket = free.then(|| tcp_reuseport(*address)).transpose();
                let socket = socket.map_err(|error| cannot(*address, true, &error))?;
                sockets[number].tls.push(socket);
            }
        }
    }
    Ok(())
}

/// Whether TLS can be offered at this address, with a warning if not.
///
/// # Errors
/// If the configuration requires it.
fn is_for_tls(server: &Server, address: SocketAddr) -> Result<bool, Failure> {
    let error = if server.takes_tcp_at(address) {
        // The address is one for visitors, so there is nothing to wait for.
        std::io::ErrorKind::AddrInUse.into()
    } else {
        match probe_free(address, true) {
            Ok(()) => return Ok(true),
            Err(error) => error,
        }
    };
    if server.tls_fallback == TlsFallback::On {
        let why = format!(
            "{}; without TLS there, write tls_fallback = false in [server]",
            cannot(address, true, &error)
        );
        let tcp = true;
        return Err(Failure::Address { address, tcp, why });
    }
    tracing::warn!(
        %address,
        %error,
        "clients cannot come over TLS: TCP cannot be bound there; where UDP does not pass they cannot connect; \
         tls_fallback = false in [server] ends this warning"
    );
    Ok(false)
}

fn probe_one(address: SocketAddr, tcp: bool) -> Result<(), Failure> {
    probe_free(address, tcp).map_err(|error| cannot(address, tcp, &error))
}

/// The reason why clients cannot be taken at an address that is not free.
fn for_clients(plan: &Plan, address: SocketAddr, error: &std::io::Error) -> Failure {
    let is_taken = error.kind() == std::io::ErrorKind::AddrInUse;
    let Some(own) = plan.own_door_at(address).filter(|_| is_taken) else {
        return cannot(address, false, error);
    };
    let own: Vec<_> = own.iter().map(|it| format!("\"{it}\"")).collect();
    let why = format!(
        "cannot bind UDP {address}: this process itself takes clients there, with quic_addr = [{0}]; \
         a reload can change quic_addr only if no old address stays in it: restart to use the new \
         list, or put [{0}] back",
        own.join(", ")
    );
    Failure::Address {
        address,
        tcp: false,
        why,
    }
}

/// The reason why visitors cannot be taken at an address that is not free.
fn for_visitors(plan: &Plan, address: SocketAddr, tcp: bool, error: &std::io::Error) -> Failure {
    let is_taken = error.kind() == std::io::ErrorKind::AddrInUse;
    if !(tcp && is_taken && plan.is_of_a_door_that_stays(address)) {
        return cannot(address, tcp, error);
    }
    let why = format!(
        "cannot bind TCP {address}: {error}; the door at that port takes clients over TLS there \
         (tls_fallback), which only a restart changes: restart, and visitors get it, or use another \
         port"
    );
    Failure::Address { address, tcp, why }
}

/// Checks the addresses of `door`.
///
/// # Errors
/// The first address that is not free or not of this machine, and the reason.
pub(crate) fn probe(door: &Door) -> Result<(), Failure> {
    for address in &door.quic_addrs {
        probe_one(*address, false)?;
    }
    for service in &door.services {
        for address in service.traffic.addresses() {
            if service.protocol.tcp() {
                probe_one(address, true)?;
            }
            if service.protocol.udp() {
                probe_one(address, false)?;
            }
        }
    }
    Ok(())
}

/// How many file descriptors the sockets of all doors take: `main` has each socket for TCP visitors
/// once more, to close them all together.
pub(crate) fn descriptors(server: &Server, cores: usize) -> u64 {
    let services = server.doors.iter().flat_map(|door| &door.services);
    let tcp = services.filter(|service| service.protocol.tcp());
    let tcp_ports: u64 = tcp.map(|it| u64::from(it.traffic.ports().count())).sum();
    server.sockets(cores) + tcp_ports * cores as u64
}

/// Checks the limit of open files (`None`: unlimited). Returns a warning if few are left for flows.
///
/// # Errors
/// If the sockets need more than the limit. The message says how many are needed, how many there
/// are and what to do.
pub(crate) fn judge_descriptors(
    server: &Server,
    cores: usize,
    allowed: Option<u64>,
) -> Result<Option<String>, Failure> {
    let needed = descriptors(server, cores);
    let Some(allowed) = allowed else {
        return Ok(None);
    };
    let what = format!(
        "the sockets of all doors and services take {needed} file descriptors on {cores} cores, \
         and {allowed} may be open"
    );
    let remedy = "raise the limit (ulimit -n, LimitNOFILE= of systemd), or run fewer --cores";
    if needed >= allowed {
        return Err(Failure::Input(format!("{what}: {remedy}")));
    }
    Ok((needed > allowed / 2).then(|| format!("{what}, so few are left for flows: {remedy}")))
}

fn quic(
    addresses: &[SocketAddr],
    core: usize,
    source: &mut Source<'_>,
    warned: &mut bool,
) -> Result<Vec<UdpSocket>, Failure> {
    let sockets = addresses.iter().map(|address| {
        let failed = |error| cannot(*address, false, &error);
        let socket = match source.take(SocketUse::Quic, *address, core)? {
            Some(inherited) => inherited.into(),
            None => udp_reuseport(*address).map_err(failed)?,
        };
        let granted = raise_udp_buffers(&socket).map_err(failed)?;
        // The result is the same for all sockets, and is logged once.
        if !*warned {
            *warned = warn_of_small_buffers(granted);
        }
        Ok(socket)
    });
    sockets.collect()
}

/// The sockets of some entrances on one core.
fn entrances(
    opened: &[SharedEntrance],
    core: usize,
    source: &mut Source<'_>,
) -> Result<Vec<EntranceSockets>, Failure> {
    let sockets = opened.iter().map(|entrance| {
        let address = entrance.traffic_addr;
        let mut tcp = || match source.take(SocketUse::Tcp, address, core)? {
            Some(inherited) => Ok(inherited.into()),
            None => tcp_reuseport(address).map_err(|error| cannot(address, true, &error)),
        };
        let tcp = entrance.tcp.then(&mut tcp).transpose()?;
        let mut udp = || match source.take(SocketUse::Udp, address, core)? {
            Some(inherited) => Ok(inherited.into()),
            None => udp_reuseport(address).map_err(|error| cannot(address, false, &error)),
        };
        let udp = entrance.udp.then(&mut udp).transpose()?;
        if let Some(udp) = &udp {
            let _granted = raise_udp_buffers(udp);
        }
        Ok(EntranceSockets { tcp, udp })
    });
    sockets.collect()
}

/// The reason why an address cannot be bound, with what to do.
pub(super) fn cannot(address: SocketAddr, tcp: bool, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another program (or another qmux-dp) uses it",
        std::io::ErrorKind::AddrNotAvailable => "; it is no address of this machine",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    };
    let protocol = if tcp { "TCP" } else { "UDP" };
    let why = format!("cannot bind {protocol} {address}: {error}{hint}");
    Failure::Address { address, tcp, why }
}

/// Warns of small buffers. Returns true if a warning was logged.
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
