//! `qmux-dp demo`: two services, a server and a client in one process on loopback, with fresh
//! certificates.

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

/// Free ports are found by binding them and letting go. Another program may take one meanwhile, so
/// the start is tried again.
const START_ATTEMPTS: usize = 5;

/// How long the demo's own flows may take to finish.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the demo: until a signal, or once with traffic of its own.
///
/// # Errors
/// If something cannot be set up, or if a byte did not come back right.
pub(crate) fn run(once: bool, cores: Option<usize>) -> Result<(), Failure> {
    let cores = run::core_count(cores);
    let Tunnel {
        mut running,
        visit,
        service,
        _certificates,
    } = set_up(cores, !once)?;
    let Visit { web, echo } = visit;
    output::line(format_args!(
        "qmux-dp demo: two services through one door, {cores} cores\n  \
         web   TCP {web} → QUIC tunnel → {service}\n  \
         echo  UDP {echo} → QUIC tunnel → {service}"
    ));
    if once {
        let result = traffic::send(visit).map(|measured| report::print(&measured));
        running.stop(DRAIN_TIMEOUT)?;
        return result.map_err(|why| Failure::Running(format!("demo: {why}")));
    }
    output::line(format_args!(
        "visit http://{web}/   or echo: nc {} {}   or over UDP: nc -u {} {}",
        web.ip(),
        web.port(),
        echo.ip(),
        echo.port()
    ));
    output::line("stop with Ctrl-C");
    running.until_signal(Some(DRAIN_TIMEOUT))
}

/// Counts what the demo's tunnel allocates, on one core.
///
/// # Errors
/// If something cannot be set up, or if a packet costs an allocation of our own.
#[cfg(feature = "count-allocations")]
pub(crate) fn count_allocations() -> Result<(), Failure> {
    let mut tunnel = set_up(1, false)?;
    let result = allocations::run(&tunnel.running, tunnel.visit);
    tunnel.running.stop(DRAIN_TIMEOUT)?;
    result.map_err(|why| Failure::Running(format!("allocations: {why}")))
}

/// The addresses that the demo's visitors connect to.
#[derive(Debug, Clone, Copy)]
struct Visit {
    /// The service "web": TCP.
    web: SocketAddr,
    /// The service "echo": UDP.
    echo: SocketAddr,
}

/// The demo's tunnel, with its services.
struct Tunnel {
    running: Running,
    visit: Visit,
    service: SocketAddr,
    /// The certificates, which are deleted at the end.
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
    let (running, visit) = start(directory.path(), service, cores, by_signals)?;
    Ok(Tunnel {
        running,
        visit,
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
) -> Result<(Running, Visit), Failure> {
    let mut last = Failure::Running("demo: no free port".into());
    for _ in 0..START_ATTEMPTS {
        let (quic, visit) = match free_addresses() {
            Ok(addresses) => addresses,
            Err(error) => {
                last = failed("free ports", &error);
                continue;
            }
        };
        let config = Config::parse(&config_text(quic, visit, service), &certs.join("dp.toml"))
            .map_err(|error| failed("its config", &error))?;
        let events = if by_signals {
            Events::with_signals()?
        } else {
            Events::without_signals()
        };
        match run::start(&Arc::new(config), cores, events) {
            Ok(running) => return Ok((running, visit)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// A free port for QUIC, and one for each service.
fn free_addresses() -> std::io::Result<(SocketAddr, Visit)> {
    let quic = UdpSocket::bind("127.0.0.1:0")?;
    let web = TcpListener::bind("127.0.0.1:0")?;
    let echo = UdpSocket::bind("127.0.0.1:0")?;
    let visit = Visit {
        web: web.local_addr()?,
        echo: echo.local_addr()?,
    };
    Ok((quic.local_addr()?, visit))
}

fn config_text(quic: SocketAddr, visit: Visit, service: SocketAddr) -> String {
    let Visit { web, echo } = visit;
    let (host, port) = (service.ip(), service.port());
    format!(
        r#"
[server]
quic_addr = "{quic}"
[[server.services]]
name = "web"
traffic_addr = "{web}"
protocol = "tcp"
[[server.services]]
name = "echo"
traffic_addr = "{echo}"
protocol = "udp"
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
[[client.services]]
name = "web"
host = "{host}"
port = {port}
protocol = "tcp"
[[client.services]]
name = "echo"
host = "{host}"
port = {port}
protocol = "udp"
[client.tls]
ca_cert_file = "ca.crt"
client_cert_file = "client.crt"
client_key_file = "client.key"
"#
    )
}
