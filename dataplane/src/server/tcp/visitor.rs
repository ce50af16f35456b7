//! A TCP visitor until a client serves it.

use std::net::SocketAddr;

use crate::core::OneFlow;
use crate::server::pool::balance::Tried;

/// A visitor that no client serves yet, as cores hand it over with its socket.
#[derive(Debug)]
pub(crate) struct Visitor {
    /// Who it is.
    pub(super) addr: SocketAddr,
    /// Where it has connected to.
    pub(super) traffic: SocketAddr,
    /// When it was accepted, in microseconds since the Unix epoch.
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
}
