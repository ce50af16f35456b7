//! `[server]`: the role with the public addresses.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use crate::access_log::AccessLog;
use crate::address;
use crate::bounds::Bounds;
use crate::client_entry::{self, ClientEntry, Kind};
use crate::conflicts::{Claims, overlap};
use crate::door::{self, Door};
use crate::file_or_text::FileOrText;
use crate::handover;
use crate::limits::{self, Limits};
use crate::ports::TrafficAddr;
use crate::secret::Secret;
use crate::section::Section;
use crate::timing::Timing;
use crate::tls_files::{self, Keys, Purpose};
use crate::units::{self, DAY};

/// The most listeners of one server: each takes three sockets per core, so 64 of them on 64 cores
/// are already 12,288 sockets.
const LISTENERS_MAX: usize = 64;
/// The longest time between two ticket keys: a TLS 1.3 ticket lives seven days at most (RFC 8446,
/// section 4.6.1), and a key that lives longer only widens what its theft exposes.
pub(crate) const TICKET_KEY_ROTATION_INTERVAL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The shortest time between two ticket keys; below it tickets would be useless before they arrive.
const TICKET_KEY_ROTATION_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Default time between two ticket keys, as QMux recommends.
const TICKET_KEY_ROTATION_INTERVAL: Duration = DAY;
/// The most old ticket keys: with daily rotation the eighth could open no ticket that is still
/// valid. Twice that leaves room for faster rotation.
pub(crate) const TICKET_KEY_ROTATION_OVERLAP_MAX: u8 = 16;
/// Default number of old ticket keys, as QMux recommends.
const TICKET_KEY_ROTATION_OVERLAP: u8 = 2;

/// The keys of the CAs that issue clients' certificates.
const CA_KEYS: Keys = Keys {
    file: "ca_cert_file",
    text: "ca_cert",
};

/// The keys of the list of certificates that the CAs have revoked.
const CRL_KEYS: Keys = Keys {
    file: "crl_file",
    text: "crl",
};

/// The words for the protocols that visitors may speak.
pub(crate) const PROTOCOLS: [(&str, ListenerProtocol); 3] = [
    ("tcp", ListenerProtocol::Tcp),
    ("udp", ListenerProtocol::Udp),
    ("both", ListenerProtocol::Both),
];

/// The settings of every service that has none of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) load_balancer: LoadBalancer,
    pub(crate) stall_timeout: Duration,
    pub(crate) tls_fallback: TlsFallback,
}

/// How the server chooses a client for a visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// The client with the fewest open flows.
    LeastConnections,
    /// Each client in turn.
    RoundRobin,
}

impl fmt::Display for LoadBalancer {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeastConnections => "least-connections",
            Self::RoundRobin => "round-robin",
        })
    }
}

impl LoadBalancer {
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        let balancers = [
            ("least-connections", Self::LeastConnections),
            ("round-robin", Self::RoundRobin),
        ];
        section
            .choice("load_balancer", &balancers)
            .map(Spanned::into_inner)
    }
}

/// The protocols that visitors may speak at a traffic address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// TCP only.
    Tcp,
    /// UDP only.
    Udp,
    /// TCP and UDP on the same port.
    Both,
}

impl fmt::Display for ListenerProtocol {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Both => "both",
        })
    }
}

impl ListenerProtocol {
    /// Whether it accepts TCP.
    #[must_use]
    pub fn tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Both)
    }

    /// Whether it accepts UDP.
    #[must_use]
    pub fn udp(self) -> bool {
        matches!(self, Self::Udp | Self::Both)
    }
}

/// Whether clients may connect over TLS where UDP does not pass: by TCP at the addresses for QUIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsFallback {
    /// Yes, unless another program has the TCP port.
    #[default]
    IfFree,
    /// Yes; it is an error if the TCP port is taken.
    On,
    /// No.
    Off,
}

impl TlsFallback {
    fn read(section: &Section<'_>) -> Self {
        match section.boolean("tls_fallback") {
            None => Self::IfFree,
            Some(true) => Self::On,
            Some(false) => Self::Off,
        }
    }
}

/// A pair of addresses, with a pool of clients of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The address that clients connect to (QUIC, so UDP).
    pub quic_addr: SocketAddr,
    /// The address that visitors connect to.
    pub traffic_addr: SocketAddr,
    /// The protocols that visitors may speak.
    pub protocol: ListenerProtocol,
    /// A visitor who takes nothing for this long, although bytes wait for it, is reset; zero means
    /// never.
    pub stall_timeout: Duration,
    /// What the service demands of visitors.
    pub bounds: Bounds,
}

/// How clients authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAuth {
    /// By a certificate that one of the CAs in the file has issued.
    Mtls {
        /// PEM, at least one CA certificate.
        ca_cert: FileOrText,
        /// PEM: the revocation lists of these CAs, if there are any.
        crl: Option<FileOrText>,
    },
    /// By knowing a secret: this one, or that of one of [`Server::clients`].
    Token {
        /// At least [`crate::SECRET_BYTES_MIN`] bytes. If there are [`Server::clients`], it is the
        /// right to serve the service without a name, and nothing else; only then it may be `None`.
        token: Option<Secret>,
    },
}

/// The server's own certificate and its ticket keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// PEM: the server's certificate, then any intermediate ones.
    pub server_cert: FileOrText,
    /// PEM: the private key of the first certificate.
    pub server_key: FileOrText,
    /// Time between two session ticket keys; zero turns rotation off.
    pub session_ticket_encryption_key_rotation_interval: Duration,
    /// How many earlier ticket keys still open tickets.
    pub session_ticket_encryption_key_rotation_overlap: u8,
    /// The ticket keys, to be shared with other servers and across restarts; if `None`, each
    /// process draws its own.
    pub session_ticket_encryption_key: Option<FileOrText>,
}

/// The server role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How the server chooses a client for a visitor.
    pub load_balancer: LoadBalancer,
    /// Time between two heartbeats to a client.
    pub heartbeat_interval: Duration,
    /// A client from which nothing was heard for this long gets no new flows. It is longer than
    /// `heartbeat_interval`.
    pub health_timeout: Duration,
    /// How long open flows may go on after a signal to stop.
    pub drain_timeout: Duration,
    /// Whether clients may connect over TLS.
    pub tls_fallback: TlsFallback,
    /// Where to write a line for each flow that has ended.
    pub access_log: AccessLog,
    /// The Unix socket at which the process gives its sockets to its successor.
    pub handover: Option<PathBuf>,
    /// The addresses that clients connect to, and the services there; at least one door. The door
    /// of named services comes first, then those of listeners in their order.
    pub doors: Vec<Door>,
    /// The clients and what each may serve, in the order of the file. If it is empty, every
    /// authenticated client may serve everything. [`crate::ClientMatcher`] is made from it.
    pub clients: Vec<ClientEntry>,
    /// How clients authenticate.
    pub auth: ServerAuth,
    /// The server's own certificate and its ticket keys.
    pub tls: ServerTls,
}

impl Server {
    /// Reads the section, and notes in `claims` every address that it will bind.
    pub(crate) fn read(section: Section<'_>, limits: &Limits, claims: &mut Claims) -> Option<Self> {
        let load_balancer = LoadBalancer::read(&section).unwrap_or(LoadBalancer::LeastConnections);
        let timing = Timing::read(&section);
        let access_log = AccessLog::read(&section);
        let handover = handover::read(&section);
        let defaults = Defaults {
            load_balancer,
            stall_timeout: limits.stall_timeout,
            tls_fallback: TlsFallback::read(&section),
        };
        let named = door::read_named(&section, &defaults, claims);
        let listeners = read_listeners(&section, &defaults, claims);
        let (auth, entries) = read_auth(&section);
        let tls = ServerTls::read(section.table("tls"));
        let doors: Vec<Door> = named.into_iter().chain(listeners).collect();
        client_entry::warn_of_misfits(&section, &doors, &entries, auth.as_ref());
        section.finish();
        Some(Self {
            load_balancer,
            heartbeat_interval: timing.heartbeat_interval,
            health_timeout: timing.health_timeout,
            drain_timeout: timing.drain_timeout,
            tls_fallback: defaults.tls_fallback,
            access_log,
            handover,
            doors,
            clients: entries.into_iter().map(|entry| entry.entry).collect(),
            auth: auth?,
            tls: tls?,
        })
    }

    /// The doors that are written as `[[server.listeners]]`, in their order.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        self.doors.iter().filter_map(Door::as_listener).collect()
    }

    /// Whether visitors come by TCP to this address, or to one that includes it.
    #[must_use]
    pub fn takes_tcp_at(&self, address: SocketAddr) -> bool {
        let services = self.doors.iter().flat_map(|door| &door.services);
        let mut tcp = services.filter(|service| service.protocol.tcp());
        tcp.any(|service| overlap(service.traffic, TrafficAddr::one(address)))
    }

    /// Number of sockets that all doors take on `cores` cores: each core has its own of each.
    #[must_use]
    pub fn sockets(&self, cores: usize) -> u64 {
        let per_core: u64 = self.doors.iter().map(Door::sockets_per_core).sum();
        let doors = self.doors.iter();
        let tls: u64 = match self.tls_fallback {
            TlsFallback::Off => 0,
            TlsFallback::IfFree | TlsFallback::On => {
                doors.map(|door| door.quic_addrs.len() as u64).sum()
            }
        };
        (per_core + tls).saturating_mul(cores as u64)
    }
}

fn read_listeners(section: &Section<'_>, defaults: &Defaults, claims: &mut Claims) -> Vec<Door> {
    let tables = section.tables("listeners");
    if tables.is_empty() && !section.has("services") {
        let allowed = format!(
            "at least one [[{}]], unless there are [[{}]]",
            section.key("listeners"),
            section.key("services")
        );
        section.require("listeners", &allowed);
        section.refuse_empty_array("listeners", &allowed);
    }
    if let Some(surplus) = tables.get(LISTENERS_MAX) {
        surplus.problem(format!(
            "is one too many; there may be {LISTENERS_MAX} listeners"
        ));
    }
    tables
        .into_iter()
        .filter_map(|table| Listener::read(table, defaults, claims))
        .map(|listener| Door::of_listener(&listener, defaults.load_balancer))
        .collect()
}

impl Listener {
    fn read(section: Section<'_>, defaults: &Defaults, claims: &mut Claims) -> Option<Self> {
        let quic_addr = address::required_listen(&section, "quic_addr");
        let traffic_addr = address::required_listen(&section, "traffic_addr");
        section.require("protocol", r#""tcp" or "udp" or "both""#);
        let protocol = section
            .choice("protocol", &PROTOCOLS)
            .map(Spanned::into_inner);
        if let Some(address) = &quic_addr {
            claims.quic(&section, "quic_addr", address, defaults.tls_fallback);
        }
        if let (Some(address), Some(protocol)) = (&traffic_addr, protocol) {
            if protocol.tcp() {
                claims.tcp(&section, "traffic_addr", address);
            }
            if protocol.udp() {
                claims.udp(&section, "traffic_addr", address);
            }
        }
        let stall_timeout = limits::read_stall_timeout(&section);
        let bounds = Bounds::read(&section, protocol);
        section.finish();
        Some(Self {
            quic_addr: quic_addr?.into_inner(),
            traffic_addr: traffic_addr?.into_inner(),
            protocol: protocol?,
            stall_timeout: stall_timeout.unwrap_or(defaults.stall_timeout),
            bounds,
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Mtls,
    Token,
}

/// Reads how clients authenticate, and which clients there are.
fn read_auth(section: &Section<'_>) -> (Option<ServerAuth>, Vec<client_entry::Read>) {
    let auth = section.table("auth");
    let methods = [("mtls", Method::Mtls), ("token", Method::Token)];
    let method = auth.choice("method", &methods).map(Spanned::into_inner);
    // A method that exists but is wrong is reported; asking for the keys of another one would only
    // confuse.
    let method = if auth.has("method") {
        method
    } else {
        Some(Method::Mtls)
    };
    let token = Secret::read(&auth);
    let kind = method.map(|method| match method {
        Method::Mtls => Kind::Certificate,
        Method::Token => Kind::Token,
    });
    let shared = token.as_ref().filter(|_| method == Some(Method::Token));
    let entries = client_entry::read_all(section, kind, shared);
    let read = ServerAuth::read(&auth, method, token, section.has("clients"));
    auth.finish();
    (read, entries)
}

impl ServerAuth {
    fn read(
        section: &Section<'_>,
        method: Option<Method>,
        token: Option<Spanned<Secret>>,
        with_entries: bool,
    ) -> Option<Self> {
        let has_ca = CA_KEYS.any(section);
        match method? {
            Method::Mtls => {
                let why = r#"is not used with method = "mtls""#;
                section.warn_unused("token", why);
                section.warn_unused("token_file", why);
                let ca_cert = tls_files::ca(section, CA_KEYS);
                // A wrong list has been reported, and then there is no configuration.
                let crl = tls_files::crl(section, CRL_KEYS);
                ca_cert.map(|ca_cert| Self::Mtls { ca_cert, crl })
            }
            Method::Token => {
                if !with_entries && !Secret::is_in(section) {
                    section.require("token", Secret::FORM);
                }
                if has_ca {
                    CA_KEYS.warn_unused(section, r#"is not used with method = "token""#);
                }
                CRL_KEYS.warn_unused(section, r#"is not used with method = "token""#);
                if token.is_none() && (Secret::is_in(section) || !with_entries) {
                    return None;
                }
                Some(Self::Token {
                    token: token.map(Spanned::into_inner),
                })
            }
        }
    }
}

impl ServerTls {
    fn read(section: Section<'_>) -> Option<Self> {
        let identity = tls_files::identity(
            &section,
            Keys {
                file: "server_cert_file",
                text: "server_cert",
            },
            Keys {
                file: "server_key_file",
                text: "server_key",
            },
            Purpose::Server,
        );
        let interval_key = "session_ticket_encryption_key_rotation_interval";
        let interval = section.duration(
            interval_key,
            Duration::ZERO..=TICKET_KEY_ROTATION_INTERVAL_MAX,
        );
        if let Some(interval) = &interval
            && *interval.get_ref() > Duration::ZERO
            && *interval.get_ref() < TICKET_KEY_ROTATION_INTERVAL_MIN
        {
            let least = units::format_duration(TICKET_KEY_ROTATION_INTERVAL_MIN);
            let message = format!(
                "is too short; it must be {:?}, which turns rotation off, or at least {least:?}",
                "0s"
            );
            section.problem_at(interval_key, &interval.span(), message);
        }
        let overlap = section
            .integer(
                "session_ticket_encryption_key_rotation_overlap",
                0..=i64::from(TICKET_KEY_ROTATION_OVERLAP_MAX),
            )
            .and_then(|overlap| u8::try_from(overlap.into_inner()).ok());
        let ticket_keys = Keys {
            file: "session_ticket_encryption_key_file",
            text: "session_ticket_encryption_key",
        };
        let ticket_keys = tls_files::ticket_keys(&section, ticket_keys);
        section.finish();
        let identity = identity?;
        Some(Self {
            server_cert: identity.cert,
            server_key: identity.key,
            session_ticket_encryption_key_rotation_interval: interval
                .map_or(TICKET_KEY_ROTATION_INTERVAL, Spanned::into_inner),
            session_ticket_encryption_key_rotation_overlap: overlap
                .unwrap_or(TICKET_KEY_ROTATION_OVERLAP),
            session_ticket_encryption_key: ticket_keys,
        })
    }
}

const _: () = assert!(TICKET_KEY_ROTATION_OVERLAP <= TICKET_KEY_ROTATION_OVERLAP_MAX);
