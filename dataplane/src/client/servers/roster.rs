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
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom as _;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn roster(targets: usize) -> Roster {
        Roster::new((0..targets).map(|target| format!("server{target}")))
    }

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        last.iter()
            .map(|last| SocketAddr::from(([192, 0, 2, *last], 8443)))
            .collect()
    }

    /// An answer at no particular time.
    fn answer(roster: &mut Roster, target: usize, addresses: &[SocketAddr]) -> RosterChange {
        roster.answer(target, addresses, Instant::now())
    }

    fn listed(roster: &Roster) -> Vec<u8> {
        let mut last: Vec<u8> = roster
            .servers()
            .iter()
            .map(|server| match server.address.ip() {
                std::net::IpAddr::V4(ip) => ip.octets()[3],
                std::net::IpAddr::V6(_) => panic!("not canonical"),
            })
            .collect();
        last.sort_unstable();
        last
    }

    #[test]
    fn every_address_of_a_name_is_a_server() {
        let mut roster = roster(1);
        let news = answer(&mut roster, 0, &addresses(&[1, 2]));
        assert_eq!((news.appeared.len(), news.vanished.len()), (2, 0));
        assert_eq!(listed(&roster), [1, 2]);
        assert!(answer(&mut roster, 0, &addresses(&[2, 1])).is_empty());
    }

    #[test]
    fn an_address_that_is_found_takes_the_place_of_its_stand_in_at_once() {
        let mut roster = roster(2);
        for target in 0..2 {
            let news = answer(&mut roster, target, &[stand_in::of(target, 8443)]);
            assert_eq!(news.appeared.len(), 1);
            assert!(answer(&mut roster, target, &[stand_in::of(target, 8443)]).is_empty());
        }
        let news = answer(&mut roster, 0, &addresses(&[7]));
        assert_eq!((news.appeared.len(), news.vanished.len()), (1, 1));
        assert_eq!(news.vanished[0].address, stand_in::of(0, 8443));
        let left: Vec<_> = roster.servers().iter().map(|it| it.address).collect();
        assert_eq!(left, [addresses(&[7])[0], stand_in::of(1, 8443)]);
        // One that serves stays beside the address that has been found.
        roster.servers()[1].lane_registered(1);
        let news = answer(&mut roster, 1, &addresses(&[8]));
        assert_eq!((news.appeared.len(), news.vanished.len()), (1, 0));
    }

    #[test]
    fn a_stand_in_without_a_proxy_goes_once_its_lanes_have_ended_or_others_serve() {
        let stand_in = stand_in::of(0, 8443);
        let without_proxy = |roster: &mut Roster| roster.configure(0, "server0".into(), false);
        // Nobody serves there.
        let mut idle = roster(1);
        answer(&mut idle, 0, &[stand_in]);
        assert!(!idle.has_idle_stand_ins());
        assert_eq!(without_proxy(&mut idle).vanished.len(), 1);
        // Its lanes end.
        let mut ending = roster(1);
        answer(&mut ending, 0, &[stand_in]);
        let server = Arc::clone(&ending.servers()[0]);
        server.lane_registered(1);
        let news = without_proxy(&mut ending);
        assert_eq!((news.changed.len(), news.vanished.len()), (1, 0));
        assert!(ending.has_idle_stand_ins());
        assert!(ending.without_idle_stand_ins().is_empty());
        server.lane_ended();
        assert_eq!(ending.without_idle_stand_ins().vanished.len(), 1);
        // Another address is found, and serves.
        let mut found = roster(1);
        answer(&mut found, 0, &[stand_in]);
        found.servers()[0].lane_registered(1);
        without_proxy(&mut found);
        answer(&mut found, 0, &addresses(&[7]));
        assert!(
            found.without_idle_stand_ins().is_empty(),
            "nobody serves there"
        );
        let at = |roster: &Roster, address| {
            let mut servers = roster.servers().iter();
            servers.find(|it| it.address == address).cloned()
        };
        at(&found, addresses(&[7])[0])
            .expect("known")
            .lane_registered(1);
        assert_eq!(found.without_idle_stand_ins().vanished.len(), 1);
        assert_eq!(listed(&found), [7]);
        assert!(!found.has_idle_stand_ins());
    }

    #[test]
    fn an_address_vanishes_when_three_answers_in_a_row_lack_it() {
        let mut roster = roster(1);
        answer(&mut roster, 0, &addresses(&[1, 2]));
        for _ in 0..2 {
            assert!(answer(&mut roster, 0, &addresses(&[1])).is_empty());
        }
        assert!(answer(&mut roster, 0, &addresses(&[1, 2])).is_empty());
        for _ in 0..2 {
            assert!(answer(&mut roster, 0, &addresses(&[1])).is_empty());
        }
        let news = answer(&mut roster, 0, &addresses(&[1]));
        assert_eq!(news.vanished.len(), 1);
        assert_eq!(listed(&roster), [1]);
    }

    #[test]
    fn an_address_that_comes_back_is_a_new_server() {
        let mut roster = roster(1);
        let first = answer(&mut roster, 0, &addresses(&[1])).appeared;
        for _ in 0..3 {
            answer(&mut roster, 0, &addresses(&[2]));
        }
        let again = answer(&mut roster, 0, &addresses(&[1, 2])).appeared;
        assert_eq!(first[0].address, again[0].address);
        assert_ne!(first[0].number, again[0].number);
    }

    #[test]
    fn an_empty_answer_changes_nothing() {
        let mut roster = roster(1);
        answer(&mut roster, 0, &addresses(&[1]));
        for _ in 0..10 {
            assert!(answer(&mut roster, 0, &[]).is_empty());
        }
        assert_eq!(listed(&roster), [1]);
    }

    #[test]
    fn an_address_behind_two_names_is_one_server_named_by_the_first() {
        let mut roster = roster(2);
        answer(&mut roster, 1, &addresses(&[1, 2]));
        assert_eq!(listed(&roster), [1, 2]);
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:8443".parse().expect("literal");
        let news = answer(&mut roster, 0, &[mapped]);
        assert_eq!(listed(&roster), [1, 2]);
        assert!(news.appeared.is_empty() && news.vanished.is_empty());
        assert_eq!(news.changed[0].configured().server_name, "server0");
        // The other name keeps the address alive when the first one loses it.
        for _ in 0..3 {
            answer(&mut roster, 0, &addresses(&[3]));
        }
        assert_eq!(listed(&roster), [1, 2, 3]);
    }

    #[test]
    fn a_server_that_is_configured_anew_keeps_its_addresses_and_its_number() {
        let mut roster = roster(1);
        answer(&mut roster, 0, &addresses(&[1, 2]));
        let before: Vec<_> = roster.servers().to_vec();
        let news = roster.configure(0, "other".into(), false);
        assert!(news.appeared.is_empty() && news.vanished.is_empty());
        assert_eq!(news.changed.len(), 2);
        for (before, now) in before.iter().zip(roster.servers()) {
            assert!(Arc::ptr_eq(before, now));
            assert_eq!(now.configured().server_name, "other");
        }
        // A stand-in is nobody's address once no proxy is asked.
        answer(&mut roster, 0, &[stand_in::of(0, 8443)]);
        assert_eq!(roster.configure(0, "other".into(), true).vanished.len(), 0);
        assert_eq!(roster.configure(0, "other".into(), false).vanished.len(), 1);
    }

    #[test]
    fn an_address_that_one_target_hands_to_another_is_the_same_server() {
        let mut roster = roster(1);
        answer(&mut roster, 0, &addresses(&[1]));
        let before = Arc::clone(&roster.servers()[0]);
        assert!(roster.configure(1, "server0".into(), false).is_empty());
        assert!(answer(&mut roster, 1, &addresses(&[1])).is_empty());
        let news = roster.remove(0);
        assert!(news.appeared.is_empty() && news.vanished.is_empty());
        assert!(Arc::ptr_eq(&news.changed[0], &before));
        assert_eq!(before.target(), 1);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let mut roster = roster(2);
        for round in 0..10 {
            let flood: Vec<SocketAddr> = (0..1_000)
                .map(|port| SocketAddr::from(([192, 0, 2, round], 1 + port)))
                .collect();
            let news = answer(&mut roster, 0, &flood);
            assert_eq!(roster.servers().len(), SERVERS_MAX);
            assert!(news.surplus == 0 && roster.targets[0].known.len() == SERVERS_MAX);
        }
        assert_eq!(answer(&mut roster, 1, &addresses(&[1])).surplus, 1);
    }

    /// Brings a lane to each server up, or to none.
    fn lanes_are_up(roster: &Roster, up: bool) {
        for server in roster.servers() {
            if up && !server.has_lanes() {
                server.lane_registered(1);
            } else if !up && server.has_lanes() {
                server.lane_ended();
            }
        }
    }

    #[test]
    fn an_address_that_smaller_answers_lack_is_gone_though_its_lanes_are_up() {
        let mut roster = roster(1);
        answer(&mut roster, 0, &addresses(&[1, 2]));
        lanes_are_up(&roster, true);
        for _ in 0..2 {
            assert!(answer(&mut roster, 0, &addresses(&[1])).is_empty());
        }
        let news = answer(&mut roster, 0, &addresses(&[1, 1]));
        assert_eq!(news.vanished.len(), 1);
    }

    #[test]
    fn an_address_that_others_replace_goes_when_its_lanes_are_down_or_after_long() {
        let start = Instant::now();
        let interval = Duration::from_secs(10);
        let replaced = |lanes_up_for: u32| {
            let mut roster = roster(1);
            roster.answer(0, &addresses(&[1, 2]), start);
            let mut count = 0;
            loop {
                lanes_are_up(&roster, count < lanes_up_for);
                count += 1;
                let news = roster.answer(0, &addresses(&[1, 3]), start + interval * count);
                if !news.vanished.is_empty() {
                    assert_eq!(listed(&roster), [1, 3]);
                    return count;
                }
            }
        };
        assert_eq!(replaced(0), 3);
        assert_eq!(replaced(20), 23, "three from when its lanes went down");
        assert_eq!(replaced(u32::MAX), 60, "ten minutes");
    }

    /// The answers are those of a headless service, which hold all pods that are ready.
    #[test]
    fn addresses_that_leave_full_answers_one_after_the_other_go_after_three_each() {
        let mut roster = roster(1);
        let mut all: Vec<u8> = (1..=5).collect();
        answer(&mut roster, 0, &addresses(&all));
        lanes_are_up(&roster, true);
        let mut left = Vec::new();
        for _ in 0..6 {
            if all.len() > 2 {
                all.pop();
            }
            let news = answer(&mut roster, 0, &addresses(&all));
            assert!(news.appeared.is_empty());
            left.push(news.vanished.len());
        }
        assert_eq!(left, [0, 0, 1, 1, 1, 0]);
        assert_eq!(listed(&roster), [1, 2]);
        // One more pod is ready, and one is not any more.
        answer(&mut roster, 0, &addresses(&[1, 2, 3]));
        lanes_are_up(&roster, true);
        for vanished in [0, 0, 1] {
            let news = answer(&mut roster, 0, &addresses(&[1, 3]));
            assert_eq!(news.vanished.len(), vanished);
        }
    }

    #[test]
    fn a_part_proves_nothing_by_being_smaller_than_another_part() {
        let mut roster = roster(1);
        let of = |numbers: std::ops::Range<u8>| addresses(&numbers.collect::<Vec<_>>());
        answer(&mut roster, 0, &of(0..8));
        lanes_are_up(&roster, true);
        answer(&mut roster, 0, &of(8..16));
        lanes_are_up(&roster, true);
        for _ in 0..3 {
            assert!(answer(&mut roster, 0, &of(9..16)).is_empty());
            assert!(answer(&mut roster, 0, &of(8..15)).is_empty());
        }
        assert_eq!(listed(&roster).len(), 16);
    }

    /// Whatever part of the addresses a resolver shows, servers whose lanes are up stay, and one
    /// that stops goes soon.
    #[test]
    fn simulated_resolvers_that_show_a_part_make_no_lane_flap() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut all: Vec<u8> = (0..16).collect();
            let shown_min = random.random_range(1..=12);
            // Each answer has the same number of addresses, or another one.
            let shown_max = if random.random_bool(0.5) {
                shown_min
            } else {
                random.random_range(shown_min..=12)
            };
            let by_turns = random.random_bool(0.5);
            let mut roster = roster(1);
            let mut now = Instant::now();
            let mut shown = 0;
            let mut stopped = None;
            for round in 0..4_000 {
                now += Duration::from_secs(10);
                if by_turns {
                    all.rotate_left(shown);
                } else {
                    all.shuffle(&mut random);
                }
                shown = random.random_range(shown_min..=shown_max);
                let news = roster.answer(0, &addresses(&all[..shown]), now);
                // By then each of them has been shown.
                assert!(
                    round < 500 || news.appeared.is_empty(),
                    "seed {seed}, round {round}: {news:?}"
                );
                for gone in &news.vanished {
                    assert!(!gone.has_lanes(), "seed {seed}, round {round}: {gone}");
                }
                lanes_are_up(&roster, true);
                if round == 2_000 {
                    stopped = all.pop();
                }
                let of_stopped = stopped.map(|last| addresses(&[last])[0]);
                for server in roster.servers() {
                    if Some(server.address) == of_stopped {
                        assert!(round < 2_003, "seed {seed}, round {round}");
                        server.lane_ended();
                    }
                }
            }
        }
    }
}
