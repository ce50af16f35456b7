//! The services of a client: `[client.local]`, which has no name, and `[[client.services]]`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::address;
use crate::door;
use crate::ports::Ports;
use crate::proxy_protocol::{self, ProxyProtocol, ProxyProtocolUdp};
use crate::section::{self, Section};
use crate::server::{ListenerProtocol, PROTOCOLS, Server};
use crate::service_name;
use crate::units::{self, MILLISECOND, SECOND};

/// The most services of one client: as many as one registration may offer.
pub const CLIENT_SERVICES_MAX: usize = 64;

/// Default pause between checks: none, because a service may not like connections without bytes.
const HEALTH_CHECK_INTERVAL: Duration = Duration::ZERO;
/// The shortest pause between checks: more often would be a load.
const HEALTH_CHECK_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Default time for a check: room for a SYN that is repeated after a second (tcp(7)).
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

const HOST_FORM: &str = r#"a host name or an IP address, as in "127.0.0.1""#;
const ONE_PORT_FORM: &str = "a whole number from 1 to 65535";
const PORTS_FORM: &str = "a number from 1 to 65535, a range as in \"30000-30099\", or \"same\" \
    for the port that the visitor connected to";

/// The port of the host for a visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPorts {
    /// The port at the position that the visitor's port has in the server's range.
    These(Ports),
    /// The port that the visitor connected to.
    Same,
}

impl LocalPorts {
    /// The port for a visitor who connected to `traffic_port` of a service whose ports begin with
    /// `first_port`; `None` if the server's range is longer than this one.
    #[must_use]
    pub fn of_visitor(self, first_port: u16, traffic_port: u16) -> Option<u16> {
        match self {
            Self::Same => Some(traffic_port),
            Self::These(ports) => ports.at(traffic_port.checked_sub(first_port)?),
        }
    }

    /// Whether it has as many ports as a service with `count` of them.
    #[must_use]
    pub fn fits(self, count: u16) -> bool {
        match self {
            Self::Same => true,
            Self::These(ports) => ports.count() == count,
        }
    }
}

impl fmt::Display for LocalPorts {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::These(ports) => ports.fmt(f),
            Self::Same => f.write_str("same"),
        }
    }
}

/// A service behind this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// The name, which is the same on both sides; empty for `[client.local]`.
    pub name: String,
    /// The host: a name or an IP address without brackets.
    pub host: String,
    /// The port or ports, for TCP and UDP alike.
    pub ports: LocalPorts,
    /// The protocols that the service speaks.
    pub protocol: ListenerProtocol,
    /// The PROXY protocol header that tells the service who its visitors are.
    pub proxy_protocol: ProxyProtocol,
    /// The datagrams that have this header.
    pub proxy_protocol_udp: ProxyProtocolUdp,
    /// Pause between two checks of the service by a TCP connection; if zero, there are none while
    /// visitors get through.
    pub health_check_interval: Duration,
    /// How long a check may take.
    pub health_check_timeout: Duration,
}

impl LocalService {
    /// The port that a check connects to; `None` if it is known only with a visitor.
    #[must_use]
    pub fn check_port(&self) -> Option<u16> {
        match self.ports {
            LocalPorts::These(ports) => Some(ports.first()),
            LocalPorts::Same => None,
        }
    }
}

/// Reads all services of a client; reports whatever is wrong with them, or that there is none.
/// `server` is the other role of the same file, if it has one.
pub(crate) fn read_all(client: &Section<'_>, server: Option<&Server>) -> Vec<LocalService> {
    let local = client.table("local");
    let tables = client.tables("services");
    let mut services = Vec::new();
    if local.is_present() || !client.has("services") {
        services.extend(read_local(local));
    }
    if tables.is_empty() {
        client.refuse_empty_array("services", "at least one [[client.services]]");
    }
    let room = CLIENT_SERVICES_MAX - services.len();
    if let Some(surplus) = tables.get(room) {
        surplus.problem(format!(
            "is one too many; a client may serve {CLIENT_SERVICES_MAX} services"
        ));
    }
    let mut seen = HashMap::new();
    services.extend(
        tables
            .into_iter()
            .take(room)
            .filter_map(|table| read_named(table, server, &mut seen)),
    );
    services
}

/// Warns if the service of this name in the same file has another number of ports. This is not an
/// error, because the client may serve another server.
fn warn_of_misfit(section: &Section<'_>, name: &str, ports: LocalPorts, server: &Server) {
    let services = server.doors.iter().flat_map(|door| &door.services);
    let LocalPorts::These(here) = ports else {
        return;
    };
    for service in services.filter(|service| service.name == name) {
        let there = service.traffic.ports().count();
        if !ports.fits(there) {
            let count = here.count();
            let rest = if there > count {
                "visitors of the others would be refused"
            } else {
                "nobody would come to the others"
            };
            section.warn_unused(
                "port",
                &format!(
                    "has {count} ports, but the service of this name in [server] has {there}: \
                     {rest}"
                ),
            );
        }
    }
}

fn read_local(section: Section<'_>) -> Option<LocalService> {
    let host = read_host(&section);
    section.require("port", ONE_PORT_FORM);
    let port = read_one_port(&section);
    let protocol = read_protocol(&section);
    let (proxy_protocol, proxy_protocol_udp) = proxy_protocol::read(&section, protocol);
    let (health_check_interval, health_check_timeout) = read_checks(&section, protocol);
    section.finish();
    Some(LocalService {
        name: String::new(),
        host: host?,
        ports: LocalPorts::These(Ports::one(port?)),
        protocol,
        proxy_protocol,
        proxy_protocol_udp,
        health_check_interval,
        health_check_timeout,
    })
}

fn read_named(
    section: Section<'_>,
    server: Option<&Server>,
    seen: &mut HashMap<String, usize>,
) -> Option<LocalService> {
    let name = service_name::read(&section, "name");
    if let Some(name) = &name {
        door::refuse_second(&section, "name", name, seen);
    }
    let host = read_host(&section);
    section.require("port", PORTS_FORM);
    let ports = read_ports(&section);
    let protocol = read_protocol(&section);
    let (proxy_protocol, proxy_protocol_udp) = proxy_protocol::read(&section, protocol);
    let (health_check_interval, health_check_timeout) = read_checks(&section, protocol);
    if let (Some(name), Some(ports), Some(server)) = (&name, ports, server) {
        warn_of_misfit(&section, name.get_ref(), ports, server);
    }
    if ports == Some(LocalPorts::Same) && health_check_interval > Duration::ZERO {
        section.warn_unused(
            "health_check_interval",
            r#"is not used with port = "same": there is no port to check"#,
        );
    }
    section.finish();
    Some(LocalService {
        name: name?.into_inner().to_owned(),
        host: host?,
        ports: ports?,
        protocol,
        proxy_protocol,
        proxy_protocol_udp,
        health_check_interval,
        health_check_timeout,
    })
}

/// Reads the protocols that the service speaks.
fn read_protocol(section: &Section<'_>) -> ListenerProtocol {
    section
        .choice("protocol", &PROTOCOLS)
        .map_or(ListenerProtocol::Both, Spanned::into_inner)
}

fn read_host(section: &Section<'_>) -> Option<String> {
    section.require("host", HOST_FORM);
    let host = section.filled_string("host", HOST_FORM)?;
    if !address::is_host(host.get_ref()) {
        let message = format!("{:?} is no host; it must be {HOST_FORM}", host.get_ref());
        section.problem_at("host", &host.span(), message);
        return None;
    }
    section.report().place(section.key("host"), &host.span());
    Some(host.into_inner().to_owned())
}

fn read_one_port(section: &Section<'_>) -> Option<u16> {
    let port = section.integer("port", 1..=i64::from(u16::MAX))?;
    u16::try_from(port.into_inner()).ok()
}

fn read_ports(section: &Section<'_>) -> Option<LocalPorts> {
    let value = section.any("port")?;
    let parsed = match value.as_ref() {
        DeValue::String(text) if text == "same" => return Some(LocalPorts::Same),
        DeValue::String(text) if text.starts_with(|first: char| first.is_ascii_digit()) => {
            Ports::parse(text)
        }
        DeValue::String(text) => Err(format!("{text:?} is no port; it must be {PORTS_FORM}")),
        DeValue::Integer(_) => section::whole_number(value.as_ref())
            .and_then(|number| u16::try_from(number).ok())
            .filter(|port| *port > 0)
            .map(Ports::one)
            .ok_or_else(|| format!("is out of range; it must be {PORTS_FORM}")),
        other => {
            section.wrong_type("port", &value.span(), other, PORTS_FORM);
            return None;
        }
    };
    match parsed {
        Ok(ports) => Some(LocalPorts::These(ports)),
        Err(message) => {
            section.problem_at("port", &value.span(), message);
            None
        }
    }
}

/// Reads the pause between checks, and the time for one.
fn read_checks(section: &Section<'_>, protocol: ListenerProtocol) -> (Duration, Duration) {
    let interval = section.duration("health_check_interval", Duration::ZERO..=SECOND * 3_600);
    if !protocol.tcp() {
        for key in ["health_check_interval", "health_check_timeout"] {
            section.warn_unused(
                key,
                r#"is not used with protocol = "udp": checks are TCP connections"#,
            );
        }
    }
    if let Some(interval) = &interval
        && *interval.get_ref() > Duration::ZERO
        && *interval.get_ref() < HEALTH_CHECK_INTERVAL_MIN
    {
        let least = units::format_duration(HEALTH_CHECK_INTERVAL_MIN);
        let message = format!(
            "is too short; it must be {:?}, which turns checks off, or at least {least:?}",
            "0s"
        );
        section.problem_at("health_check_interval", &interval.span(), message);
    }
    let timeout = section.duration("health_check_timeout", MILLISECOND * 10..=SECOND * 60);
    (
        interval.map_or(HEALTH_CHECK_INTERVAL, Spanned::into_inner),
        timeout.map_or(HEALTH_CHECK_TIMEOUT, Spanned::into_inner),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_gets_the_port_of_the_same_position() {
        let range = LocalPorts::These(Ports::range(5000, 5009).expect("a range"));
        assert_eq!(range.of_visitor(30000, 30000), Some(5000));
        assert_eq!(range.of_visitor(30000, 30009), Some(5009));
        assert_eq!(range.of_visitor(30000, 30010), None, "beyond the range");
        assert_eq!(range.of_visitor(30000, 29999), None, "before the range");
        assert!(range.fits(10) && !range.fits(1));
        assert_eq!(LocalPorts::Same.of_visitor(30000, 30042), Some(30042));
        assert!(LocalPorts::Same.fits(100));
    }
}
