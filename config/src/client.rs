//! `[client]`: the role that runs beside the services.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::address::{self, Target};
use crate::file_or_text::FileOrText;
use crate::local_service::{self, LocalService};
use crate::secret::Secret;
use crate::section::Section;
use crate::server::Server;
use crate::timing::Timing;
use crate::tls_files::{self, Keys, Purpose};
use crate::transport::{Proxy, Transport};
use crate::units::{self, DAY, MILLISECOND, SECOND};

/// The most lanes to one server: one for each core that a connection id can name in its one byte.
pub const LANES_MAX: u16 = 256;
/// The most servers of one client: QMux's limit is 10; four times that are still few lanes.
const SERVERS_MAX: usize = 40;
/// The longest client id, in bytes: room for a pod's full DNS name; the wire format has the same
/// limit.
pub const CLIENT_ID_BYTES_MAX: usize = 253;

/// Default time between two probes of a server: this soon an idle client notices a restart.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest time between two probes: faster ones find nothing sooner than a server can restart.
const PROBE_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Default time after which a name is resolved again: Kubernetes' answers live 5 to 30 seconds.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(10);

const LANES_FORM: &str = r#""auto" or a number from 1 to 256"#;
const SERVER_NAME_FORM: &str = "a host name or an IP address from the server's certificate";

/// How many QUIC connections the client opens to each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// One for each core of the client, and more, up to one for each core of the server, while many
    /// visitors come.
    Auto,
    /// This many, at most [`LANES_MAX`].
    Count(NonZeroU16),
}

impl fmt::Display for Lanes {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// One server to register with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTarget {
    /// Host and port as written, as in `server.example.com:8443` or `[2001:db8::1]:8443`.
    pub address: String,
    /// The host part: a name or an IP address without brackets.
    pub host: String,
    /// The port part.
    pub port: u16,
    /// The name that the server's certificate must have; by default the host.
    pub server_name: String,
    /// The transport that carries the lanes.
    pub transport: Transport,
    /// The proxy that TLS connections go through.
    pub proxy: Proxy,
}

/// The secret by which the client authenticates, besides its certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientAuth {
    /// The secret for servers with `method = "token"`.
    pub token: Option<Secret>,
}

/// The client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// PEM: the client's certificate, then any intermediate ones.
    pub cert: FileOrText,
    /// PEM: the private key of the first certificate.
    pub key: FileOrText,
}

/// The CAs that the client trusts, and its own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM: the CAs that may issue a server's certificate.
    pub ca_cert: FileOrText,
    /// The client's certificate, for servers with `method = "mtls"`.
    pub client_cert: Option<ClientCert>,
}

/// The client role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The name under which servers know this client; if `None`, a fresh UUID at each start.
    pub client_id: Option<String>,
    /// The number of QUIC connections to each server.
    pub lanes: Lanes,
    /// Time between two heartbeats to a server.
    pub heartbeat_interval: Duration,
    /// A server from which nothing was heard for this long is dialled anew. It is longer than
    /// `heartbeat_interval`.
    pub health_timeout: Duration,
    /// Time between two probes of a server from which nothing else is heard; zero means none.
    pub probe_interval: Duration,
    /// Time after which the name of a server, or of a service, is resolved again.
    pub resolve_interval: Duration,
    /// How long open flows may go on after a signal to stop.
    pub drain_timeout: Duration,
    /// The directory in which session tickets are kept between runs; if `None`, they are in memory
    /// only.
    pub state_dir: Option<PathBuf>,
    /// The servers; at least one.
    pub servers: Vec<ServerTarget>,
    /// The services behind this client: at least one, and no two of one name. The one without a
    /// name, `[client.local]`, comes first.
    pub services: Vec<LocalService>,
    /// The secret by which the client authenticates, besides its certificate.
    pub auth: ClientAuth,
    /// The CAs that the client trusts, and its own certificate.
    pub tls: ClientTls,
}

impl Client {
    /// Reads the section. `server` is the other role of the same file, if it has one.
    pub(crate) fn read(section: Section<'_>, server: Option<&Server>) -> Option<Self> {
        let client_id = read_client_id(&section);
        let lanes = read_lanes(&section);
        let timing = Timing::read(&section);
        let probe_interval = read_probe_interval(&section);
        let resolve_interval = section
            .duration("resolve_interval", MILLISECOND * 100..=DAY)
            .map_or(RESOLVE_INTERVAL, Spanned::into_inner);
        let state_dir = section
            .filled_string("state_dir", "a directory")
            .map(|dir| {
                let report = section.report();
                report.place(section.key("state_dir"), &dir.span());
                report.resolve(dir.get_ref())
            });
        let servers = read_servers(&section);
        let services = local_service::read_all(&section, server);
        let auth = section.table("auth");
        let token = Secret::read(&auth).map(Spanned::into_inner);
        let has_token = Secret::is_in(&auth);
        if let Some(method) = auth.stray("method") {
            auth.problem_at(
                "method",
                &method,
                "unknown key; the server alone chooses the method: set token for one with method = \
                 \"token\", client_cert_file and client_key_file for one with method = \"mtls\"",
            );
        }
        auth.finish();
        let tls = ClientTls::read(section.table("tls"), has_token);
        section.finish();
        Some(Self {
            client_id,
            lanes,
            heartbeat_interval: timing.heartbeat_interval,
            health_timeout: timing.health_timeout,
            probe_interval,
            resolve_interval,
            drain_timeout: timing.drain_timeout,
            state_dir,
            servers,
            services,
            auth: ClientAuth { token },
            tls: tls?,
        })
    }
}

fn read_client_id(section: &Section<'_>) -> Option<String> {
    let id = section.string("client_id", "a string")?;
    let text = *id.get_ref();
    if text.len() > CLIENT_ID_BYTES_MAX || text.chars().any(char::is_control) {
        section.problem_at(
            "client_id",
            &id.span(),
            format!(
                "must be at most {CLIENT_ID_BYTES_MAX} bytes without control characters, or empty \
                 for a fresh UUID at each start"
            ),
        );
    }
    (!text.is_empty()).then(|| text.to_owned())
}

fn read_probe_interval(section: &Section<'_>) -> Duration {
    let key = "probe_interval";
    let Some(interval) = section.duration(key, Duration::ZERO..=SECOND * 3_600) else {
        return PROBE_INTERVAL;
    };
    if *interval.get_ref() > Duration::ZERO && *interval.get_ref() < PROBE_INTERVAL_MIN {
        let least = units::format_duration(PROBE_INTERVAL_MIN);
        let message = format!(
            "is too short; it must be {:?}, which turns probes off, or at least {least:?}",
            "0s"
        );
        section.problem_at(key, &interval.span(), message);
    }
    interval.into_inner()
}

fn read_lanes(section: &Section<'_>) -> Lanes {
    let Some(value) = section.any("lanes") else {
        return Lanes::Auto;
    };
    if matches!(value.as_ref(), DeValue::String(text) if text == "auto") {
        return Lanes::Auto;
    }
    if let Some(number) = section.number(value) {
        let count = number
            .and_then(|count| NonZeroU16::try_from(u16::try_from(count).ok()?).ok())
            .filter(|count| count.get() <= LANES_MAX);
        if let Some(count) = count {
            return Lanes::Count(count);
        }
        let message = format!("is out of range; it must be {LANES_FORM}");
        section.problem_at("lanes", &value.span(), message);
        return Lanes::Auto;
    }
    match value.as_ref() {
        DeValue::String(text) => {
            let message = format!("{text:?} is not known; it must be {LANES_FORM}");
            section.problem_at("lanes", &value.span(), message);
        }
        other => section.wrong_type("lanes", &value.span(), other, LANES_FORM),
    }
    Lanes::Auto
}

fn read_servers(section: &Section<'_>) -> Vec<ServerTarget> {
    let tables = section.tables("servers");
    if tables.is_empty() {
        let allowed = format!("at least one [[{}]]", section.key("servers"));
        section.require("servers", &allowed);
        section.refuse_empty_array("servers", &allowed);
    }
    if let Some(surplus) = tables.get(SERVERS_MAX) {
        surplus.problem(format!(
            "is one too many; there may be {SERVERS_MAX} servers"
        ));
    }
    let mut seen: Vec<(String, usize)> = Vec::new();
    tables
        .into_iter()
        .filter_map(|table| ServerTarget::read(table, &mut seen))
        .collect()
}

impl ServerTarget {
    /// Reads one server. `seen` contains the addresses of the servers before this one, each with
    /// its line.
    fn read(section: Section<'_>, seen: &mut Vec<(String, usize)>) -> Option<Self> {
        let target = address::required_target(&section, "address");
        let name = section.filled_string("server_name", SERVER_NAME_FORM);
        if let Some(name) = &name
            && !address::is_host(name.get_ref())
        {
            let message = format!(
                "{:?} is no name; it must be {SERVER_NAME_FORM}",
                name.get_ref()
            );
            section.problem_at("server_name", &name.span(), message);
        }
        if let Some(target) = &target {
            let report = section.report();
            report.place(section.key("address"), &target.span());
            let Target { host, port, .. } = target.get_ref();
            let plain = format!("{} {port}", host.to_ascii_lowercase());
            match seen.iter().find(|(earlier, _)| *earlier == plain) {
                Some((_, line)) => section.problem_at(
                    "address",
                    &target.span(),
                    format!("is the server of line {line} again; each server may appear once"),
                ),
                None => seen.push((plain, section.report().line(&target.span()))),
            }
        }
        let transport = Transport::read(&section);
        let proxy = Proxy::read(&section, transport);
        section.finish();
        let Target {
            address,
            host,
            port,
        } = target?.into_inner();
        Some(Self {
            address: address.to_owned(),
            host: host.to_owned(),
            port,
            server_name: name.map_or(host, Spanned::into_inner).to_owned(),
            transport,
            proxy,
        })
    }
}

/// The keys of the CAs that issue servers' certificates.
const CA_KEYS: Keys = Keys {
    file: "ca_cert_file",
    text: "ca_cert",
};
/// The keys of the client's certificate.
const CERT_KEYS: Keys = Keys {
    file: "client_cert_file",
    text: "client_cert",
};
/// The keys of its private key.
const KEY_KEYS: Keys = Keys {
    file: "client_key_file",
    text: "client_key",
};

impl ClientTls {
    fn read(section: Section<'_>, has_token: bool) -> Option<Self> {
        let ca_cert = tls_files::ca(&section, CA_KEYS);
        let (cert, key) = (CERT_KEYS.any(&section), KEY_KEYS.any(&section));
        let client_cert = if cert || key || !has_token {
            tls_files::identity(&section, CERT_KEYS, KEY_KEYS, Purpose::Client)
        } else {
            None
        };
        section.finish();
        Some(Self {
            ca_cert: ca_cert?,
            client_cert: client_cert.map(|identity| ClientCert {
                cert: identity.cert,
                key: identity.key,
            }),
        })
    }
}
