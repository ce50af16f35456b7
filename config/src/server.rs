//! `[server]`: the role with the public addresses.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use crate::address;
use crate::conflicts::Claims;
use crate::limits::{self, Limits};
use crate::secret::Secret;
use crate::section::Section;
use crate::timing::Timing;
use crate::tls_files::{self, Purpose};
use crate::units::{self, DAY};

/// Most listeners of one server: each takes three sockets per core, and 64 of them on 64 cores
/// already are 12,288 sockets.
const LISTENERS_MAX: usize = 64;
/// Longest time between two ticket keys: a TLS 1.3 ticket lives seven days at most (RFC 8446,
/// section 4.6.1), and a key that lives longer only widens what its theft exposes.
pub(crate) const TICKET_KEY_ROTATION_INTERVAL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Shortest time between two ticket keys; below it tickets would be useless before they arrive.
const TICKET_KEY_ROTATION_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Default time between two ticket keys, as QMux recommends.
const TICKET_KEY_ROTATION_INTERVAL: Duration = DAY;
/// Most old ticket keys: with daily rotation the eighth could open no ticket that is still valid.
/// Twice that leaves room for faster rotation.
pub(crate) const TICKET_KEY_ROTATION_OVERLAP_MAX: u8 = 16;
/// Default number of old ticket keys, as QMux recommends.
const TICKET_KEY_ROTATION_OVERLAP: u8 = 2;

/// How the server picks a client for a visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// The client with the fewest open flows.
    LeastConnections,
    /// Each client in turn.
    RoundRobin,
}

impl fmt::Display for LoadBalancer {
    /// As in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeastConnections => "least-connections",
            Self::RoundRobin => "round-robin",
        })
    }
}

/// What a listener accepts on its traffic address.
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
    /// As in dp.toml.
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

/// One pair of addresses, with its own pool of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where clients connect (QUIC, so UDP).
    pub quic_addr: SocketAddr,
    /// Where visitors connect.
    pub traffic_addr: SocketAddr,
    /// What visitors may speak.
    pub protocol: ListenerProtocol,
    /// A visitor who takes nothing for this long, although bytes wait for it, is reset; zero: it
    /// never is.
    pub stall_timeout: Duration,
}

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAuth {
    /// By a certificate that one of the CAs in the file has issued.
    Mtls {
        /// PEM, at least one CA certificate.
        ca_cert_file: PathBuf,
    },
    /// By knowing a shared secret.
    Token {
        /// At least [`crate::SECRET_BYTES_MIN`] bytes.
        token: Secret,
    },
}

/// The server's own certificate and its ticket keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// PEM: the server's certificate, then any intermediate ones.
    pub server_cert_file: PathBuf,
    /// PEM: the private key of the first certificate.
    pub server_key_file: PathBuf,
    /// Time between two session ticket keys; zero turns rotation off.
    pub session_ticket_encryption_key_rotation_interval: Duration,
    /// How many earlier ticket keys still open tickets.
    pub session_ticket_encryption_key_rotation_overlap: u8,
    /// Where ticket keys are kept, to be shared with other servers and across restarts; `None`: each
    /// process draws its own.
    pub session_ticket_encryption_key_file: Option<PathBuf>,
}

/// The server role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// How the server picks a client for a visitor.
    pub load_balancer: LoadBalancer,
    /// Time between two heartbeats to a client.
    pub heartbeat_interval: Duration,
    /// A client that was not heard of for this long gets no new flows. Above `heartbeat_interval`.
    pub health_timeout: Duration,
    /// How long open flows may go on after a signal to stop.
    pub drain_timeout: Duration,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// How clients prove who they are.
    pub auth: ServerAuth,
    /// The server's own certificate and its ticket keys.
    pub tls: ServerTls,
}

impl Server {
    /// Reads the section, and notes in `claims` every address that it will bind.
    pub(crate) fn read(section: Section<'_>, limits: &Limits, claims: &mut Claims) -> Option<Self> {
        let balancers = [
            ("least-connections", LoadBalancer::LeastConnections),
            ("round-robin", LoadBalancer::RoundRobin),
        ];
        let load_balancer = section
            .choice("load_balancer", &balancers)
            .map_or(LoadBalancer::LeastConnections, Spanned::into_inner);
        let timing = Timing::read(&section);
        let listeners = read_listeners(&section, limits, claims);
        let auth = ServerAuth::read(section.table("auth"));
        let tls = ServerTls::read(section.table("tls"));
        section.finish();
        Some(Self {
            load_balancer,
            heartbeat_interval: timing.heartbeat_interval,
            health_timeout: timing.health_timeout,
            drain_timeout: timing.drain_timeout,
            listeners,
            auth: auth?,
            tls: tls?,
        })
    }
}

fn read_listeners(section: &Section<'_>, limits: &Limits, claims: &mut Claims) -> Vec<Listener> {
    let tables = section.tables("listeners");
    if tables.is_empty() {
        let key = section.key("listeners");
        section.require("listeners", &format!("at least one [[{key}]]"));
        section.refuse_empty_array("listeners", &format!("at least one [[{key}]]"));
    }
    if let Some(surplus) = tables.get(LISTENERS_MAX) {
        surplus.problem(format!(
            "is one too many; there may be {LISTENERS_MAX} listeners"
        ));
    }
    tables
        .into_iter()
        .filter_map(|table| Listener::read(table, limits, claims))
        .collect()
}

impl Listener {
    fn read(section: Section<'_>, limits: &Limits, claims: &mut Claims) -> Option<Self> {
        let quic_addr = address::required_listen(&section, "quic_addr");
        let traffic_addr = address::required_listen(&section, "traffic_addr");
        section.require("protocol", r#""tcp" or "udp" or "both""#);
        let protocols = [
            ("tcp", ListenerProtocol::Tcp),
            ("udp", ListenerProtocol::Udp),
            ("both", ListenerProtocol::Both),
        ];
        let protocol = section
            .choice("protocol", &protocols)
            .map(Spanned::into_inner);
        if let Some(address) = &quic_addr {
            claims.udp(&section, "quic_addr", address);
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
        section.finish();
        Some(Self {
            quic_addr: quic_addr?.into_inner(),
            traffic_addr: traffic_addr?.into_inner(),
            protocol: protocol?,
            stall_timeout: stall_timeout.unwrap_or(limits.stall_timeout),
        })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Mtls,
    Token,
}

impl ServerAuth {
    fn read(section: Section<'_>) -> Option<Self> {
        let methods = [("mtls", Method::Mtls), ("token", Method::Token)];
        let method = section.choice("method", &methods).map(Spanned::into_inner);
        // A method that is there but wrong is reported; asking for the keys of another one would
        // only confuse.
        let method = if section.has("method") {
            method
        } else {
            Some(Method::Mtls)
        };
        let token = Secret::read(&section, "token");
        let ca_cert_file = match method {
            Some(Method::Mtls) => tls_files::ca(&section, "ca_cert_file"),
            _ => {
                section.has("ca_cert_file");
                None
            }
        };
        let auth = match method {
            Some(Method::Mtls) => {
                section.warn_unused("token", r#"is not used with method = "mtls""#);
                ca_cert_file.map(|ca_cert_file| Self::Mtls { ca_cert_file })
            }
            Some(Method::Token) => {
                section.require("token", Secret::FORM);
                section.warn_unused("ca_cert_file", r#"is not used with method = "token""#);
                token.map(|token| Self::Token { token })
            }
            None => None,
        };
        section.finish();
        auth
    }
}

impl ServerTls {
    fn read(section: Section<'_>) -> Option<Self> {
        let identity = tls_files::identity(
            &section,
            "server_cert_file",
            "server_key_file",
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
        let key_file = tls_files::ticket_keys(&section, "session_ticket_encryption_key_file");
        section.finish();
        let identity = identity?;
        Some(Self {
            server_cert_file: identity.cert_file,
            server_key_file: identity.key_file,
            session_ticket_encryption_key_rotation_interval: interval
                .map_or(TICKET_KEY_ROTATION_INTERVAL, Spanned::into_inner),
            session_ticket_encryption_key_rotation_overlap: overlap
                .unwrap_or(TICKET_KEY_ROTATION_OVERLAP),
            session_ticket_encryption_key_file: key_file,
        })
    }
}

const _: () = assert!(TICKET_KEY_ROTATION_OVERLAP <= TICKET_KEY_ROTATION_OVERLAP_MAX);
