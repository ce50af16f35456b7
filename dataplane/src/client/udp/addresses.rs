//! The addresses of the service of UDP flows: which of them a flow tries, and whether a flow's
//! address is still one of them. This module is pure, except that it reads the current addresses.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::resolve::Name;

/// The addresses of one service, for one core's flows.
pub(super) struct Addresses {
    name: Arc<Name>,
    known: RefCell<Arc<Vec<SocketAddr>>>,
    /// Counts the changes.
    version: Cell<u64>,
    /// The address that has answered last. `localhost` is mostly `::1` and 127.0.0.1, and a service
    /// mostly listens at one of them.
    good: Cell<Option<SocketAddr>>,
}

impl Addresses {
    pub(super) fn new(name: &Arc<Name>) -> Addresses {
        Addresses {
            known: RefCell::new(name.addresses()),
            name: Arc::clone(name),
            version: Cell::new(0),
            good: Cell::new(None),
        }
    }

    /// Whether these are the addresses of this host.
    pub(super) fn are_of(&self, name: &Arc<Name>) -> bool {
        Arc::ptr_eq(&self.name, name)
    }

    /// Looks for a change. The result differs whenever the addresses do.
    pub(super) fn version(&self) -> u64 {
        let now = self.name.addresses();
        let mut known = self.known.borrow_mut();
        if !Arc::ptr_eq(&known, &now) {
            if *known != now {
                self.version.set(self.version.get() + 1);
            }
            *known = now;
        }
        self.version.get()
    }

    /// The version without looking for a change.
    pub(super) fn known_version(&self) -> u64 {
        self.version.get()
    }

    /// Number of addresses.
    pub(super) fn len(&self) -> usize {
        self.known.borrow().len()
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.known.borrow().contains(&address)
    }

    /// The next address to try when those in `tried` have failed, beginning with the one that
    /// answered last.
    pub(super) fn next(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let known = self.known.borrow();
        let good = self.good.get().filter(|good| known.contains(good));
        let mut all = good.into_iter().chain(known.iter().copied());
        all.find(|address| !tried.contains(address))
    }

    /// Whether it is known which address answers.
    pub(super) fn is_sure(&self) -> bool {
        self.len() < 2 || self.good.get().is_some_and(|good| self.contains(good))
    }

    /// Notes that the service has answered from this address.
    pub(super) fn answered(&self, address: SocketAddr) {
        self.good.set(Some(address));
    }

    /// Notes that nobody listens at this address.
    pub(super) fn refused(&self, address: SocketAddr) {
        if self.good.get() == Some(address) {
            self.good.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        let parsed = list.iter().map(|text| text.parse().expect("literal"));
        parsed.collect()
    }

    fn name(addresses: &[SocketAddr]) -> Arc<Name> {
        let name = Name::later("service.test", 53, "a test");
        name.set(addresses);
        name
    }

    #[test]
    fn the_one_that_answered_comes_first_and_none_twice() {
        let list = addresses(&["[::1]:53", "127.0.0.1:53", "127.0.0.2:53"]);
        let service = Addresses::new(&name(&list));
        let order = |service: &Addresses| -> Vec<SocketAddr> {
            let mut tried = Vec::new();
            while let Some(next) = service.next(&tried) {
                tried.push(next);
            }
            tried
        };
        assert_eq!(order(&service), list);
        assert!(!service.is_sure());
        service.answered(list[1]);
        assert_eq!(order(&service), [list[1], list[0], list[2]]);
        assert!(service.is_sure());
        service.refused(list[0]);
        assert!(service.is_sure(), "another one");
        service.refused(list[1]);
        assert_eq!(order(&service), list);
    }

    #[test]
    fn a_change_is_a_new_version_and_an_equal_answer_is_none() {
        let name = name(&addresses(&["127.0.0.1:53"]));
        let service = Addresses::new(&name);
        let first = service.version();
        name.set(&addresses(&["127.0.0.1:53"]));
        assert_eq!(service.version(), first);
        name.set(&addresses(&["127.0.0.2:53"]));
        assert_ne!(service.version(), first);
        service.answered("127.0.0.1:53".parse().expect("literal"));
        assert_eq!(service.next(&[]), name.addresses().first().copied());
    }
}
