//! What the scenarios stand on: programs that cannot outlive the tests, free ports, certificates,
//! services, visitors.
//!
//! Nothing here knows how the tunnel works inside: the harness speaks only the contracts (command
//! line, dp.toml, log lines, sockets), so that it runs any pair of programs that keep them.

pub(crate) mod certs;
pub(crate) mod counters;
pub(crate) mod door;
pub(crate) mod first_packets;
pub(crate) mod flood;
pub(crate) mod handover;
pub(crate) mod http;
pub(crate) mod limits;
pub(crate) mod memory_group;
pub(crate) mod notify;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod program;
pub(crate) mod quic_probe;
pub(crate) mod random;
pub(crate) mod resolver;
pub(crate) mod service;
pub(crate) mod slow_path;
pub(crate) mod subject;
pub(crate) mod switched_path;
pub(crate) mod tunnel;
pub(crate) mod two_ways;
pub(crate) mod udp_visitor;
pub(crate) mod visitor;
pub(crate) mod visits;
pub(crate) mod wait;
