//! The roster: the list of servers, made from what the configured names resolve to.
//!
//! Each resolved address is a server of its own, with its own lanes, number of cores and back-off.
//! The roster only decides which addresses are on it. It does no I/O and knows no clock.
//!
//! An address that an answer lacks may be gone, or merely not be shown: some resolvers answer with
//! a part of the addresses, and with another part each time. A lack counts in two cases. Lanes to
//! the address are not up either (a server that stops says so, and one that has died is found out).
//! Or the answer is smaller than the one that showed the address last, and that one seemed to hold
//! all addresses: then the answers differ only by what is gone. That a part is smaller than another
//! part proves nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::server::{Configured, ServerState};
use super::stand_in;

/// Answers in a row that an address must be missing from, each of which counts, before its server
/// is given up.
const MISSED_ANSWERS_MAX: u32 = 3;

/// An address whose lanes are up is given up, however many addresses the answers have, when it has
/// been missing for this long, and should have been shown at least [`OVERDUE_MAX`] times if each
/// answer drew its addresses at random. Whatever part is shown, that happens by accident once in
/// e^30 times.
const UNSHOWN_FOR_MAX: Duration = Duration::from_secs(600);
const OVERDUE_MAX: f64 = 30.0;

/// The most servers of one client. Each costs a lane for each core of either side, and the answer
/// of a resolver is somebody else's word.
pub(crate) const SERVERS_MAX: usize = 256;

/// What has changed with an answer.
#[derive(Debug, Default)]
pub(crate) struct RosterChange {
    pub(crate) appeared: Vec<Arc<ServerState>>,
    pub(crate) vanished: Vec<Arc<ServerState>>,
    /// Servers that come from another configured server than before, or from the same one with
    /// other settings.
    pub(crate) changed: Vec<Arc<ServerState>>,
    /// Number of addresses left out because there are [`SERVERS_MAX`] servers.
    pub(crate) surplus: usize,
}

impl RosterChange {
    /// Whether nothing has changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty() && self.changed.is_empty()
    }
}

/// An address of a name.
#[derive(Debug)]
struct Known {
    address: SocketAddr,
    /// The time at which an answer showed the address last.
    shown_at: Instant,
    /// Number of addresses in that answer, if it seemed to hold all there are; otherwise 0.
    shown_among_all: usize,
    /// Answers in a row without the address.
    missed: u32,
    /// The number of the last answers without the address that count.
    missed_in_earnest: u32,
    /// The number of times that these answers would show the address if each drew its addresses at
    /// random.
    overdue: f64,
}

impl Known {
    /// Notes that the address was missing from an answer.
    fn miss(&mut self, in_earnest: bool, chance: f64) {
        self.missed = self.missed.saturating_add(1);
        self.missed_in_earnest = if in_earnest {
            self.missed_in_earnest + 1
        } else {
            0
        };
        self.overdue += chance;
    }

    fn is_gone(&self, now: Instant) -> bool {
        let unshown_for = now.saturating_duration_since(self.shown_at);
        self.missed_in_earnest >= MISSED_ANSWERS_MAX
            || self.overdue >= OVERDUE_MAX && unshown_for >= UNSHOWN_FOR_MAX
    }
}

/// One configured server.
#[derive(Debug)]
struct Target {
    configured: Arc<Configured>,
    /// Whether its proxy is asked for its name where this host cannot resolve it.
    asks_its_proxy: bool,
    known: Vec<Known>,
}

/// The servers of one client.
#[derive(Debug)]
pub(crate) struct Roster {
    targets: Vec<Target>,
    servers: Vec<Arc<ServerState>>,
    next_number: u64,
}

impl Roster {
    /// A roster without addresses. `server_names` are those of the configured servers, in their
    /// order.
    pub(crate) fn new(server_names: impl IntoIterator<Item = String>) -> Roster {
        let mut roster = Roster {
            targets: Vec::new(),
            servers: Vec::new(),
            next_number: 1,
        };
        for (target, server_name) in server_names.into_iter().enumerate() {
            let _no_addresses = roster.configure(target, server_name, true);
        }
        roster
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// The servers, in the order of the configuration.
    pub(crate) fn servers(&self) -> &[Arc<ServerState>] {
        &self.servers
    }

    /// Takes what the name of the configured server `target` has resolved to. An empty answer says
    /// nothing.
    pub(crate) fn answer(
        &mut self,
        target: usize,
        addresses: &[SocketAddr],
        now: Instant,
    ) -> RosterChange {
        let Some(known) = self.targets.get_mut(target).map(|target| &mut target.known) else {
            return RosterChange::default();
        };
        if addresses.is_empty() {
            return RosterChange::default();
        }
        // Once an address is known, nobody stands in for it, unless its lanes are up: they must not
        // end before others serve.
        let servers = &self.servers;
        known.retain(|known| {
            let mut named = servers.iter().filter(|it| it.address == known.address);
            !stand_in::is_one(known.address)
                || addresses.contains(&known.address)
                || named.any(|it| it.has_lanes())
        });
        let mut shown: Vec<SocketAddr> = addresses.iter().copied().map(canonical).collect();
        shown.sort_unstable();
        shown.dedup();
        let is_known = |address: &SocketAddr| known.iter().any(|known| known.address == *address);
        let unknown = shown.iter().filter(|address| !is_known(address)).count();
        let chance = shown.len() as f64 / (known.len() + unknown) as f64;
        // Whether the answer lacks only addresses that seem to be gone.
        let mut holds_all = true;
        for known in known.iter_mut() {
            if shown.binary_search(&known.address).is_ok() {
                continue;
            }
            let server = self.servers.iter().find(|it| it.address == known.address);
            let lanes_are_up = server.is_some_and(|it| it.has_lanes());
            let only_smaller = unknown == 0 && shown.len() < known.shown_among_all;
            let in_earnest = !lanes_are_up || only_smaller;
            known.miss(in_earnest, chance);
            holds_all &= in_earnest;
        }
        if unknown > 0 && !holds_all {
            // Some addresses are new and others are missing, so the earlier answers may have been
            // parts as well.
            for known in known.iter_mut() {
                known.shown_among_all = 0;
            }
        }
        for address in addresses.iter().copied().map(canonical) {
            let now_shown = Known {
                address,
                shown_at: now,
                shown_among_all: if holds_all { shown.len() } else { 0 },
                missed: 0,
                missed_in_earnest: 0,
                overdue: 0.0,
            };
            match known.iter_mut().find(|known| known.address == address) {
                Some(known) => *known = now_shown,
                None => known.push(now_shown),
            }
        }
        known.retain(|known| !known.is_gone(now));
        // Addresses that a resolver makes up anew with each answer must not pile up.
        known.sort_by_key(|known| known.missed);
        known.truncate(SERVERS_MAX);
        self.renew()
    }

    /// Adds the configured server `target`, which is the next one, or changes it: it keeps its
    /// addresses, but a stand-in only if its proxy is asked for its name, or as long as lanes of
    /// before serve there and nowhere else.
    pub(crate) fn configure(
        &mut self,
        target: usize,
        server_name: String,
        asks_its_proxy: bool,
    ) -> RosterChange {
        let configured = Arc::new(Configured {
            number: self.number(),
            target,
            server_name,
        });
        match self.targets.get_mut(target) {
            Some(before) => {
                before.configured = configured;
                before.asks_its_proxy = asks_its_proxy;
            }
            None => self.targets.push(Target {
                configured,
                asks_its_proxy,
                known: Vec::new(),
            }),
        }
        self.without_idle_stand_ins()
    }

    /// Removes the stand-ins of servers whose proxies are not asked for their names any more,
    /// unless lanes of before serve there and nowhere else.
    pub(crate) fn without_idle_stand_ins(&mut self) -> RosterChange {
        let servers = &self.servers;
        for target in &mut self.targets {
            let index = target.configured.target;
            let serves_at = |is_there: &dyn Fn(SocketAddr) -> bool| {
                let mut there = servers.iter().filter(|it| it.target() == index);
                there.any(|it| is_there(it.address) && it.lanes() > 0)
            };
            let elsewhere = serves_at(&|address| !stand_in::is_one(address));
            let asks = target.asks_its_proxy;
            target.known.retain(|Known { address, .. }| {
                let is_needed = || !elsewhere && serves_at(&|it| it == *address);
                asks || !stand_in::is_one(*address) || is_needed()
            });
        }
        self.renew()
    }

    /// Whether there are stand-ins of servers whose proxies are not asked for their names.
    pub(crate) fn has_idle_stand_ins(&self) -> bool {
        let mut targets = self.targets.iter().filter(|it| !it.asks_its_proxy);
        targets.any(|it| it.known.iter().any(|it| stand_in::is_one(it.address)))
    }

    /// Removes a configured server.
    pub(crate) fn remove(&mut self, target: usize) -> RosterChange {
        if let Some(target) = self.targets.get_mut(target) {
            target.known.clear();
        }
        self.renew()
    }

    /// Lists all addresses of all targets, each once. The first target that has an address names
    /// its server, and a server that goes from one target to another keeps its lanes meanwhile.
    fn renew(&mut self) -> RosterChange {
        let mut news = RosterChange::default();
        let mut servers: Vec<Arc<ServerState>> = Vec::new();
        for Target {
            configured, known, ..
        } in &self.targets
        {
            for Known { address, .. } in known {
                if servers.iter().any(|server| server.address == *address) {
                    continue;
                }
                if servers.len() >= SERVERS_MAX {
                    news.surplus += 1;
                    continue;
                }
                let same = self.servers.iter().find(|it| it.address == *address);
                if let Some(server) = same {
                    if !Arc::ptr_eq(&server.configured(), configured) {
                        server.configure(configured);
                        news.changed.push(Arc::clone(server));
                    }
                    servers.push(Arc::clone(server));
                    continue;
                }
                let number = self.next_number;
                self.next_number += 1;
                let server = ServerState::new(number, *address, Arc::clone(configured));
                news.appeared.push(Arc::clone(&server));
                servers.push(server);
            }
        }
        for server in &self.servers {
            if !servers.iter().any(|other| other.number == server.number) {
                news.vanished.push(Arc::clone(server));
            }
        }
        self.servers = servers;
        news
    }
}

/// Turns `::ffff:192.0.2.1` into 192.0.2.1.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(six) if six.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        other => other,
    }
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
