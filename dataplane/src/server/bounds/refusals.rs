//! The reasons for which a visitor is refused, and how often each has happened. Each reason is
//! written once, in the list below: with its counter, its explanation, and the value that names
//! it in code. The counters are shown as `qmux_dp_service_refused_total{service,reason}`.

use crate::core::counters::{Counter, counters};

/// Declares [`RefusalCounters`] and [`Refusal`].
macro_rules! refusals {
    (
        of_the_gate { $($(#[doc = $gate_doc:literal])+ $gate_label:ident = $gate:ident,)+ }
        of_a_proxy_header { $($(#[doc = $header_doc:literal])+ $header_label:ident = $header:ident,)+ }
        of_the_server { $($(#[doc = $server_doc:literal])+ $server_label:ident = $server:ident,)+ }
    ) => {
        counters! {
            /// Visitors of one service that one core has refused, by reason; the names are those of
            /// the label in metrics. Of UDP, datagrams of visitors that have no flow; with
            /// `not_served`, flows.
            RefusalCounters:
            $($(#[doc = $gate_doc])+ $gate_label,)+
            $($(#[doc = $header_doc])+ $header_label,)+
            $($(#[doc = $server_doc])+ $server_label,)+
        }

        /// What a visitor is refused for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Refusal {
            $($(#[doc = $gate_doc])+ $gate,)+
            $($(#[doc = $header_doc])+ $header,)+
            $($(#[doc = $server_doc])+ $server,)+
        }

        impl Refusal {
            /// The counter of this reason.
            pub(crate) fn counter(self, counters: &RefusalCounters) -> &Counter {
                match self {
                    $(Refusal::$gate => &counters.$gate_label,)+
                    $(Refusal::$header => &counters.$header_label,)+
                    $(Refusal::$server => &counters.$server_label,)+
                }
            }

            /// Who refuses.
            pub(crate) fn refuser(self) -> Refuser {
                match self {
                    $(Refusal::$gate)|+ => Refuser::Gate,
                    $(Refusal::$header)|+ => Refuser::ProxyHeader,
                    $(Refusal::$server)|+ => Refuser::Server,
                }
            }
        }
    };
}

/// Who refuses a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refuser {
    /// The service's gate, which counts the reason itself.
    Gate,
    /// The wait for a PROXY header.
    ProxyHeader,
    /// The server, for which this visitor is one too many, or in vain. Each of its reasons has a
    /// counter over all services as well, named where TCP is refused.
    Server,
}

refusals! {
    of_the_gate {
        /// `deny` names the visitor's address.
        denied = Denied,
        /// `allow` does not name the visitor's address.
        not_allowed = NotAllowed,
        /// The service has as many visitors as it takes. TCP only.
        max_visitors = Visitors,
        /// The visitor's source has as many visitors as it may have. TCP only.
        max_visitors_per_source = VisitorsOfSource,
        /// The visitor's source has opened too many connections recently. TCP only.
        visitors_per_second_per_source = RateOfSource,
        /// The visitor's source has as many flows as it may have. UDP only.
        max_udp_flows_per_source = UdpFlowsOfSource,
        /// The table of sources has no room for the visitor's. TCP only.
        sources_full = SourcesFull,
    }
    of_a_proxy_header {
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
    }
    of_the_server {
        /// Memory is used up and no flow stalls.
        memory = Memory,
        /// The file descriptors that are left are not for visitors. TCP only.
        descriptors = Descriptors,
        /// There is no client for the visitor.
        no_client = NoClient,
        /// The visitor was sent to a client, and neither that one nor another could serve it: the
        /// service is down, for instance.
        not_served = NotServed,
        /// A core has as many UDP flows as it keeps. UDP only.
        flow_limit = FlowLimit,
    }
}
