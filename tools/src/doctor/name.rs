//! The addresses behind a server's name.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use qmux_config::{ServerTarget, explain};

use super::report::{Cause, Step};

/// How long a resolver may take: two name servers that do not answer, at the 5 s each that
/// resolv.conf(5) has by default.
const PATIENCE: Duration = Duration::from_secs(10);

/// Resolves the name: the addresses are in the resolver's order; at least one.
pub(super) fn resolve(server: &ServerTarget) -> Result<Vec<SocketAddr>, Cause> {
    if let Ok(ip) = server.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, server.port)]);
    }
    let why = match asked(&server.host, server.port) {
        Some(Ok(addresses)) if !addresses.is_empty() => return Ok(addresses),
        Some(Ok(_)) => "it has no address".to_owned(),
        Some(Err(error)) => error.to_string(),
        None => format!("no answer within {PATIENCE:?}"),
    };
    let sentence = explain::unresolved(&server.host, &why, "address in [[client.servers]]");
    Err(Cause::new(Step::Name, sentence))
}

/// Asks the resolver. `None` if there was no answer in time.
fn asked(host: &str, port: u16) -> Option<io::Result<Vec<SocketAddr>>> {
    let (answer, answered) = mpsc::channel();
    let host = host.to_owned();
    // The thread may outlive this call, and ends with the process.
    thread::spawn(move || {
        let result = (host.as_str(), port).to_socket_addrs();
        let _nobody_waits = answer.send(result.map(Iterator::collect));
    });
    answered.recv_timeout(PATIENCE).ok()
}

/// The addresses, for the report.
pub(super) fn shown(server: &ServerTarget, addresses: &[SocketAddr]) -> String {
    if server.host.parse::<IpAddr>().is_ok() {
        return format!("{} is an address", server.host);
    }
    let ips: Vec<String> = addresses.iter().map(|it| it.ip().to_string()).collect();
    format!("{} is {}", server.host, ips.join(", "))
}
