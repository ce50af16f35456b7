//! The roster: which servers there are, told from what the configured names resolve to.
//!
//! Each resolved address is a server of its own: with its own lanes, its own number of cores, its own back-off. The
//! roster only decides who is on it; it does no I/O and knows no clock.

use std::net::SocketAddr;
use std::sync::Arc;

use super::server::ServerState;

/// Answers in a row that an address must be missing from before its server is given up: some resolvers answer with a
/// part of the addresses, another one each time. A server that stops says so itself.
const MISSED_ANSWERS_MAX: u32 = 3;

/// Servers of one client. Each costs a lane for each core of either side, and an answer is somebody else's word.
pub(super) const SERVERS_MAX: usize = 256;

/// What changed with an answer.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) appeared: Vec<Arc<ServerState>>,
    pub(super) vanished: Vec<Arc<ServerState>>,
    /// Addresses left out because there are [`SERVERS_MAX`] servers.
    pub(super) surplus: usize,
}

impl News {
    /// True if nothing changed.
    pub(super) fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty()
    }
}

/// An address of a name.
#[derive(Debug)]
struct Known {
    address: SocketAddr,
    /// Answers in a row without it.
    missed: u32,
}

/// One configured server.
#[derive(Debug)]
struct Target {
    server_name: String,
    known: Vec<Known>,
}

/// The servers of one client.
#[derive(Debug)]
pub(super) struct Roster {
    targets: Vec<Target>,
    servers: Vec<Arc<ServerState>>,
    next_number: u64,
}

impl Roster {
    /// Without any address yet. `server_names` are those of the configured servers, in their order.
    pub(super) fn new(server_names: impl IntoIterator<Item = String>) -> Roster {
        let targets = server_names.into_iter().map(|server_name| Target {
            server_name,
            known: Vec::new(),
        });
        Roster {
            targets: targets.collect(),
            servers: Vec::new(),
            next_number: 1,
        }
    }

    /// The servers, in the order of the configuration.
    pub(super) fn servers(&self) -> &[Arc<ServerState>] {
        &self.servers
    }

    /// Takes in what the name of the configured server `target` has resolved to. An empty answer says nothing.
    pub(super) fn answer(&mut self, target: usize, addresses: &[SocketAddr]) -> News {
        let Some(known) = self.targets.get_mut(target).map(|target| &mut target.known) else {
            return News::default();
        };
        if addresses.is_empty() {
            return News::default();
        }
        for address in known.iter_mut() {
            address.missed += 1;
        }
        for address in addresses.iter().copied().map(canonical) {
            match known.iter_mut().find(|known| known.address == address) {
                Some(known) => known.missed = 0,
                None => known.push(Known { address, missed: 0 }),
            }
        }
        known.retain(|known| known.missed < MISSED_ANSWERS_MAX);
        // What a resolver makes up anew with each answer must not pile up.
        known.sort_by_key(|known| known.missed);
        known.truncate(SERVERS_MAX);
        self.renew()
    }

    /// Lists all addresses of all targets, each once: the first target that has it names its server.
    fn renew(&mut self) -> News {
        let mut news = News::default();
        let mut servers: Vec<Arc<ServerState>> = Vec::new();
        for (target, Target { server_name, known }) in self.targets.iter().enumerate() {
            for Known { address, .. } in known {
                if servers.iter().any(|server| server.address == *address) {
                    continue;
                }
                let same = self.servers.iter().find(|server| {
                    server.address == *address && server.server_name == *server_name
                });
                if servers.len() >= SERVERS_MAX {
                    news.surplus += 1;
                    continue;
                }
                servers.push(same.cloned().unwrap_or_else(|| {
                    let number = self.next_number;
                    self.next_number += 1;
                    let server = ServerState::new(number, target, *address, server_name.clone());
                    news.appeared.push(Arc::clone(&server));
                    server
                }));
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

/// `::ffff:192.0.2.1` is 192.0.2.1.
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
    use super::*;

    fn roster(targets: usize) -> Roster {
        Roster::new((0..targets).map(|target| format!("server{target}")))
    }

    fn addresses(last: &[u8]) -> Vec<SocketAddr> {
        last.iter()
            .map(|last| SocketAddr::from(([192, 0, 2, *last], 8443)))
            .collect()
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
        let news = roster.answer(0, &addresses(&[1, 2]));
        assert_eq!((news.appeared.len(), news.vanished.len()), (2, 0));
        assert_eq!(listed(&roster), [1, 2]);
        assert!(roster.answer(0, &addresses(&[2, 1])).is_empty());
    }

    #[test]
    fn an_address_vanishes_when_three_answers_in_a_row_lack_it() {
        let mut roster = roster(1);
        roster.answer(0, &addresses(&[1, 2]));
        for _ in 0..2 {
            assert!(roster.answer(0, &addresses(&[1])).is_empty());
        }
        assert!(roster.answer(0, &addresses(&[1, 2])).is_empty());
        for _ in 0..2 {
            assert!(roster.answer(0, &addresses(&[1])).is_empty());
        }
        let news = roster.answer(0, &addresses(&[1]));
        assert_eq!(news.vanished.len(), 1);
        assert_eq!(listed(&roster), [1]);
    }

    #[test]
    fn an_address_that_comes_back_is_a_new_server() {
        let mut roster = roster(1);
        let first = roster.answer(0, &addresses(&[1])).appeared;
        for _ in 0..3 {
            roster.answer(0, &addresses(&[2]));
        }
        let again = roster.answer(0, &addresses(&[1, 2])).appeared;
        assert_eq!(first[0].address, again[0].address);
        assert_ne!(first[0].number, again[0].number);
    }

    #[test]
    fn an_empty_answer_changes_nothing() {
        let mut roster = roster(1);
        roster.answer(0, &addresses(&[1]));
        for _ in 0..10 {
            assert!(roster.answer(0, &[]).is_empty());
        }
        assert_eq!(listed(&roster), [1]);
    }

    #[test]
    fn an_address_behind_two_names_is_one_server_named_by_the_first() {
        let mut roster = roster(2);
        roster.answer(1, &addresses(&[1, 2]));
        assert_eq!(listed(&roster), [1, 2]);
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:8443".parse().expect("literal");
        let news = roster.answer(0, &[mapped]);
        assert_eq!(listed(&roster), [1, 2]);
        assert_eq!(news.appeared[0].server_name, "server0");
        assert_eq!(news.vanished[0].server_name, "server1");
        // The other name keeps it alive when the first one loses it.
        for _ in 0..3 {
            roster.answer(0, &addresses(&[3]));
        }
        assert_eq!(listed(&roster), [1, 2, 3]);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let mut roster = roster(2);
        for round in 0..10 {
            let flood: Vec<SocketAddr> = (0..1_000)
                .map(|port| SocketAddr::from(([192, 0, 2, round], 1 + port)))
                .collect();
            let news = roster.answer(0, &flood);
            assert_eq!(roster.servers().len(), SERVERS_MAX);
            assert!(news.surplus == 0 && roster.targets[0].known.len() == SERVERS_MAX);
        }
        assert_eq!(roster.answer(1, &addresses(&[1])).surplus, 1);
    }
}
