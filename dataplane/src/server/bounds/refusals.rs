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
    /// What should be their PROXY header is none. TCP only, as what follows.
    proxy_header_bad,
    /// Their PROXY header is longer than 4 KiB, or in text form than 107 bytes.
    proxy_header_too_long,
    /// Their PROXY header was not there after five seconds.
    proxy_header_late,
    /// They ended or reset the connection before their PROXY header had come.
    proxy_header_missing,
    /// Their PROXY header had not come when too many others were waited for.
    proxy_header_crowd,
    /// As many other sources have something as are kept in mind. TCP only.
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
    /// What it has sent is no PROXY header.
    ProxyHeaderBad,
    /// Its PROXY header is too long.
    ProxyHeaderTooLong,
    /// Its PROXY header has not come in time.
    ProxyHeaderLate,
    /// It was gone before its PROXY header had come.
    ProxyHeaderMissing,
    /// Too many others are waited for.
    ProxyHeaderCrowd,
    /// There is no room to remember its source.
    SourcesFull,
}

impl Refusal {
    /// Where it is counted.
    pub(crate) fn counter(self, counters: &RefusalCounters) -> &Counter {
        match self {
            Refusal::Denied => &counters.denied,
            Refusal::NotAllowed => &counters.not_allowed,
            Refusal::Visitors => &counters.max_visitors,
            Refusal::VisitorsOfSource => &counters.max_visitors_per_source,
            Refusal::RateOfSource => &counters.visitors_per_second_per_source,
            Refusal::UdpFlowsOfSource => &counters.max_udp_flows_per_source,
            Refusal::ProxyHeaderBad => &counters.proxy_header_bad,
            Refusal::ProxyHeaderTooLong => &counters.proxy_header_too_long,
            Refusal::ProxyHeaderLate => &counters.proxy_header_late,
            Refusal::ProxyHeaderMissing => &counters.proxy_header_missing,
            Refusal::ProxyHeaderCrowd => &counters.proxy_header_crowd,
            Refusal::SourcesFull => &counters.sources_full,
        }
    }
}
