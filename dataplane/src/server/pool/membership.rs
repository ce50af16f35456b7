//! The membership of a registered lane in its client, and what the lane has reported about the
//! client's services.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;

use super::client::{Client, NOBODY};
use super::registry::Registry;
use super::service::{ClientPool, Member};

/// A service that a client serves, by its number at the door.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) service: usize,
    pub(super) pool: Arc<ClientPool>,
    pub(super) member: Arc<Member>,
}

/// The services that a client serves; the configuration may change them while the client is there.
pub(super) type Serves = ArcSwap<Vec<Served>>;

/// A service that a lane has reported as down, by its number at the door.
#[derive(Debug)]
struct Down {
    service: usize,
    member: Arc<Member>,
}

/// The membership of a registered lane in its client.
#[derive(Debug)]
pub(crate) struct LaneMembership {
    registry: Arc<Registry>,
    client: Arc<Client>,
    /// The services that the client serves.
    serves: Arc<Serves>,
    core: usize,
    /// Tells lanes of this registry apart; never 0.
    serial: u64,
    takes_flows: Cell<bool>,
    /// The services that the lane has reported as down; the client may no longer serve some of
    /// them.
    down: RefCell<Vec<Down>>,
    silent: Cell<bool>,
    /// Whether the lane is counted among those whose peer answers.
    answering: Cell<bool>,
    over: Cell<bool>,
    /// Whether the lane is counted among those that ride TLS.
    over_tls: Cell<bool>,
    first: bool,
}

impl LaneMembership {
    /// The membership of a lane that takes flows from now on.
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

    /// The client that the lane belongs to.
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The client as a member of one of its services, by the service's number at the door.
    pub(crate) fn member(&self, service: usize) -> Option<Arc<Member>> {
        let serves = self.serves.load();
        let served = serves.iter().find(|it| it.service == service)?;
        Some(Arc::clone(&served.member))
    }

    /// Whether the client had no other lane when this one came.
    pub(crate) fn is_first(&self) -> bool {
        self.first
    }

    /// Takes the lane out of the choice for new flows, because it drains or is unhealthy. What it
    /// has reported about services counts no more: it may go on for days with its flows, and know
    /// nothing of where a service is meanwhile. Lanes that take flows know better. Returns the
    /// numbers of the services that are up by that: there are other lanes, and none says that they
    /// are down.
    pub(crate) fn take_no_more(&self) -> Vec<usize> {
        let down = self.down.take().into_iter();
        let is_up = |it: &Down| it.member.one_lane_says_up();
        let up: Vec<usize> = down.filter(is_up).map(|it| it.service).collect();
        if self.takes_flows.replace(false) {
            let client = &self.client;
            client.lanes_total.open.fetch_sub(1, Ordering::Relaxed);
            client.lanes[self.core].open.fetch_sub(1, Ordering::Relaxed);
        }
        self.count_answering();
        match self.client.usable() {
            true => up,
            false => Vec::new(),
        }
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

    /// Takes the probing role for this lane, if no other lane of the client has it. Returns true if
    /// this lane has it now.
    pub(crate) fn claim_probing(&self) -> bool {
        let prober = &self.client.prober;
        !self.over.get()
            && (prober.load(Ordering::Relaxed) == self.serial
                || prober
                    .compare_exchange(NOBODY, self.serial, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok())
    }

    /// Gives the probing role back. Returns true if this lane had it.
    pub(crate) fn leave_probing(&self) -> bool {
        self.client
            .prober
            .compare_exchange(self.serial, NOBODY, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Notes whether the lane rides TLS from now on.
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

    /// Ends the membership of a lane that has ended, although its last flow may go on for some
    /// time. Returns true if the client has no other lane.
    pub(crate) fn lane_ended(&self) -> bool {
        let _said_by_the_door = self.take_no_more();
        self.silence(false);
        self.leave_probing();
        self.rides_tls(false);
        !self.over.replace(true) && self.client.lanes_up.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// The lane reports whether the client reaches a service. Returns true if that changes the
    /// state of the service at this client, which is down while any lane reports so.
    pub(crate) fn service_health(&self, service: usize, healthy: bool) -> bool {
        let Some(member) = self.member(service) else {
            return false;
        };
        let mut down = self.down.borrow_mut();
        let before = down.iter().position(|it| Arc::ptr_eq(&it.member, &member));
        match before {
            _ if !self.takes_flows.get() => false,
            None if !healthy => {
                let news = member.one_lane_says_down();
                down.push(Down { service, member });
                news
            }
            Some(place) if healthy => {
                down.swap_remove(place);
                member.one_lane_says_up()
            }
            _ => false,
        }
    }

    /// The client serves other services now. What the lane has reported about services that it
    /// serves no more is forgotten.
    pub(crate) fn services_changed(&self) {
        let serves = self.serves.load();
        let is_served = |down: &Down| {
            serves
                .iter()
                .any(|it| Arc::ptr_eq(&it.member, &down.member))
        };
        self.down.borrow_mut().retain(is_served);
    }

    /// Notes whether what is sent on this lane stays unanswered.
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
