//! The plan from one configuration to the next: which doors, services and entrances stay, are
//! opened and are closed.
//!
//! The plan is made and its sockets are bound before anything changes, so that a configuration that
//! cannot be carried out changes nothing. What stays keeps its numbers, clients, counters and
//! flows. A door stays if its clients connect to the same addresses, a service if it has the same
//! name at its door, an entrance if it has the same port.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;
use qmux_config::{Door, Server, Service};

use super::overlap::Addresses;
use super::{ServedService, ServerSettings, ServerShared, SharedDoor};
use crate::server::access_log::AccessLog;
use crate::server::ids::{DoorId, EntranceId};
use crate::sys::tcp::stop_listening;

/// One port of a service, as all cores know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SharedEntrance {
    /// The number of the entrance.
    pub(crate) id: EntranceId,
    /// The address that visitors connect to.
    pub(crate) traffic_addr: SocketAddr,
    /// Whether TCP visitors come here.
    pub(crate) tcp: bool,
    /// Whether UDP visitors come here.
    pub(crate) udp: bool,
}

/// The plan for one service.
#[derive(Debug)]
pub(crate) struct ServicePlan {
    pub(in crate::server) service: Arc<ServedService>,
    pub(in crate::server) wanted: Service,
    pub(in crate::server) kept: Vec<SharedEntrance>,
    /// Entrances to be opened.
    pub(crate) opened: Vec<SharedEntrance>,
}

/// The plan for one door.
#[derive(Debug)]
pub(crate) struct DoorPlan {
    pub(in crate::server) door: Arc<SharedDoor>,
    /// Whether the door is to be opened.
    pub(crate) is_new: bool,
    pub(crate) services: Vec<ServicePlan>,
}

impl DoorPlan {
    /// The addresses that the door's clients connect to.
    pub(crate) fn quic_addrs(&self) -> &[SocketAddr] {
        &self.door.quic_addrs
    }
}

/// The plan from one configuration to the next.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(in crate::server) settings: Arc<ServerSettings>,
    /// All doors of the next configuration.
    pub(crate) doors: Vec<DoorPlan>,
    pub(in crate::server) doors_closed: Vec<Arc<SharedDoor>>,
    /// Entrances to be closed to new visitors.
    pub(in crate::server) closed: Vec<SharedEntrance>,
    /// Services that are removed.
    pub(in crate::server) removed: Vec<Arc<ServedService>>,
    /// Addresses at which entrances that an earlier plan has closed accept the last of their TCP
    /// visitors.
    pub(in crate::server) leaving_tcp: Vec<SocketAddr>,
}

impl Plan {
    /// The `[server]` section of the next configuration.
    pub(crate) fn server(&self) -> &Server {
        self.settings.server()
    }

    /// Addresses at which this process takes visitors, of TCP or of UDP, and which this plan gives
    /// up or an earlier one is about to have given up. No other process can have them, and this one
    /// may bind them again.
    pub(crate) fn given_up(&self, tcp: bool) -> Addresses {
        let of = self
            .closed
            .iter()
            .filter(|it| if tcp { it.tcp } else { it.udp });
        let leaving = self.leaving_tcp.iter().copied().filter(|_| tcp);
        of.map(|it| it.traffic_addr).chain(leaving).collect()
    }

    /// Whether a door that stays has this address. It may take clients over TLS there, by a socket
    /// of the door's that only a restart gives up.
    pub(crate) fn is_of_a_door_that_stays(&self, address: SocketAddr) -> bool {
        let doors = self.doors.iter().filter(|door| !door.is_new);
        let addresses: Addresses = doors.flat_map(DoorPlan::quic_addrs).copied().collect();
        addresses.overlap(address)
    }

    /// The addresses of the door of this process, one that stays or one that this plan closes, that
    /// clients reach at this address.
    pub(crate) fn own_door_at(&self, address: SocketAddr) -> Option<&[SocketAddr]> {
        let stay = self.doors.iter().filter(|door| !door.is_new);
        let mut doors = stay.map(|it| &it.door).chain(&self.doors_closed);
        let own = doors.find(|door| {
            let addresses: Addresses = door.quic_addrs.iter().copied().collect();
            addresses.overlap(address)
        });
        own.map(|door| &*door.quic_addrs)
    }

    /// Addresses at which UDP visitors are to be taken.
    pub(in crate::server) fn opens_udp(&self) -> Addresses {
        let services = self.doors.iter().flat_map(|door| &door.services);
        let opened = services.flat_map(|service| &service.opened);
        opened
            .filter(|it| it.udp)
            .map(|it| it.traffic_addr)
            .collect()
    }

    /// Whether the server will show another certificate, or check clients' certificates against
    /// other CAs or revocation lists.
    pub(crate) fn changes_credentials(&self, shared: &ServerShared) -> bool {
        let (now, then) = (shared.settings(), &self.settings);
        let digests = |it: &ServerSettings| (it.credentials.shown, it.credentials.trusted);
        digests(&now) != digests(then)
    }

    /// Whether the plan closes doors or entrances.
    pub(crate) fn closes_something(&self) -> bool {
        !self.doors_closed.is_empty() || !self.closed.is_empty()
    }

    /// Entrances that TCP visitors are not to come to any more.
    pub(crate) fn closes_tcp(&self) -> impl Iterator<Item = EntranceId> {
        self.closed.iter().filter(|it| it.tcp).map(|it| it.id)
    }
}

/// The sockets of one door on one core.
#[derive(Debug)]
pub(crate) struct DoorSockets {
    /// Sockets for QUIC, one for each of the door's addresses, if the door is new.
    pub(crate) quic: Vec<UdpSocket>,
    /// Sockets for TLS at the same addresses, where they could be bound.
    pub(crate) tls: Vec<Option<TcpListener>>,
    /// For each of the door's services, the sockets of the entrances to be opened.
    pub(crate) services: Vec<Vec<EntranceSockets>>,
}

/// The sockets of one entrance on one core.
#[derive(Debug)]
pub(crate) struct EntranceSockets {
    /// The socket for TCP visitors, if the service takes them.
    pub(crate) tcp: Option<TcpListener>,
    /// The socket for UDP visitors, if the service takes them.
    pub(crate) udp: Option<UdpSocket>,
}

/// A door that a core is to open.
#[derive(Debug)]
pub(in crate::server) struct OpenedDoor {
    pub(in crate::server) door: Arc<SharedDoor>,
    pub(in crate::server) sockets: Vec<UdpSocket>,
    pub(in crate::server) tls_sockets: Vec<Option<TcpListener>>,
}

/// An entrance that a core is to open.
#[derive(Debug)]
pub(in crate::server) struct OpenedEntrance {
    pub(in crate::server) door: DoorId,
    pub(in crate::server) service: Arc<ServedService>,
    pub(in crate::server) entrance: SharedEntrance,
    pub(in crate::server) sockets: EntranceSockets,
}

/// What one core has to do to carry a plan out.
#[derive(Debug)]
pub(crate) struct CoreChanges {
    pub(in crate::server) doors_opened: Vec<OpenedDoor>,
    pub(in crate::server) doors_closed: Vec<DoorId>,
    pub(in crate::server) opened: Vec<OpenedEntrance>,
    pub(in crate::server) closed: Vec<ClosedEntrance>,
    /// Clients that serve other services now, or on other terms, by door and number.
    pub(in crate::server) told: Arc<Vec<(DoorId, u64)>>,
    /// How long the flows of what is closed may go on.
    pub(in crate::server) drain_timeout: Duration,
    /// The channel on which to report that the change is done; the text is for the log.
    pub(crate) done: Option<Sender<Result<(), String>>>,
}

impl CoreChanges {
    /// Gives up the sockets because no core will use them: no visitor may be left waiting at them.
    /// Other parts of this process hold them as well, so dropping them here is not enough.
    pub(crate) fn give_up(self) {
        let of_doors = self.doors_opened.iter().flat_map(|door| &door.tls_sockets);
        let of_doors = of_doors.flatten();
        let of_entrances = self.opened.iter().filter_map(|it| it.sockets.tcp.as_ref());
        of_doors.chain(of_entrances).for_each(stop_listening);
    }
}

/// An entrance that a core is to close.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClosedEntrance {
    pub(crate) entrance: SharedEntrance,
    /// Whether its UDP flows must end at once, because another entrance has the address.
    pub(crate) udp_at_once: bool,
}

/// Distributes the sockets to the cores: `sockets[core][door]`.
pub(in crate::server) fn for_cores(
    plan: &Plan,
    sockets: Vec<Vec<DoorSockets>>,
    told: Vec<(DoorId, u64)>,
    superseded: &[SharedEntrance],
) -> Vec<CoreChanges> {
    let told = Arc::new(told);
    let drain_timeout = plan.settings.server().drain_timeout;
    let taken = plan.opens_udp();
    let closing = plan.closed.iter().map(|entrance| ClosedEntrance {
        entrance: *entrance,
        udp_at_once: entrance.udp && taken.overlap(entrance.traffic_addr),
    });
    let superseded = superseded.iter().map(|entrance| ClosedEntrance {
        entrance: *entrance,
        udp_at_once: true,
    });
    let closed: Vec<_> = closing.chain(superseded).collect();
    let of_core = |sockets: Vec<DoorSockets>| {
        let mut changes = CoreChanges {
            doors_opened: Vec::new(),
            doors_closed: plan.doors_closed.iter().map(|door| door.id).collect(),
            opened: Vec::new(),
            closed: closed.clone(),
            told: Arc::clone(&told),
            drain_timeout,
            done: None,
        };
        for (door, sockets) in plan.doors.iter().zip(sockets) {
            changes.take(door, sockets);
        }
        changes
    };
    sockets.into_iter().map(of_core).collect()
}

impl CoreChanges {
    fn take(&mut self, plan: &DoorPlan, sockets: DoorSockets) {
        if plan.is_new {
            self.doors_opened.push(OpenedDoor {
                door: Arc::clone(&plan.door),
                sockets: sockets.quic,
                tls_sockets: sockets.tls,
            });
        }
        for (service, sockets) in plan.services.iter().zip(sockets.services) {
            for (entrance, sockets) in service.opened.iter().zip(sockets) {
                self.opened.push(OpenedEntrance {
                    door: plan.door.id,
                    service: Arc::clone(&service.service),
                    entrance: *entrance,
                    sockets,
                });
            }
        }
    }
}

/// The source of numbers for doors and entrances, none of which is given twice.
#[derive(Debug, Default)]
pub(in crate::server) struct Numbers {
    doors: u64,
    entrances: u64,
}

impl Numbers {
    fn door(&mut self) -> DoorId {
        self.doors += 1;
        DoorId(self.doors - 1)
    }

    fn entrance(&mut self) -> EntranceId {
        self.entrances += 1;
        EntranceId(self.entrances - 1)
    }
}

/// Plans the change from the doors `current` to those of `settings`.
pub(in crate::server) fn plan(
    current: &[Arc<SharedDoor>],
    settings: &Arc<ServerSettings>,
    numbers: &mut Numbers,
    cores: usize,
    access_log: &Arc<AccessLog>,
) -> Plan {
    let mut plan = Plan {
        doors: Vec::new(),
        doors_closed: Vec::new(),
        closed: Vec::new(),
        removed: Vec::new(),
        leaving_tcp: Vec::new(),
        settings: Arc::clone(settings),
    };
    let new_service =
        |wanted: &Service, number| ServedService::new(wanted, number, cores, access_log);
    let mut left: Vec<&Arc<SharedDoor>> = current.iter().collect();
    for wanted in &settings.server().doors {
        let known = left
            .iter()
            .position(|it| are_the_same(&it.quic_addrs, &wanted.quic_addrs));
        let (door, is_new) = match known {
            Some(known) => (Arc::clone(left.remove(known)), false),
            None => (SharedDoor::new(numbers.door(), wanted, cores), true),
        };
        let services = plan_services(&door, wanted, numbers, &new_service, &mut plan);
        plan.doors.push(DoorPlan {
            door,
            is_new,
            services,
        });
    }
    for door in left {
        plan.doors_closed.push(Arc::clone(door));
        for service in &door.services().all {
            plan.closed.extend(&service.terms().entrances);
            plan.removed.push(Arc::clone(service));
        }
    }
    plan
}

/// Whether two lists hold the same addresses, in whatever order.
fn are_the_same(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

fn plan_services(
    door: &SharedDoor,
    wanted: &Door,
    numbers: &mut Numbers,
    new_service: &impl Fn(&Service, usize) -> Arc<ServedService>,
    plan: &mut Plan,
) -> Vec<ServicePlan> {
    let current = door.services();
    let mut next = current
        .all
        .iter()
        .map(|it| it.number + 1)
        .max()
        .unwrap_or(0);
    next = next.max(door.numbers_used());
    let mut plans = Vec::new();
    for wanted in &wanted.services {
        let service = current.by_name(&wanted.name).cloned().unwrap_or_else(|| {
            next += 1;
            new_service(wanted, next - 1)
        });
        let (kept, opened) = plan_entrances(&service, wanted, numbers, plan);
        plans.push(ServicePlan {
            service,
            wanted: wanted.clone(),
            kept,
            opened,
        });
    }
    let stays: HashMap<&str, ()> = wanted.services.iter().map(|it| (&*it.name, ())).collect();
    for gone in current
        .all
        .iter()
        .filter(|it| !stays.contains_key(&*it.name))
    {
        plan.closed.extend(&gone.terms().entrances);
        plan.removed.push(Arc::clone(gone));
    }
    plans
}

/// Plans which entrances of a service stay and which are opened. If a port changes the protocols
/// that it takes, the half that stays keeps its entrance; the other half is an entrance of its own.
fn plan_entrances(
    service: &ServedService,
    wanted: &Service,
    numbers: &mut Numbers,
    plan: &mut Plan,
) -> (Vec<SharedEntrance>, Vec<SharedEntrance>) {
    let (tcp, udp) = (wanted.protocol.tcp(), wanted.protocol.udp());
    let (mut kept, mut opened) = (Vec::new(), Vec::new());
    let mut has: HashMap<SocketAddr, (bool, bool)> = HashMap::new();
    let addresses: HashMap<SocketAddr, ()> =
        wanted.traffic.addresses().map(|it| (it, ())).collect();
    for entrance in &service.terms().entrances {
        let stays = addresses.contains_key(&entrance.traffic_addr);
        let stays = SharedEntrance {
            tcp: stays && tcp && entrance.tcp,
            udp: stays && udp && entrance.udp,
            ..*entrance
        };
        let goes = SharedEntrance {
            tcp: entrance.tcp && !stays.tcp,
            udp: entrance.udp && !stays.udp,
            ..*entrance
        };
        if stays.tcp || stays.udp {
            let has = has.entry(entrance.traffic_addr).or_default();
            *has = (has.0 || stays.tcp, has.1 || stays.udp);
            kept.push(stays);
        }
        if goes.tcp || goes.udp {
            plan.closed.push(goes);
        }
    }
    for traffic_addr in wanted.traffic.addresses() {
        let has = has.get(&traffic_addr).copied().unwrap_or_default();
        let (tcp, udp) = (tcp && !has.0, udp && !has.1);
        if tcp || udp {
            opened.push(SharedEntrance {
                id: numbers.entrance(),
                traffic_addr,
                tcp,
                udp,
            });
        }
    }
    (kept, opened)
}
