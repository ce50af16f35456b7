//! Visitors whose PROXY header has yet to come: how long they may take, and how many of them a core
//! waits for. If there are too many, the one that has waited longest is given up, because a
//! balancer sends its header with the connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::core::event::Event;

/// How long a visitor may take for its header, counted from when it was accepted.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Visitors of one core that are waited for, whatever their service: each holds a descriptor and up
/// to 4 KiB. At ten thousand visitors a second this is full if headers come a tenth of a second
/// late.
const HEADER_WAITS_MAX: usize = 1_024;

/// The visitors of one core that are waited for.
#[derive(Debug, Default)]
pub(super) struct HeaderWaits {
    next: u64,
    /// The events of these visitors, in the order of their coming; an event that is set tells its
    /// visitor to go.
    waiting: BTreeMap<u64, Rc<Event>>,
}

thread_local! {
    static HEADER_WAITS: Rc<RefCell<HeaderWaits>> = Rc::default();
}

/// The place of a visitor that is waited for; given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    all: Rc<RefCell<HeaderWaits>>,
    number: u64,
    /// Set if another visitor needs the place.
    pub(super) must_go: Rc<Event>,
}

impl Place {
    /// Takes a place on this core, if need be that of the visitor who has waited longest.
    pub(super) fn on_this_core() -> Place {
        HEADER_WAITS.with(|all| Place::among(all, HEADER_WAITS_MAX))
    }

    fn among(all: &Rc<RefCell<HeaderWaits>>, most: usize) -> Place {
        let mut waits = all.borrow_mut();
        if waits.waiting.len() >= most
            && let Some((_, longest)) = waits.waiting.pop_first()
        {
            longest.set();
        }
        let (number, must_go) = (waits.next, Rc::<Event>::default());
        waits.next += 1;
        waits.waiting.insert(number, Rc::clone(&must_go));
        Place {
            all: Rc::clone(all),
            number,
            must_go,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.borrow_mut().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn must_go(place: &Place) -> bool {
        let waits = pin!(place.must_go.wait());
        waits
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn who_has_waited_longest_goes_for_a_newcomer_and_who_has_left_takes_no_place() {
        let all = Rc::default();
        let come = || Place::among(&all, 3);
        let (first, second, third) = (come(), come(), come());
        drop(second);
        let fourth = come();
        assert!(![&first, &third, &fourth].into_iter().any(must_go));
        let _fifth = come();
        assert!(must_go(&first));
        assert!(![&third, &fourth].into_iter().any(must_go));
        drop(first);
        assert_eq!(all.borrow().waiting.len(), 3);
    }
}
