//! `dp.toml`: what it may hold, what its values mean, and what is wrong with it.
//!
//! This crate turns the text of a configuration file into [`Config`], in which every value has its
//! final type and has been checked: addresses are socket addresses, durations are durations,
//! certificates have been read and belong to their keys. Whoever holds a [`Config`] need not look
//! for mistakes in it again.
//!
//! It never opens a socket and never changes a file, apart from [`certs::write`]. It reads
//! certificates to check them, but does not keep them: the data plane loads them itself when it
//! starts.
//!
//! Beside the file's own model stand what an operator needs to get one: fresh certificates
//! ([`certs`]), commented examples ([`example`]) and the import from QMux's YAML ([`import`]).

#![forbid(unsafe_code)]

mod address;
mod admin;
mod certificate_facts;
pub mod certs;
mod client;
mod config;
mod conflicts;
mod errors;
pub mod example;
pub mod explain;
pub mod import;
mod limits;
mod pem;
mod quic;
mod report;
mod secret;
mod section;
mod server;
mod session_file;
mod source;
mod suggest;
mod ticket_keys;
mod timing;
mod tls_files;
mod tls_keys;
pub mod token_proof;
mod udp;
mod units;

pub use admin::Admin;
pub use certificate_facts::CertificateFacts;
pub use client::{
    CLIENT_ID_BYTES_MAX, Client, ClientAuth, ClientCert, ClientTls, LANES_MAX, Lanes, Local,
    ServerTarget,
};
pub use config::Config;
pub use errors::{Errors, Problem};
pub use limits::{Limits, MemoryLimit};
pub use pem::read_pem;
pub use quic::{CongestionControl, Quic};
pub use secret::{SECRET_BYTES_MIN, Secret};
pub use server::{Listener, ListenerProtocol, LoadBalancer, Server, ServerAuth, ServerTls};
pub use session_file::{
    SESSION_IDENTITY_BYTES, SavedSession, decode_sessions, encode_sessions, sealed_sessions,
};
pub use suggest::nearest;
pub use ticket_keys::{
    TICKET_KEY_NAME_BYTES, TICKET_KEYS_MAX, TicketKey, parse_ticket_keys, read_ticket_keys,
};
pub use udp::Udp;
