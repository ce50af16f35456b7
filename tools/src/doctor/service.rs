//! Whether the local service accepts connections and datagrams of a client.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

use qmux_config::{Client, ListenerProtocol, explain};

use super::report::{Cause, Report, Step};
use crate::failure::Failure;

/// How long an ICMP message may take that nobody listens at a UDP port, on a local network.
const UDP_PATIENCE: Duration = Duration::from_millis(500);

/// One local service.
struct Local<'a> {
    /// The section of the config that it is in.
    section: String,
    host: &'a str,
    port: u16,
    protocol: ListenerProtocol,
    timeout: Duration,
}

/// Tries each service of the config.
pub(super) fn examine(client: &Client, report: &mut Report) -> Result<(), Failure> {
    let services = client.services.iter().filter_map(|service| {
        let section = match service.name.as_str() {
            "" => "[client.local]".to_owned(),
            name => format!("[[client.services]] {name:?}"),
        };
        Some(Local {
            section,
            host: &service.host,
            // A port that depends on the visitor cannot be tried.
            port: service.check_port()?,
            protocol: service.protocol,
            timeout: service.health_check_timeout,
        })
    });
    for service in services {
        match service.tried() {
            Ok(what) => report.ok(Step::Service, &what)?,
            Err(sentence) => report.failed(Cause::new(Step::Service, sentence))?,
        }
    }
    Ok(())
}

impl Local<'_> {
    /// The line that it works; or what does not, and what to do.
    fn tried(&self) -> Result<String, String> {
        let setting = format!("host and port in {}", self.section);
        let addresses = (self.host, self.port).to_socket_addrs();
        let addresses: Vec<SocketAddr> = addresses
            .map_err(|error| explain::unresolved(self.host, &error.to_string(), &setting))?
            .collect();
        let udp = || addresses.iter().find(|it| may_take_udp(**it));
        if !self.protocol.tcp() {
            return udp()
                .map(|address| format!("UDP {address} does not report that it is closed"))
                .ok_or_else(|| self.takes_no_udp(&setting));
        }
        let why = match self.tcp(&addresses) {
            Ok(address) => return Ok(format!("{address} accepts TCP")),
            Err(why) => why,
        };
        if self.protocol.udp()
            && let Some(address) = udp()
        {
            return Ok(format!(
                "{address} accepts no TCP ({why}), but perhaps UDP, which does not report that it is closed"
            ));
        }
        Err(explain::service_unreachable(
            self.host, self.port, why, &setting,
        ))
    }

    /// The first address that accepts TCP, or why the last one does not.
    fn tcp(&self, addresses: &[SocketAddr]) -> Result<SocketAddr, ErrorKind> {
        let mut why = ErrorKind::NotFound;
        for address in addresses {
            match TcpStream::connect_timeout(address, self.timeout) {
                Ok(_) => return Ok(*address),
                Err(error) => why = error.kind(),
            }
        }
        Err(why)
    }

    fn takes_no_udp(&self, setting: &str) -> String {
        format!(
            "the local service takes no datagrams at UDP port {} of {} (nobody listens there, says \
             the network): start it, or correct {setting}, or protocol there",
            self.port, self.host
        )
    }
}

/// Returns false if the network reports that nobody listens, or that there is no route.
fn may_take_udp(address: SocketAddr) -> bool {
    let tried = || -> std::io::Result<()> {
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(UDP_PATIENCE))?;
        // The datagram is empty, which means nothing to any service.
        socket.send(&[])?;
        socket.recv(&mut [0; 1]).map(|_| ())
    };
    match tried() {
        Ok(()) => true,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}
