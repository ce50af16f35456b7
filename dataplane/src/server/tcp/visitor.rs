//! A TCP visitor until a client serves it.

use std::net::SocketAddr;
use std::time::Instant;

use crate::core::OneFlow;
use crate::server::bounds::Permit;
use crate::server::pool::balance::Tried;

/// A visitor that no client serves yet, as cores hand it over with its socket.
#[derive(Debug)]
pub(crate) struct Visitor {
    /// Who it is.
    pub(super) addr: SocketAddr,
    /// Where it has connected to.
    pub(super) traffic: SocketAddr,
    /// When it was accepted.
    pub(super) accepted: Instant,
    /// The same in microseconds since the Unix epoch, for the client.
    pub(super) accepted_at_us: u64,
    /// The core that chose a client for it last. Others are asked in turn, and it is not: so there are fewer hand-overs
    /// than cores.
    pub(super) chosen_by: usize,
    /// The clients that it has been sent to.
    pub(super) tried: Tried,
    /// What has been read from it.
    pub(super) sent: Vec<u8>,
    /// It has sent a FIN behind that.
    pub(super) ended: bool,
    /// Held while it is between two cores, so that none of them ends before it.
    pub(super) under_way: Option<OneFlow>,
    /// What it takes up of the limits of its service, until its flow ends.
    pub(super) _permit: Option<Permit>,
}
