//! The load: what a service does behind a tunnel, and what visitors do in front of it.
//!
//! Nothing here knows whether there is a tunnel. Visitors are plain threads with blocking sockets,
//! which cost least; only where many come and go at a time is it tokio, on one thread.

pub(crate) mod bulk;
pub mod connect;
pub(crate) mod exact;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod open_loop;
pub(crate) mod ping_pong;
pub mod service;
pub mod standing;
pub(crate) mod udp_sink;
pub(crate) mod udp_source;
pub(crate) mod wire;

/// What tests of the load visit, and an address where nobody listens.
#[cfg(test)]
mod testing {
    use std::net::{SocketAddr, TcpListener};

    use super::service::Service;
    use crate::harness::place::Place;

    pub(super) fn service() -> Service {
        Service::start(&Place::loopback(), &[]).expect("a service")
    }

    pub(super) fn closed() -> SocketAddr {
        let closed = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        closed.expect("an address")
    }
}
