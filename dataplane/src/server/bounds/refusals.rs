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
    /// As many visitors are in as the service takes. TCP only.
    max_visitors,
    /// As many visitors of their source are in as it may have. TCP only.
    max_visitors_per_source,
    /// Their source has come too often of late. TCP only.
    visitors_per_second_per_source,
    /// Their source has as many flows as it may have. UDP only.
    max_udp_flows_per_source,
    /// As many other sources have something as are kept in mind.
    sources_full,
    /// Memory is used up and no flow stalls.
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
    /// `max_visitors` are in.
    Visitors,
    /// `max_visitors_per_source` of its source are in.
    VisitorsOfSource,
    /// `visitors_per_second_per_source` is used up.
    RateOfSource,
    /// Its source has `max_udp_flows_per_source`.
    UdpFlowsOfSource,
    /// There is no room to remember its source.
    SourcesFull,
}

impl Refusal {
    /// Where it is counted.
    pub(super) fn counter(self, counters: &RefusalCounters) -> &Counter {
        match self {
            Refusal::Denied => &counters.denied,
            Refusal::NotAllowed => &counters.not_allowed,
            Refusal::Visitors => &counters.max_visitors,
            Refusal::VisitorsOfSource => &counters.max_visitors_per_source,
            Refusal::RateOfSource => &counters.visitors_per_second_per_source,
            Refusal::UdpFlowsOfSource => &counters.max_udp_flows_per_source,
            Refusal::SourcesFull => &counters.sources_full,
        }
    }
}
