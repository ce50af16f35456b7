//! The places of a config file that a running program may have to name: whether an address can be
//! bound, or a host resolved, is known only when that is tried, and the message about it must name
//! the line like any other.

use std::net::SocketAddr;

use crate::conflicts::{Claim, overlap};
use crate::ports::TrafficAddr;
use crate::source::{Position, Source};

/// Where addresses and hosts stand in a config file.
///
/// All of them are equal: a configuration is the same wherever its lines stand.
#[derive(Clone, Debug, Default)]
pub struct Places {
    places: Vec<Place>,
}

/// One key of the file.
#[derive(Clone, Debug)]
struct Place {
    key: String,
    position: Position,
    /// What is bound because of it: an address, of TCP or else of UDP.
    binds: Option<(bool, TrafficAddr)>,
}

impl PartialEq for Places {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Places {}

impl Places {
    /// The places of these claims, and of keys whose values begin at these bytes.
    pub(crate) fn new(source: &Source<'_>, claims: Vec<Claim>, keys: Vec<(String, usize)>) -> Self {
        let keys = keys.into_iter().map(|(key, start)| (key, start, None));
        let claims = claims.into_iter().map(|claim| {
            let binds = (claim.is_tcp(), claim.address);
            (claim.key, claim.span.start, Some(binds))
        });
        let mut all: Vec<_> = keys.chain(claims).collect();
        all.sort_by_key(|(_, start, _)| *start);
        let positions = source.positions(all.iter().map(|(_, start, _)| *start));
        let places = all.into_iter().zip(positions);
        let places = places.map(|((key, _, binds), position)| Place {
            key,
            position,
            binds,
        });
        Self {
            places: places.collect(),
        }
    }

    /// The line and column of a key's value, both from 1, if the key is one of those that are kept.
    #[must_use]
    pub fn of_key(&self, key: &str) -> Option<(usize, usize)> {
        let mut places = self.places.iter();
        let place = places.find(|place| place.key == key)?;
        Some((place.position.line, place.position.column))
    }

    /// The key because of which this address is bound, for TCP or else for UDP, and the line and
    /// column where the address stands.
    #[must_use]
    pub fn of_address(&self, tcp: bool, address: SocketAddr) -> Option<(&str, (usize, usize))> {
        let one = TrafficAddr::one(address);
        let binds = |place: &&Place| {
            let binds = place.binds.as_ref();
            binds.is_some_and(|(of_tcp, bound)| *of_tcp == tcp && overlap(*bound, one))
        };
        let Place { key, position, .. } = self.places.iter().find(binds)?;
        Some((key, (position.line, position.column)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn keys_have_the_positions_of_their_values_in_any_order() {
        let text = "a = 1\nü = \"x\"\nb = 2\n";
        let at = |what: &str| text.find(what).expect("is there");
        let keys = vec![("b".to_owned(), at("2")), ("ü".to_owned(), at("\"x"))];
        let source = Source {
            path: Path::new("dp.toml"),
            text,
        };
        let places = Places::new(&source, Vec::new(), keys);
        assert_eq!(places.of_key("b"), Some((3, 5)));
        assert_eq!(places.of_key("ü"), Some((2, 5)));
        assert_eq!(places.of_key("a"), None);
    }
}
