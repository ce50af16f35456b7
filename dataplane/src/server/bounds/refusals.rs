//! The reasons for which a visitor is refused, and how often each has happened. Each reason is
//! written once, in the list below: with its counter, its explanation, and the value that a gate
//! answers with. The counters are shown as `qmux_dp_service_refused_total{service,reason}`.

use crate::core::counters::{Counter, counters};

/// Declares [`RefusalCounters`], and [`Refusal`] for the reasons that have a value.
macro_rules! refusals {
    (
        values { $($(#[doc = $doc:literal])+ $label:ident = $value:ident,)+ }
        counted_by_their_callers { $($(#[doc = $other_doc:literal])+ $other_label:ident,)+ }
    ) => {
        counters! {
            /// Visitors of one service that one core has refused, by reason; the names are those of
            /// the label in metrics. Of UDP, datagrams of visitors that have no flow.
            RefusalCounters:
            $($(#[doc = $doc])+ $label,)+
            $($(#[doc = $other_doc])+ $other_label,)+
        }

        /// What a gate, or the wait for a PROXY header, refuses a visitor for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Refusal {
            $($(#[doc = $doc])+ $value,)+
        }

        impl Refusal {
            /// The counter of this reason.
            pub(crate) fn counter(self, counters: &RefusalCounters) -> &Counter {
                match self {
                    $(Refusal::$value => &counters.$label,)+
                }
            }
        }
    };
}

refusals! {
    values {
        /// `deny` names the visitor's address.
        denied = Denied,
        /// `allow` does not name the visitor's address.
        not_allowed = NotAllowed,
        /// The service has as many visitors as it takes. TCP only.
        max_visitors = Visitors,
        /// The visitor's source has as many visitors as it may have. TCP only.
        max_visitors_per_source = VisitorsOfSource,
        /// The visitor's source has opened too many connections of late. TCP only.
        visitors_per_second_per_source = RateOfSource,
        /// The visitor's source has as many flows as it may have. UDP only.
        max_udp_flows_per_source = UdpFlowsOfSource,
        /// What the visitor sent first is not a PROXY header. TCP only, as the four that follow.
        proxy_header_bad = ProxyHeaderBad,
        /// The PROXY header is longer than 4 KiB, or in text form than 107 bytes.
        proxy_header_too_long = ProxyHeaderTooLong,
        /// The PROXY header was not complete after five seconds.
        proxy_header_late = ProxyHeaderLate,
        /// The visitor ended or reset the connection before its PROXY header was complete.
        proxy_header_missing = ProxyHeaderMissing,
        /// The core waits for as many other PROXY headers as it can.
        proxy_header_crowd = ProxyHeaderCrowd,
        /// The table of sources has no room for the visitor's. TCP only.
        sources_full = SourcesFull,
    }
    counted_by_their_callers {
        /// Memory is used up and no flow stalls.
        memory,
        /// The file descriptors that are left are not for visitors. TCP only.
        descriptors,
        /// No client could serve the visitor. TCP only.
        no_client,
    }
}
