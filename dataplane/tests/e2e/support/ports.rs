//! Free ports for programs that must be told theirs.

use std::net::{Ipv4Addr, SocketAddr};

/// An address on loopback whose port is free for TCP and UDP and that no other test of this process
/// gets.
pub(crate) fn free_address() -> SocketAddr {
    let address = qmux_harness::ports::free(Ipv4Addr::LOCALHOST.into());
    address.unwrap_or_else(|error| panic!("{error}"))
}
