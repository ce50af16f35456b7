//! A TCP visitor until a client serves it.

use std::net::SocketAddr;
use std::time::Instant;

use crate::core::OneFlow;
use crate::server::bounds::Permit;
use crate::server::pool::balance::Tried;

/// A visitor that no client serves yet, as cores hand it over with its socket.
#[derive(Debug)]
pub(crate) struct Visitor {
    /// The visitor's address.
    pub(super) addr: SocketAddr,
    /// The address that the visitor has connected to.
    pub(super) traffic: SocketAddr,
    /// The time at which the visitor was accepted.
    pub(super) accepted: Instant,
    /// The time at which the visitor was accepted, in microseconds since the Unix epoch, for the
    /// client.
    pub(super) accepted_at_us: u64,
    /// The core that last chose a client for the visitor. The others are asked in turn, and this
    /// one is not, so that there are fewer hand-overs than cores.
    pub(super) chosen_by: usize,
    /// The clients that the visitor has been sent to.
    pub(super) tried: Tried,
    /// Bytes that were read from the visitor.
    pub(super) sent: Vec<u8>,
    /// Whether the visitor has sent a FIN behind them.
    pub(super) ended: bool,
    /// Counts the flow while it is between two cores, so that none of them ends before it.
    pub(super) under_way: Option<OneFlow>,
    /// The visitor's place in the limits of its service, until its flow ends.
    pub(super) _permit: Option<Permit>,
}
