//! What two cores tell each other of a UDP flow: the core that receives its visitor's datagrams,
//! and the core that has its lane.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::server::pool::balance::Tried;
use crate::server::pool::service::FlowTicket;

/// A visitor's datagram on its way to the core that has its flow.
#[derive(Debug)]
pub(crate) struct ForwardedUdp {
    /// The visitor's address.
    pub(crate) visitor: SocketAddr,
    /// The local address that the visitor sent it to.
    pub(crate) to_ip: Option<IpAddr>,
    /// The payload of the datagram.
    pub(crate) payload: Vec<u8>,
    /// The link between the cores; with the first datagram only.
    pub(super) link: Option<Link>,
    /// The number of the client whose lane carries the flow.
    pub(crate) client: u64,
}

impl ForwardedUdp {
    /// Whether this is the first datagram of its flow.
    pub(crate) fn begins_a_flow(&self) -> bool {
        self.link.is_some()
    }
}

/// What the core that has a flow tells the core that receives its visitor's datagrams.
#[derive(Debug, Default)]
pub(super) struct LinkState {
    /// Whether the flow has ended there, or was lost on the way to that core.
    gone: AtomicBool,
    /// Whether the flow's service has answered.
    answered: AtomicBool,
    /// Whether the flow has ended because its client could not serve the visitor, and another one
    /// may.
    to_be_tried_elsewhere: AtomicBool,
}

impl LinkState {
    /// Called on the core that has the flow, when the service has answered.
    pub(super) fn is_answered_now(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Called on the core that has the flow, before the flow ends there.
    pub(super) fn is_to_be_tried_elsewhere_now(&self) {
        self.to_be_tried_elsewhere.store(true, Ordering::Relaxed);
    }

    /// Whether a flow that is gone was not served by its client, and may be by another one.
    pub(super) fn is_to_be_tried_elsewhere(&self) -> bool {
        self.to_be_tried_elsewhere.load(Ordering::Relaxed)
    }

    /// Whether the flow is gone, and all that its core had to say was said.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

/// The ticket of a flow, sent to another core and kept there with the flow.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: Arc<LinkState>,
    pub(super) ticket: FlowTicket,
    /// The clients that could not serve the visitor.
    pub(super) tried: Tried,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.gone.store(true, Ordering::Release);
    }
}
