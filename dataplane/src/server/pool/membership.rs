//! A registered lane's claim on its client, and what the lane has said of the client's services.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;

use super::client::{Client, NOBODY};
use super::registry::Registry;
use super::service::{ClientPool, Member};

/// A service that a client serves, by the door's number of it.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) service: usize,
    pub(super) pool: Arc<ClientPool>,
    pub(super) member: Arc<Member>,
}

/// What a client serves: the configuration may change it while the client is there.
pub(super) type Serves = ArcSwap<Vec<Served>>;

/// A registered lane's claim on its client.
#[derive(Debug)]
pub(crate) struct LaneMembership {
    registry: Arc<Registry>,
    client: Arc<Client>,
    /// What the client serves.
    serves: Arc<Serves>,
    core: usize,
    /// Tells lanes of this registry apart; never 0.
    serial: u64,
    takes_flows: Cell<bool>,
    /// The services that the lane has called down; some of them the client may serve no more.
    down: RefCell<Vec<Arc<Member>>>,
    silent: Cell<bool>,
    /// It counts among the answering ones.
    answering: Cell<bool>,
    over: Cell<bool>,
    /// It counts among those that ride TLS.
    over_tls: Cell<bool>,
    first: bool,
}

impl LaneMembership {
    /// Of a lane that takes flows from now on.
    pub(super) fn begin(
        registry: &Arc<Registry>,
        client: Arc<Client>,
        serves: Arc<Serves>,
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
            serves,
            core,
            serial,
            takes_flows: Cell::new(true),
            down: RefCell::default(),
            silent: Cell::new(false),
            answering: Cell::new(false),
            over: Cell::new(false),
            over_tls: Cell::new(false),
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
    pub(crate) fn member(&self, service: usize) -> Option<Arc<Member>> {
        let serves = self.serves.load();
        let served = serves.iter().find(|it| it.service == service)?;
        Some(Arc::clone(&served.member))
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

    /// What carries the lane from now on.
    pub(crate) fn rides_tls(&self, over_tls: bool) {
        if self.over.get() || self.over_tls.replace(over_tls) == over_tls {
            return;
        }
        let count = &self.client.lanes_over_tls;
        if over_tls {
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The lane has ended. Its last flow may go on for some time, and must not keep alive what the
    /// lane said or did not say: its successor knows better. True if the client has no other lane.
    pub(crate) fn lane_ended(&self) -> bool {
        self.take_no_more();
        self.silence(false);
        for member in self.down.take() {
            let _news = member.one_lane_says_up();
        }
        self.leave_probing();
        self.rides_tls(false);
        !self.over.replace(true) && self.client.lanes_up.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// The lane says whether the client reaches a service. True if that changes what is thought of
    /// it: the client's service is down while any of its lanes says so.
    pub(crate) fn service_health(&self, service: usize, healthy: bool) -> bool {
        let Some(member) = self.member(service) else {
            return false;
        };
        let mut down = self.down.borrow_mut();
        let before = down.iter().position(|it| Arc::ptr_eq(it, &member));
        match before {
            _ if self.over.get() => false,
            None if !healthy => {
                let news = member.one_lane_says_down();
                down.push(member);
                news
            }
            Some(place) if healthy => {
                down.swap_remove(place);
                member.one_lane_says_up()
            }
            _ => false,
        }
    }

    /// The client serves other services now: what the lane has said of those that it serves no more
    /// is forgotten.
    pub(crate) fn services_changed(&self) {
        let serves = self.serves.load();
        let is_served =
            |member: &Arc<Member>| serves.iter().any(|it| Arc::ptr_eq(&it.member, member));
        self.down.borrow_mut().retain(is_served);
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
