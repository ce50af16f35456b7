//! The routes of UDP visitors: to which client, and through which core's lane.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use qmux_proto::Protocol;

use super::forwarded::ForwardedUdp;
use super::lane::LaneFlows;
use crate::core::counters::CoreCounters;
use crate::core::mailbox::Post;
use crate::server::ids::EntranceId;
use crate::server::mail::ServerMail;
use crate::server::pool::balance::Tried;
use crate::server::pool::lanes::CarriesFlows as _;
use crate::server::pool::route::{self, Route};
use crate::server::pool::service::ClientPool;

/// Returns this core's lane of a client, by the client's number, for the client's next flow.
type LaneOf = Box<dyn Fn(u64) -> Option<Rc<LaneFlows>>>;

/// The routes of one entrance's visitors, as one core knows them.
pub(crate) struct UdpRoutes {
    entrance: EntranceId,
    /// The index of this core.
    core: usize,
    pool: Arc<ClientPool>,
    lane_of: LaneOf,
    post: Arc<dyn Post<ServerMail>>,
    counters: Arc<CoreCounters>,
    /// The number of times that a route was asked for.
    #[cfg(test)]
    asked: std::cell::Cell<usize>,
}

impl UdpRoutes {
    /// The routes of an entrance on core `core`; `lane_of` finds lanes by the number of their
    /// client.
    pub(crate) fn new(
        entrance: EntranceId,
        core: usize,
        pool: &Arc<ClientPool>,
        lane_of: impl Fn(u64) -> Option<Rc<LaneFlows>> + 'static,
        post: &Arc<dyn Post<ServerMail>>,
        counters: &Arc<CoreCounters>,
    ) -> Rc<UdpRoutes> {
        Rc::new(UdpRoutes {
            entrance,
            core,
            pool: Arc::clone(pool),
            lane_of: Box::new(lane_of),
            post: Arc::clone(post),
            counters: Arc::clone(counters),
            #[cfg(test)]
            asked: std::cell::Cell::new(0),
        })
    }

    /// Finds a route for a flow of a visitor whom the clients in `tried` could not serve.
    pub(super) fn find(&self, mut tried: Tried) -> Option<Route<Rc<LaneFlows>>> {
        #[cfg(test)]
        self.asked.set(self.asked.get() + 1);
        let must_answer = tried.must_answer();
        let way = route::find(
            &self.pool,
            Protocol::Udp,
            self.core,
            &mut tried,
            Instant::now(),
            |client| (self.lane_of)(client),
            |lane| {
                let silent = must_answer && lane.is_silent();
                (!silent && lane.is_open()).then(|| Rc::clone(lane))
            },
        )?;
        if let Route::Elsewhere(_, ticket) = &way {
            if must_answer && ticket.client().is_silent() {
                return None;
            }
            self.counters.visitors_handed_over.increment();
        }
        Some(way)
    }

    /// Whether there may be a route for a visitor whom the clients in `tried` could not serve.
    /// Asking changes nothing.
    pub(super) fn is_there_another(&self, tried: &Tried) -> bool {
        self.pool.has_another(Protocol::Udp, tried)
    }

    /// Whether no client takes new flows.
    pub(super) fn nobody_is_left(&self) -> bool {
        !self.pool.is_served()
    }

    /// Sends a datagram to the other core that has the visitor's flow. Returns false if that cannot
    /// be done now.
    pub(super) fn forward(&self, core: usize, packet: ForwardedUdp) -> bool {
        let mail = ServerMail::Datagram {
            entrance: self.entrance,
            packet,
        };
        self.post.send(core, mail).is_ok()
    }

    /// The number of times that a route was asked for.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> usize {
        self.asked.get()
    }
}
