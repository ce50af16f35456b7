//! The tunnel end to end: real processes, real sockets, real peers.
//!
//! By default both roles are `qmux-dp`. `QMUX_E2E_SERVER` and `QMUX_E2E_CLIENT` name other programs
//! that keep the same contracts, and `QMUX_E2E_SUBSET=wire` leaves out what is not about the
//! protocol (counters, runtimes). `QMUX_E2E_FILE_MB`, `QMUX_E2E_SEQUENTIAL` and
//! `QMUX_E2E_CONCURRENT` scale the largest tests.
//!
//! No test asserts how long anything takes. What is slow is measured in `bench`.

mod abandoned;
mod access_log;
mod addresses;
mod admin;
mod back_pressure;
mod balancing;
mod bandwidth;
mod busy_cores;
mod certificates;
mod cores;
mod dashboards;
mod descriptors;
mod diagnosis;
mod dns;
mod doctor;
mod half_close;
mod handover;
mod health;
mod http;
mod identity;
mod iperf3;
mod killed;
mod lanes;
mod limits;
mod listeners;
mod log_lines;
mod long_paths;
mod many_visitors;
mod offers;
mod one_file;
mod over_tls;
mod over_tls_deaths;
mod over_tls_moves;
mod over_tls_proxies;
mod over_tls_strangers;
mod places;
mod proxied_visitors;
mod proxies;
mod proxy_headers;
mod reload;
mod resets;
mod restarts;
mod resumption;
mod retry;
mod roaming;
mod rolling;
mod runtimes;
mod servers;
mod services;
mod short_memory;
mod shutdown;
mod signals;
mod stalled_visitors;
mod status;
mod strangers;
mod support;
mod tcp_echo;
mod tokens;
mod two_seconds;
mod two_seconds_table;
mod udp_blocked;
mod udp_crowds;
mod udp_echo;
mod udp_flows;
mod unread_log;
