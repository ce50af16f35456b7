//! `qmux-dp demo`: a service, a server and a client in one process on loopback, with fresh certificates.

#[cfg(feature = "count-allocations")]
mod allocations;
mod report;
mod service;
mod traffic;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qmux_config::{Config, certs};
use tempfile::TempDir;

use crate::output;
use crate::process::exit::Failure;
use crate::process::run::{self, Events, Running};

/// Free ports are found by binding and letting go; someone may be quicker, so try again.
const START_ATTEMPTS: usize = 5;

/// The demo's own flows need no longer to finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the demo: until a signal, or once with traffic of its own.
///
/// # Errors
/// If something cannot be set up, or if a byte did not come back right.
pub(crate) fn run(once: bool, cores: Option<usize>) -> Result<(), Failure> {
    let cores = run::core_count(cores);
    let Tunnel {
        mut running,
        traffic,
        service,
        _certificates,
    } = set_up(cores, !once)?;
    output::line(format_args!(
        "qmux-dp demo: visitors at {traffic} → QUIC tunnel, {cores} cores → service at {service}"
    ));
    if once {
        let result = traffic::send(traffic).map(|measured| report::print(&measured));
        running.stop(DRAIN_TIMEOUT)?;
        return result.map_err(|why| Failure::Running(format!("demo: {why}")));
    }
    output::line(format_args!(
        "visit http://{traffic}/   or echo: nc {} {}   (-u for UDP)",
        traffic.ip(),
        traffic.port()
    ));
    output::line("stop with Ctrl-C");
    running.until_signal(DRAIN_TIMEOUT)
}

/// Counts what the demo's tunnel allocates, on one core.
///
/// # Errors
/// If something cannot be set up, or if a packet costs an allocation of ours.
#[cfg(feature = "count-allocations")]
pub(crate) fn count_allocations() -> Result<(), Failure> {
    let mut tunnel = set_up(1, false)?;
    let result = allocations::run(&tunnel.running, tunnel.traffic);
    tunnel.running.stop(DRAIN_TIMEOUT)?;
    result.map_err(|why| Failure::Running(format!("allocations: {why}")))
}

/// The demo's tunnel, with its service.
struct Tunnel {
    running: Running,
    traffic: SocketAddr,
    service: SocketAddr,
    /// Deleted at the end.
    _certificates: TempDir,
}

fn set_up(cores: usize, by_signals: bool) -> Result<Tunnel, Failure> {
    let directory =
        tempfile::tempdir().map_err(|error| failed("a directory for certificates", &error))?;
    let request = certs::CertsRequest {
        server_names: vec!["localhost".into()],
        days: 1,
    };
    let generated = certs::generate(&request).map_err(|error| failed("certificates", &error))?;
    certs::write(&generated, directory.path(), false)
        .map_err(|error| failed("certificates", &error))?;
    let service = service::start().map_err(|error| failed("the demo service", &error))?;
    let (running, traffic) = start(directory.path(), service, cores, by_signals)?;
    Ok(Tunnel {
        running,
        traffic,
        service,
        _certificates: directory,
    })
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Running(format!("demo: {what}: {error}"))
}

fn start(
    certs: &Path,
    service: SocketAddr,
    cores: usize,
    by_signals: bool,
) -> Result<(Running, SocketAddr), Failure> {
    let mut last = Failure::Running("demo: no free port".into());
    for _ in 0..START_ATTEMPTS {
        let (quic, traffic) = match free_addresses() {
            Ok(addresses) => addresses,
            // The number that is free for TCP may be taken for UDP.
            Err(error) => {
                last = failed("free ports", &error);
                continue;
            }
        };
        let config = Config::parse(&config_text(quic, traffic, service), &certs.join("dp.toml"))
            .map_err(|error| failed("its config", &error))?;
        let events = if by_signals {
            Events::with_signals()?
        } else {
            Events::without_signals()
        };
        match run::start(&Arc::new(config), cores, events) {
            Ok(running) => return Ok((running, traffic)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// A free UDP port for QUIC, and a port that is free for both TCP and UDP for visitors.
fn free_addresses() -> std::io::Result<(SocketAddr, SocketAddr)> {
    let quic = UdpSocket::bind("127.0.0.1:0")?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let _udp = UdpSocket::bind(tcp.local_addr()?)?;
    Ok((quic.local_addr()?, tcp.local_addr()?))
}

fn config_text(quic: SocketAddr, traffic: SocketAddr, service: SocketAddr) -> String {
    format!(
        r#"
[server]
[[server.listeners]]
quic_addr = "{quic}"
traffic_addr = "{traffic}"
protocol = "both"
[server.auth]
method = "mtls"
ca_cert_file = "ca.crt"
[server.tls]
server_cert_file = "server.crt"
server_key_file = "server.key"
[client]
client_id = "demo"
[[client.servers]]
address = "{quic}"
server_name = "localhost"
[client.local]
host = "{}"
port = {}
[client.tls]
ca_cert_file = "ca.crt"
client_cert_file = "client.crt"
client_key_file = "client.key"
"#,
        service.ip(),
        service.port()
    )
}
