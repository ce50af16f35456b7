//! A visitor's UDP flow: where its datagrams go, and what it holds for as long as it lives.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::Protocol;

use super::failover::Kept;
use super::forwarded::{Link, LinkState};
use super::lane::{LaneFlows, canonical};
use crate::flow::bandwidth::{Bandwidth, Direction};
use crate::server::access_log::{End, FinishedFlow};
use crate::server::bounds::Permit;
use crate::server::pool::balance::Tried;
use crate::server::pool::service::FlowTicket;
use crate::server::shared::ServedService;

/// Where a flow's datagrams go.
#[derive(Clone)]
pub(super) enum Place {
    /// Into a lane of this core.
    Local(Rc<LocalFlow>),
    /// To another core. In the table such entries have a lane of their own, whose flow ids nobody
    /// refers to.
    Remote(Rc<RemoteFlow>),
}

/// A flow that rides a lane of another core.
pub(super) struct RemoteFlow {
    pub(super) core: usize,
    pub(super) client: u64,
    pub(super) state: Arc<LinkState>,
    /// The clients that could not serve the visitor before this one.
    pub(super) tried: Tried,
    /// The flow's place in the limits of its service.
    pub(super) permit: RefCell<Option<Permit>>,
}

/// What a flow of this core holds for as long as it lives.
pub(super) enum Claim {
    /// The ticket of a flow that was routed on this core.
    Own(FlowTicket),
    /// The link to the core from which the flow came.
    Link(Link),
}

impl Claim {
    fn ticket(&self) -> &FlowTicket {
        match self {
            Claim::Own(ticket) => ticket,
            Claim::Link(link) => &link.ticket,
        }
    }
}

impl RemoteFlow {
    pub(super) fn is_gone(&self) -> bool {
        self.state.is_gone()
    }

    pub(super) fn is_answered(&self) -> bool {
        self.state.is_answered()
    }

    /// The clients that could not serve the visitor of a flow that is gone, if others are to be
    /// tried.
    pub(super) fn tried(&self) -> Tried {
        if !self.state.is_to_be_tried_elsewhere() {
            return Tried::default();
        }
        let mut tried = self.tried;
        tried.add(self.client);
        tried
    }
}

/// A flow that rides a lane of this core.
pub(super) struct LocalFlow {
    pub(super) lane: Rc<LaneFlows>,
    /// The local address that the visitor sends to; replies must come from it.
    pub(super) to_ip: Cell<Option<IpAddr>>,
    pub(super) packet_id: Cell<u64>,
    /// The number of the client.
    pub(super) client: u64,
    /// The flow's first datagram, until the service has answered: another client may need it.
    pub(super) first: RefCell<Option<Kept>>,
    /// The clients that could not serve the visitor.
    pub(super) tried: Tried,
    pub(super) service: Arc<ServedService>,
    /// The bound address of the socket that the visitor sends to.
    pub(super) bound: SocketAddr,
    /// The claim that the flow holds; it is dropped with the flow.
    pub(super) claim: RefCell<Claim>,
    /// The time at which the flow began, and what it has carried since.
    pub(super) began: Instant,
    /// The bandwidth of the flow, if it is limited.
    pub(super) bandwidth: Option<Box<Bandwidth>>,
    pub(super) bytes_in: Cell<u64>,
    pub(super) bytes_out: Cell<u64>,
    /// The flow's place in the limits of its service, if this core receives the visitor's
    /// datagrams.
    pub(super) permit: RefCell<Option<Permit>>,
}

impl LocalFlow {
    /// The address that the visitor sends to.
    pub(super) fn traffic_addr(&self) -> SocketAddr {
        let ip = self.to_ip.get().unwrap_or(self.bound.ip());
        canonical(SocketAddr::new(ip, self.bound.port()))
    }

    /// Whether the bandwidth allows a datagram of this size in this direction; if so, it is
    /// counted.
    pub(super) fn may_carry(&self, way: Direction, bytes: u64, now: Instant) -> bool {
        let bandwidth = self.bandwidth.as_ref();
        bandwidth.is_none_or(|it| it.carries(way, bytes, now))
    }

    /// Writes the flow's line of the access log.
    pub(super) fn note_end(&self, visitor: SocketAddr, now: Instant, end: End) {
        let claim = self.claim.borrow();
        let ticket = claim.ticket();
        self.service.access_log.finished(&FinishedFlow {
            service: &self.service.name,
            client: &ticket.client().client_id,
            visitor: canonical(visitor),
            protocol: Protocol::Udp,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            lasted: now.saturating_duration_since(self.began),
            end,
        });
    }

    /// Notes that the service has answered for the first time.
    pub(super) fn answered(&self) {
        self.first.take();
        let claim = self.claim.borrow();
        claim.ticket().answered_udp();
        if let Claim::Link(link) = &*claim {
            link.state.is_answered_now();
        }
    }

    /// The link to the core that receives the visitor's datagrams, if that is another one.
    pub(super) fn link(&self) -> Option<Arc<LinkState>> {
        match &*self.claim.borrow() {
            Claim::Own(_) => None,
            Claim::Link(link) => Some(Arc::clone(&link.state)),
        }
    }

    /// Keeps the link to a core that receives the visitor's datagrams, had forgotten the flow, and
    /// has routed the visitor to the same client again. By the link that core learns how the flow
    /// fares.
    pub(super) fn keep(&self, link: Link, is_answered: bool) {
        let earlier = self.claim.replace(Claim::Link(link));
        drop(earlier);
        if is_answered {
            self.answered();
        }
    }
}
