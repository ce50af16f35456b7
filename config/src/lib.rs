//! `dp.toml`: its keys, what their values mean, and what is wrong with a file.
//!
//! This crate turns the text of a configuration file into [`Config`], in which every value has its
//! final type and has been checked: addresses are socket addresses, durations are durations,
//! certificates have been read and belong to their keys. Users of a [`Config`] need not look for
//! mistakes in it again.
//!
//! It also says which client may serve which services ([`ClientMatcher`]), because that follows
//! from the file alone.
//!
//! It never opens a socket and never changes a file, apart from [`certs::write`]. It reads
//! certificates to check them, but does not keep them: the data plane loads them itself when it
//! starts.
//!
//! Besides the model of the file there is what an operator needs to write one: fresh certificates
//! ([`certs`]), commented examples ([`example`]) and the import from QMux's YAML ([`import`]).

#![forbid(unsafe_code)]

mod access_log;
mod address;
mod admin;
mod bounds;
mod certificate_facts;
mod certificate_names;
pub mod certs;
mod changes;
mod client;
mod client_entry;
mod client_matcher;
mod config;
mod conflicts;
mod door;
mod errors;
pub mod example;
mod expand;
pub mod explain;
mod file_or_text;
mod handover;
pub mod import;
mod keys;
mod limits;
mod local_service;
mod named_file;
mod networks;
mod pem;
mod places;
mod ports;
pub mod proxy;
mod proxy_protocol;
mod quic;
mod report;
mod revocation_lists;
mod secret;
mod section;
mod server;
mod service_name;
mod session_file;
mod source;
mod suggest;
mod ticket_keys;
mod timing;
mod tls_files;
mod tls_keys;
pub mod token_proof;
mod transport;
mod udp;
mod units;

pub use access_log::AccessLog;
pub use admin::{Admin, AdminListen};
pub use bounds::Bounds;
pub use certificate_facts::{CertificateFacts, first_expiry_unix_s, utc_text};
pub use certificate_names::{CertificateNames, FINGERPRINT_BYTES, show_fingerprint};
pub use changes::{Change, changes_between};
pub use client::{
    CLIENT_ID_BYTES_MAX, Client, ClientAuth, ClientCert, ClientTls, LANES_MAX, Lanes, ServerTarget,
};
pub use client_entry::{ClientEntry, Proof};
pub use client_matcher::{Admission, ClientMatcher};
pub use config::Config;
pub use door::{Door, SERVICES_MAX, Service};
pub use errors::{Errors, Problem};
pub use file_or_text::FileOrText;
pub use limits::{Limits, MemoryLimit};
pub use local_service::{CLIENT_SERVICES_MAX, LocalPorts, LocalService};
pub use networks::Networks;
pub use pem::read_pem;
pub use places::Places;
pub use ports::{Ports, RANGE_PORTS_MAX, TrafficAddr};
pub use proxy_protocol::{ProxyProtocol, ProxyProtocolUdp};
pub use quic::{CongestionControl, Quic};
pub use revocation_lists::first_next_update_unix_s;
pub use secret::{SECRET_BYTES_MIN, Secret};
pub use server::{
    Listener, ListenerProtocol, LoadBalancer, Server, ServerAuth, ServerTls, TlsFallback,
};
pub use service_name::{SERVICE_NAME_BYTES_MAX, ServicePattern};
pub use session_file::{
    SESSION_IDENTITY_BYTES, SavedSession, decode_sessions, encode_sessions, sealed_sessions,
};
pub use suggest::nearest;
pub use ticket_keys::{
    TICKET_KEY_NAME_BYTES, TICKET_KEYS_MAX, TicketKey, parse_ticket_keys, read_ticket_keys,
};
pub use transport::{Proxy, ProxyAddress, ProxyProtocolOut, Transport};
pub use udp::Udp;
