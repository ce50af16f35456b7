//! Which addresses of one name lead to the same server, mostly its IPv4 and its IPv6 address.
//!
//! Each address would get all the lanes that the server is to have. So while one address serves,
//! the others that have turned out to lead to the same server process (by its instance id) rest:
//! they keep no lane, and are dialled when the one that serves has lost its last lane. This does
//! not concern different servers behind one name, nor two configured servers: whoever configures
//! both wants both.
//!
//! This module decides, does no I/O, and knows no clock.

use std::collections::HashMap;

/// The number of a server (see [`super::server::ServerState`]).
type Number = u64;

/// The state of one address that has lanes or rests.
#[derive(Debug)]
struct Address {
    /// The index of the configured server that the address comes from.
    target: usize,
    lanes: usize,
    /// The instance that a lane to it last registered with.
    instance: [u8; 16],
    /// Whether nobody answers on its lanes.
    unanswered: bool,
    /// The address that serves, while this one rests.
    rests_for: Option<Number>,
    /// Whether it is no server any more, and its lanes are to end: no other rests for it.
    has_vanished: bool,
}

/// An address that is to rest, or to be dialled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestChange {
    pub(crate) number: Number,
    pub(crate) rests: bool,
}

/// The addresses of one client that have lanes or rest.
#[derive(Debug, Default)]
pub(crate) struct SameServer {
    addresses: HashMap<Number, Address>,
}

impl SameServer {
    /// A lane to the address `number` of `target` has registered with `instance`. The first lane
    /// decides: an address that has lanes is never put to rest, whatever server a balancer leads
    /// its next lane to.
    pub(crate) fn registered(
        &mut self,
        number: Number,
        target: usize,
        instance: [u8; 16],
    ) -> Option<RestChange> {
        let serving = self.addresses.iter().find(|(other, it)| {
            **other != number
                && it.target == target
                && it.lanes > 0
                && !it.unanswered
                && !it.has_vanished
                && it.rests_for.is_none()
                && it.instance == instance
        });
        let serving = serving.map(|(other, _)| *other);
        let address = self.addresses.entry(number).or_insert(Address {
            target,
            lanes: 0,
            instance,
            unanswered: false,
            rests_for: None,
            has_vanished: false,
        });
        address.lanes += 1;
        address.instance = instance;
        address.target = target;
        if address.lanes > 1 || address.rests_for.is_some() {
            return None;
        }
        address.rests_for = serving;
        serving.map(|_| RestChange {
            number,
            rests: true,
        })
    }

    /// A lane to the address `number` has ended. If it was the last one, the addresses that rested
    /// for it are dialled.
    pub(crate) fn ended(&mut self, number: Number) -> Vec<RestChange> {
        let Some(address) = self.addresses.get_mut(&number) else {
            return Vec::new();
        };
        address.lanes = address.lanes.saturating_sub(1);
        if address.lanes > 0 {
            return Vec::new();
        }
        if address.rests_for.is_none() {
            self.addresses.remove(&number);
        }
        self.dial_those_that_rest_for(number)
    }

    /// Nobody answers on the lanes to the address `number` any more, or somebody does again. If
    /// nobody does, the addresses that rested for it are dialled.
    pub(crate) fn unanswered(&mut self, number: Number, unanswered: bool) -> Vec<RestChange> {
        let Some(address) = self.addresses.get_mut(&number) else {
            return Vec::new();
        };
        address.unanswered = unanswered;
        if unanswered {
            self.dial_those_that_rest_for(number)
        } else {
            Vec::new()
        }
    }

    fn dial_those_that_rest_for(&mut self, number: Number) -> Vec<RestChange> {
        let rest_for_it = |it: &Address| it.rests_for == Some(number);
        let mut changes: Vec<RestChange> = self
            .addresses
            .iter()
            .filter(|(_, it)| rest_for_it(it))
            .map(|(number, _)| RestChange {
                number: *number,
                rests: false,
            })
            .collect();
        changes.sort_unstable_by_key(|change| change.number);
        for RestChange { number, .. } in &changes {
            if let Some(address) = self.addresses.get_mut(number) {
                address.rests_for = None;
            }
        }
        self.addresses
            .retain(|_, it| it.lanes > 0 || it.rests_for.is_some());
        changes
    }

    /// The address `number` comes from the configured server `target` now. If that is another one
    /// than before, it rests for none of the addresses of that one, and none of them for it.
    pub(crate) fn moved(&mut self, number: Number, target: usize) -> Vec<RestChange> {
        let Some(address) = self.addresses.get_mut(&number) else {
            return Vec::new();
        };
        if std::mem::replace(&mut address.target, target) == target {
            return Vec::new();
        }
        let rested = address.rests_for.take().is_some();
        let mut changes = self.dial_those_that_rest_for(number);
        if rested {
            changes.push(RestChange {
                number,
                rests: false,
            });
        }
        changes
    }

    /// The address `number` is no server any more. Lanes that it still has are to end.
    pub(crate) fn vanished(&mut self, number: Number) {
        let lanes = self.addresses.get_mut(&number).map(|it| {
            it.rests_for = None;
            it.has_vanished = true;
            it.lanes
        });
        if lanes == Some(0) {
            self.addresses.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    const ONE: [u8; 16] = [1; 16];
    const TWO: [u8; 16] = [2; 16];

    fn rest(number: Number) -> Option<RestChange> {
        Some(RestChange {
            number,
            rests: true,
        })
    }

    fn dial(number: Number) -> RestChange {
        RestChange {
            number,
            rests: false,
        }
    }

    #[test]
    fn no_address_rests_for_one_that_has_vanished() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(1, 0, ONE), None);
        same_server.vanished(1);
        assert_eq!(same_server.registered(2, 0, ONE), None);
        assert!(same_server.ended(1).is_empty());
    }

    #[test]
    fn an_address_that_rests_is_dialled_while_nobody_answers_at_the_one_that_serves() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(1, 0, ONE), None);
        assert_eq!(same_server.registered(2, 0, ONE), rest(2));
        assert!(same_server.ended(2).is_empty());
        let dialled = RestChange {
            number: 2,
            rests: false,
        };
        assert_eq!(same_server.unanswered(1, true), [dialled]);
        assert_eq!(
            same_server.registered(2, 0, ONE),
            None,
            "it does not rest again"
        );
        assert!(same_server.unanswered(1, false).is_empty());
        assert!(same_server.ended(1).is_empty() && same_server.ended(2).is_empty());
        assert!(same_server.addresses.is_empty());
    }

    #[test]
    fn the_second_address_of_a_server_rests_until_the_first_has_lost_its_last_lane() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(4, 0, ONE), None);
        assert_eq!(same_server.registered(4, 0, ONE), None);
        assert_eq!(same_server.registered(6, 0, ONE), rest(6));
        // Its lane ends, because the address was put to rest.
        assert_eq!(same_server.ended(6), []);
        assert_eq!(same_server.ended(4), []);
        assert_eq!(same_server.ended(4), [dial(6)]);
        // The address that is reached first serves now.
        assert_eq!(same_server.registered(6, 0, TWO), None);
        assert_eq!(same_server.registered(4, 0, TWO), rest(4));
    }

    #[test]
    fn other_servers_and_other_configured_servers_are_not_the_same_server() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(1, 0, ONE), None);
        assert_eq!(same_server.registered(2, 0, TWO), None);
        assert_eq!(same_server.registered(3, 1, ONE), None);
    }

    #[test]
    fn an_address_that_serves_is_not_put_to_rest_by_a_balancer() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(1, 0, ONE), None);
        assert_eq!(same_server.registered(2, 0, TWO), None);
        assert_eq!(same_server.registered(2, 0, ONE), None);
    }

    #[test]
    fn one_that_vanishes_while_it_rests_leaves_nothing() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(1, 0, ONE), None);
        assert_eq!(same_server.registered(2, 0, ONE), rest(2));
        same_server.vanished(2);
        assert_eq!(same_server.ended(2), []);
        assert_eq!(same_server.ended(1), []);
        assert!(same_server.addresses.is_empty());
    }

    #[test]
    fn one_that_goes_to_another_configured_server_rests_for_none_of_the_earlier_one() {
        let mut same_server = SameServer::default();
        assert_eq!(same_server.registered(1, 0, ONE), None);
        assert_eq!(same_server.registered(2, 0, ONE), rest(2));
        assert_eq!(same_server.moved(2, 0), []);
        assert_eq!(same_server.moved(2, 1), [dial(2)]);
        assert_eq!(same_server.registered(3, 0, ONE), rest(3));
        assert_eq!(same_server.moved(1, 1), [dial(3)]);
        assert_eq!(same_server.moved(4, 1), [], "it is not known");
    }

    /// The state of a simulated client's addresses.
    struct World {
        same_server: SameServer,
        /// Number of lanes of each address.
        lanes: HashMap<Number, usize>,
        resting: HashSet<Number>,
        gone: HashSet<Number>,
    }

    impl World {
        fn apply(&mut self, change: RestChange) {
            let news = if change.rests {
                self.resting.insert(change.number)
            } else {
                self.resting.remove(&change.number)
            };
            assert!(news, "said twice: {change:?}");
        }

        fn step(&mut self, random: &mut StdRng) {
            let number = random.random_range(1..=6);
            let target = usize::try_from(number % 2).expect("small");
            let instance = [random.random_range(1..=3); 16];
            match random.random_range(0..10) {
                // An address that rests may have lanes on their way as well.
                0..5 if !self.gone.contains(&number) => {
                    *self.lanes.entry(number).or_default() += 1;
                    if let Some(change) = self.same_server.registered(number, target, instance) {
                        self.apply(change);
                    }
                }
                5..9 if self.lanes.get(&number).is_some_and(|lanes| *lanes > 0) => {
                    *self.lanes.entry(number).or_default() -= 1;
                    for change in self.same_server.ended(number) {
                        self.apply(change);
                    }
                }
                9 => {
                    self.same_server.vanished(number);
                    self.resting.remove(&number);
                    // The address may come back; its number would be another one, which makes no
                    // difference here.
                    if self.gone.insert(number) && random.random_bool(0.9) {
                        self.gone.remove(&number);
                    }
                }
                _ => {}
            }
        }

        fn check(&self) {
            for (number, address) in &self.same_server.addresses {
                let lanes = self.lanes.get(number).copied().unwrap_or_default();
                assert_eq!(address.lanes, lanes, "lanes of {number}");
                assert!(lanes > 0 || address.rests_for.is_some(), "{number} leaks");
                assert_eq!(address.rests_for.is_some(), self.resting.contains(number));
                // No address rests for one that does not serve: some address of a server is always
                // dialled.
                if let Some(serving) = address.rests_for {
                    let serving = &self.same_server.addresses[&serving];
                    assert!(serving.lanes > 0 && serving.target == address.target);
                }
            }
            for number in &self.resting {
                assert!(self.same_server.addresses.contains_key(number), "{number}");
            }
        }
    }

    #[test]
    fn simulated_addresses_never_all_rest_and_nothing_leaks() {
        for seed in 0..1_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut world = World {
                same_server: SameServer::default(),
                lanes: HashMap::new(),
                resting: HashSet::new(),
                gone: HashSet::new(),
            };
            for step in 0..3_000 {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    world.step(&mut random);
                    world.check();
                }));
                assert!(outcome.is_ok(), "seed {seed}, step {step}");
            }
        }
    }
}
