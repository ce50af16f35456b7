//! Why a visitor was not let in, and how often.

use crate::core::counters::{Counter, counters};

counters! {
    /// Visitors of one service that one core has refused, by reason; the names are those of the
    /// label in metrics. Of UDP, datagrams of visitors that have no flow.
    RefusalCounters:
    /// `deny` names their address.
    denied,
    /// `allow` does not name their address.
    not_allowed,
    /// Memory is used up and no flow stalls. TCP only.
    memory,
    /// The file descriptors that are left are not for visitors. TCP only.
    descriptors,
    /// No client could serve them. TCP only.
    no_client,
}

/// What a gate refuses a visitor for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `deny` names its address.
    Denied,
    /// `allow` does not name its address.
    NotAllowed,
}

impl Refusal {
    /// Where it is counted.
    pub(super) fn counter(self, counters: &RefusalCounters) -> &Counter {
        match self {
            Refusal::Denied => &counters.denied,
            Refusal::NotAllowed => &counters.not_allowed,
        }
    }
}
