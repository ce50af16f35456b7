//! A registered lane's claim on its client, and what the lane has said of the client's services.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use qmux_proto::control::SERVICES_MAX;

use super::client::{Client, NOBODY};
use super::registry::Registry;
use super::service::Member;

/// Services that a lane has called down: a bit for each.
type Services = u64;

const _: () = assert!(SERVICES_MAX <= Services::BITS as usize);

/// A service that a client serves, by the door's number of it.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) service: usize,
    pub(super) member: Arc<Member>,
}

/// A registered lane's claim on its client.
#[derive(Debug)]
pub(crate) struct LaneMembership {
    registry: Arc<Registry>,
    client: Arc<Client>,
    /// What the client serves.
    served: Arc<[Served]>,
    core: usize,
    /// Tells lanes of this registry apart; never 0.
    serial: u64,
    takes_flows: Cell<bool>,
    services_down: Cell<Services>,
    silent: Cell<bool>,
    /// It counts among the answering ones.
    answering: Cell<bool>,
    over: Cell<bool>,
    first: bool,
}

impl LaneMembership {
    /// Of a lane that takes flows from now on.
    pub(super) fn begin(
        registry: &Arc<Registry>,
        client: Arc<Client>,
        served: Arc<[Served]>,
        core: usize,
        serial: u64,
    ) -> LaneMembership {
        client.registered.fetch_add(1, Ordering::Relaxed);
        client.lanes[core].open.fetch_add(1, Ordering::Relaxed);
        client.lanes_total.open.fetch_add(1, Ordering::Relaxed);
        let first = client.lanes_up.fetch_add(1, Ordering::Relaxed) == 0;
        let membership = LaneMembership {
            registry: Arc::clone(registry),
            client,
            served,
            core,
            serial,
            takes_flows: Cell::new(true),
            services_down: Cell::new(0),
            silent: Cell::new(false),
            answering: Cell::new(false),
            over: Cell::new(false),
            first,
        };
        membership.count_answering();
        membership
    }

    /// The client.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The client as one of those of a service, by the door's number of it.
    pub(crate) fn member(&self, service: usize) -> Option<&Arc<Member>> {
        self.place(service).map(|place| &self.served[place].member)
    }

    fn place(&self, service: usize) -> Option<usize> {
        self.served.iter().position(|it| it.service == service)
    }

    /// The client had no other lane when this one came.
    pub(crate) fn is_first(&self) -> bool {
        self.first
    }

    /// The lane takes no new flow from now on (it drains or is unhealthy).
    pub(crate) fn take_no_more(&self) {
        if self.takes_flows.replace(false) {
            let client = &self.client;
            client.lanes_total.open.fetch_sub(1, Ordering::Relaxed);
            client.lanes[self.core].open.fetch_sub(1, Ordering::Relaxed);
        }
        self.count_answering();
    }

    fn count_answering(&self) {
        let answers = self.takes_flows.get() && !self.silent.get();
        if self.answering.replace(answers) == answers {
            return;
        }
        for counts in [&self.client.lanes_total, &*self.client.lanes[self.core]] {
            if answers {
                counts.answering.fetch_add(1, Ordering::Relaxed);
            } else {
                counts.answering.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes the probing role for this lane if no other one of the client has it. True if it has it
    /// now.
    pub(crate) fn claim_probing(&self) -> bool {
        let prober = &self.client.prober;
        !self.over.get()
            && (prober.load(Ordering::Relaxed) == self.serial
                || prober
                    .compare_exchange(NOBODY, self.serial, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok())
    }

    /// Gives the probing role back. True if this lane had it.
    pub(crate) fn leave_probing(&self) -> bool {
        self.client
            .prober
            .compare_exchange(self.serial, NOBODY, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The lane has ended. Its last flow may go on for some time, and must not keep alive what the
    /// lane said or did not say: its successor knows better. True if the client has no other lane.
    pub(crate) fn lane_ended(&self) -> bool {
        self.take_no_more();
        self.silence(false);
        for served in self.served.iter() {
            self.service_health(served.service, true);
        }
        self.leave_probing();
        !self.over.replace(true) && self.client.lanes_up.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// The lane says whether the client reaches a service. True if that changes what is thought of
    /// it: the client's service is down while any of its lanes says so.
    pub(crate) fn service_health(&self, service: usize, healthy: bool) -> bool {
        let Some(place) = self.place(service) else {
            return false;
        };
        let bit = 1 << place;
        let before = self.services_down.get();
        let down = !healthy;
        if self.over.get() || (before & bit != 0) == down {
            return false;
        }
        self.services_down.set(before ^ bit);
        let member = &self.served[place].member;
        if down {
            member.one_lane_says_down()
        } else {
            member.one_lane_says_up()
        }
    }

    /// Whether what is sent on this lane is left unanswered.
    pub(crate) fn silence(&self, silent: bool) {
        if !self.over.get() {
            self.silent.set(silent);
            self.count_answering();
        }
    }
}

impl Drop for LaneMembership {
    fn drop(&mut self) {
        let _last = self.lane_ended();
        self.registry.leave(&self.client);
    }
}
