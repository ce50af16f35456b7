//! The way of a new flow: which client, and through which core's lane. It does no I/O.

use std::rc::Rc;
use std::time::Instant;

use qmux_proto::Protocol;

use super::balance::Tried;
use super::lanes::CarriesFlows;
use super::service::{ClientPool, FlowTicket};

/// Where a flow goes.
#[derive(Debug)]
pub(crate) enum Way<B> {
    /// Through a lane of this core, on which it has begun.
    Here(B, FlowTicket),
    /// Through a lane of this other core.
    Elsewhere(usize, FlowTicket),
}

/// Finds a client among those that the visitor has not been to, and a lane of it: the one of this
/// core that `pick_lane` gives for it, if `begin` succeeds on that, or else one of another core. A
/// lane whose peer leaves everything unanswered is taken only if the client has no other. `None` if
/// there is no such client.
pub(crate) fn find<L: CarriesFlows, B>(
    pool: &ClientPool,
    protocol: Protocol,
    core: usize,
    tried: &mut Tried,
    now: Instant,
    pick_lane: impl Fn(u64) -> Option<Rc<L>>,
    mut begin: impl FnMut(&Rc<L>) -> Option<B>,
) -> Option<Way<B>> {
    while !tried.is_full() {
        let ticket = pool.pick(protocol, tried, now)?;
        let client = ticket.client();
        tried.add(client.number);
        let lane = pick_lane(client.number);
        if lane.as_ref().is_none_or(|lane| lane.is_silent())
            && let Some(core) = client.other_core_that_answers(core)
        {
            return Some(Way::Elsewhere(core, ticket));
        }
        if let Some(begun) = lane.and_then(|lane| begin(&lane)) {
            return Some(Way::Here(begun, ticket));
        }
        if let Some(core) = client.other_core_with_lane(core) {
            return Some(Way::Elsewhere(core, ticket));
        }
        // Its lanes have just ended, or it allows no more flows.
    }
    None
}
