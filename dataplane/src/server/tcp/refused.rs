//! The refusal of a TCP visitor: the one place where it is counted, logged and answered. The answer
//! is a reset, so that no visitor takes it for a service that has nothing to say.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::core::counters::Counter;
use crate::server::bounds::{Refusal, Refuser};
use crate::server::entrance::Entrance;
use crate::sys::limits;
use crate::sys::tcp::refuse;

impl Entrance {
    /// Resets a visitor whom no client has taken, and counts why.
    pub(super) fn refuse(&self, stream: TcpStream, visitor: SocketAddr, why: Refusal) {
        self.count_refused(visitor, why);
        refuse(stream);
    }

    /// Counts and logs the refusal of a visitor whose socket is reset when the caller drops it.
    pub(super) fn count_refused(&self, visitor: SocketAddr, why: Refusal) {
        self.service_counters().visitors_refused.increment();
        self.over_all_services(why).increment();
        if why.refuser() != Refuser::Gate {
            let refusals = &self.service().gate.refusals()[self.core()];
            why.counter(refusals).increment();
        }
        tracing::debug!(%visitor, ?why, "visitor refused; reset");
        if why == Refusal::Descriptors {
            self.warn_of_descriptors(visitor);
        }
    }

    /// This core's counter of visitors of all services who were refused like this.
    fn over_all_services(&self, why: Refusal) -> &Counter {
        let counters = self.counters();
        match (why.refuser(), why) {
            (Refuser::Gate, _) => &counters.visitors_refused_bounds,
            (Refuser::ProxyHeader, _) => &counters.visitors_refused_proxy_header,
            (Refuser::Server, Refusal::Memory) => &counters.visitors_refused_memory,
            (Refuser::Server, Refusal::Descriptors) => &counters.visitors_refused_descriptors,
            (Refuser::Server, Refusal::NotServed) => &counters.visitors_retry_exhausted,
            (Refuser::Server, _) => &counters.visitors_refused,
        }
    }

    fn warn_of_descriptors(&self, visitor: SocketAddr) {
        if let Some(suppressed) = self.context().dial_log.pass(Instant::now()) {
            tracing::warn!(
                %visitor,
                descriptors = limits::flow_descriptors_max(),
                suppressed,
                "no file descriptor is left for visitors (ulimit -n); this one is reset"
            );
        }
    }
}
