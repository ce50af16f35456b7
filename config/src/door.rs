//! Doors: the addresses that clients connect to, and the services that they serve there.
//!
//! `[server] quic_addr` is the door of all `[[server.services]]`; each of `[[server.listeners]]` is
//! a door of its own with one service that has no name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::address;
use crate::bounds::Bounds;
use crate::conflicts::Claims;
use crate::limits;
use crate::ports::TrafficAddr;
use crate::section::Section;
use crate::server::{Defaults, Listener, ListenerProtocol, LoadBalancer, PROTOCOLS};
use crate::service_name;

/// The most services of one server: the tables of a start and a reload have this size, and each
/// name is a label in metrics.
pub const SERVICES_MAX: usize = 4_096;
/// The most addresses of one door: one for each address of a host with several networks.
const QUIC_ADDRS_MAX: usize = 16;

const QUIC_ADDR_FORM: &str = r#"an IP address and a port, as in "0.0.0.0:8443", or a list of them"#;
const TRAFFIC_FORM: &str = "an IP address and a port or a range of ports, as in \
    \"0.0.0.0:8080\" or \"0.0.0.0:30000-30099\"";

/// Addresses that clients connect to, with the services that they may serve there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// The addresses that clients connect to (QUIC, so UDP); at least one.
    pub quic_addrs: Vec<SocketAddr>,
    /// The services: at least one, and no two of one name.
    pub services: Vec<Service>,
}

/// A service as visitors see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The name, which is the same on both sides; empty for the one service of a listener.
    pub name: String,
    /// The address that visitors connect to.
    pub traffic: TrafficAddr,
    /// The protocols that visitors may speak.
    pub protocol: ListenerProtocol,
    /// The rule by which a client is chosen for a visitor.
    pub load_balancer: LoadBalancer,
    /// A visitor who takes nothing for this long, although bytes wait for it, is reset; zero means
    /// never.
    pub stall_timeout: Duration,
    /// What the service demands of visitors.
    pub bounds: Bounds,
    /// Whether the server counts as ready only while this service is up.
    pub required: bool,
}

impl Door {
    /// The door of a listener.
    pub(crate) fn of_listener(listener: &Listener, load_balancer: LoadBalancer) -> Self {
        Self {
            quic_addrs: vec![listener.quic_addr],
            services: vec![Service {
                name: String::new(),
                traffic: TrafficAddr::one(listener.traffic_addr),
                protocol: listener.protocol,
                load_balancer,
                stall_timeout: listener.stall_timeout,
                bounds: listener.bounds.clone(),
                required: false,
            }],
        }
    }

    /// This door in the form of a listener, if it has one.
    pub(crate) fn as_listener(&self) -> Option<Listener> {
        let ([quic_addr], [service]) = (&self.quic_addrs[..], &self.services[..]) else {
            return None;
        };
        (service.name.is_empty() && service.traffic.ports().count() == 1).then(|| Listener {
            quic_addr: *quic_addr,
            traffic_addr: service.traffic.first(),
            protocol: service.protocol,
            stall_timeout: service.stall_timeout,
            bounds: service.bounds.clone(),
        })
    }

    /// Number of sockets that the door takes on each core.
    #[must_use]
    pub fn sockets_per_core(&self) -> u64 {
        let traffic: u64 = self.services.iter().map(Service::sockets_per_core).sum();
        self.quic_addrs.len() as u64 + traffic
    }
}

impl Service {
    /// Number of sockets that the service takes on each core.
    #[must_use]
    pub fn sockets_per_core(&self) -> u64 {
        let protocols = u64::from(self.protocol.tcp()) + u64::from(self.protocol.udp());
        protocols * u64::from(self.traffic.ports().count())
    }

    /// Reads one service. `seen` contains the names of the services before it, each with its line.
    fn read(
        section: Section<'_>,
        defaults: &Defaults,
        claims: &mut Claims,
        seen: &mut HashMap<String, usize>,
    ) -> Option<Self> {
        let name = service_name::read(&section, "name");
        if let Some(name) = &name {
            refuse_second(&section, "name", name, seen);
        }
        let traffic = read_traffic(&section);
        let protocol = section
            .choice("protocol", &PROTOCOLS)
            .map_or(ListenerProtocol::Both, Spanned::into_inner);
        let load_balancer = LoadBalancer::read(&section).unwrap_or(defaults.load_balancer);
        let stall_timeout = limits::read_stall_timeout(&section).unwrap_or(defaults.stall_timeout);
        let bounds = Bounds::read(&section, Some(protocol));
        let required = section.boolean("required").unwrap_or(false);
        if let Some(traffic) = &traffic {
            claims.traffic(&section, "traffic_addr", traffic, protocol);
        }
        section.finish();
        Some(Self {
            name: name?.into_inner().to_owned(),
            traffic: traffic?.into_inner(),
            protocol,
            load_balancer,
            stall_timeout,
            bounds,
            required,
        })
    }
}

/// Reports a name that an earlier service in `seen` has, and notes a new one.
pub(crate) fn refuse_second(
    section: &Section<'_>,
    key: &'static str,
    name: &Spanned<&str>,
    seen: &mut HashMap<String, usize>,
) {
    match seen.get(*name.get_ref()) {
        Some(line) => {
            let message = format!(
                "{:?} is the name of line {line} again; it must be another one",
                name.get_ref()
            );
            section.problem_at(key, &name.span(), message);
        }
        None => {
            let line = section.report().line(&name.span());
            seen.insert((*name.get_ref()).to_owned(), line);
        }
    }
}

fn read_traffic(section: &Section<'_>) -> Option<Spanned<TrafficAddr>> {
    let key = "traffic_addr";
    section.require(key, TRAFFIC_FORM);
    let text = section.filled_string(key, TRAFFIC_FORM)?;
    match TrafficAddr::parse(text.get_ref()) {
        Ok(traffic) => Some(Spanned::new(text.span(), traffic)),
        Err(message) => {
            section.problem_at(key, &text.span(), message);
            None
        }
    }
}

/// The door of `[[server.services]]`, if there are any.
pub(crate) fn read_named(
    section: &Section<'_>,
    defaults: &Defaults,
    claims: &mut Claims,
) -> Option<Door> {
    let tables = section.tables("services");
    if let Some(surplus) = tables.get(SERVICES_MAX) {
        surplus.problem(format!(
            "is one too many; there may be {SERVICES_MAX} services"
        ));
    }
    let quic_addrs = read_quic_addrs(section, defaults, claims);
    if tables.is_empty() {
        section.refuse_empty_array("services", "at least one [[server.services]]");
        if let Some(addr) = section.any("quic_addr")
            && !section.has("services")
        {
            let message = "has no service behind it; it must stand beside [[server.services]], \
                           or in [[server.listeners]]";
            section.problem_at("quic_addr", &addr.span(), message);
        }
        return None;
    }
    section.require("quic_addr", QUIC_ADDR_FORM);
    let mut seen = HashMap::new();
    let services = tables
        .into_iter()
        .take(SERVICES_MAX)
        .filter_map(|table| Service::read(table, defaults, claims, &mut seen))
        .collect();
    Some(Door {
        quic_addrs,
        services,
    })
}

fn read_quic_addrs(
    section: &Section<'_>,
    defaults: &Defaults,
    claims: &mut Claims,
) -> Vec<SocketAddr> {
    let key = "quic_addr";
    let Some(value) = section.any(key) else {
        return Vec::new();
    };
    let texts: Vec<Spanned<&str>> = match value.as_ref() {
        DeValue::Array(array) if array.len() > QUIC_ADDRS_MAX => {
            let message = format!("is too long a list; it must have {QUIC_ADDRS_MAX} at most");
            section.problem_at(key, &value.span(), message);
            return Vec::new();
        }
        DeValue::Array(_) => {
            section.refuse_empty_array(key, QUIC_ADDR_FORM);
            let texts = section.strings(key, QUIC_ADDR_FORM);
            texts.map(Spanned::into_inner).unwrap_or_default()
        }
        _ => section.string(key, QUIC_ADDR_FORM).into_iter().collect(),
    };
    let mut addresses = Vec::new();
    for text in texts {
        match address::parse_listen(text.get_ref()) {
            Ok(address) => {
                let spanned = Spanned::new(text.span(), address);
                claims.quic(section, key, &spanned, defaults.tls_fallback);
                addresses.push(address);
            }
            Err(message) => section.problem_at(key, &text.span(), message),
        }
    }
    addresses
}
