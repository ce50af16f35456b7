//! The load: what a service does behind a tunnel, and what visitors do in front of it.
//!
//! Nothing here knows whether there is a tunnel. Bulk and round trips are plain threads with
//! blocking sockets, which cost least; only where thousands of connections are open at a time is it
//! tokio, on one thread.

pub mod bulk;
pub mod connect;
pub mod exact;
pub mod idle;
pub mod latency;
pub mod open_loop;
pub mod ping_pong;
pub mod service;
pub mod standing;
pub mod udp_sink;
pub mod udp_source;
pub mod wire;
