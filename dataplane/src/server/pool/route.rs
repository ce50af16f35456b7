//! The search for the client of a new flow, and for the core and lane to reach that client. It does
//! no I/O.

use std::rc::Rc;
use std::time::Instant;

use qmux_proto::Protocol;

use super::balance::Tried;
use super::lanes::CarriesFlows;
use super::service::{ClientPool, FlowTicket};

/// The route of a flow to its client.
#[derive(Debug)]
pub(crate) enum Route<B> {
    /// Through a lane of this core, on which the flow has begun.
    Here(B, FlowTicket),
    /// Through a lane of this other core.
    Elsewhere(usize, FlowTicket),
}

/// Finds a client among those that the visitor has not been to, and a lane of it. This core's lane
/// is the one that `pick_lane` returns, if `begin` succeeds on it; else the lane is one of another
/// core. A lane whose peer leaves everything unanswered is taken only if the client has no other.
/// `None` if there is no such client.
pub(crate) fn find<L: CarriesFlows, B>(
    pool: &ClientPool,
    protocol: Protocol,
    core: usize,
    tried: &mut Tried,
    now: Instant,
    pick_lane: impl Fn(u64) -> Option<Rc<L>>,
    mut begin: impl FnMut(&Rc<L>) -> Option<B>,
) -> Option<Route<B>> {
    while !tried.is_full() {
        let ticket = pool.pick(protocol, tried, now)?;
        let client = ticket.client();
        tried.add(client.number);
        let lane = pick_lane(client.number);
        if lane.as_ref().is_none_or(|lane| lane.is_silent())
            && let Some(core) = client.other_core_that_answers(core)
        {
            return Some(Route::Elsewhere(core, ticket));
        }
        if let Some(begun) = lane.and_then(|lane| begin(&lane)) {
            return Some(Route::Here(begun, ticket));
        }
        if let Some(core) = client.other_core_with_lane(core) {
            return Some(Route::Elsewhere(core, ticket));
        }
        // The client's lanes have just ended, or it allows no more flows.
    }
    None
}
