//! Visitors who are yet to say who they are, by a PROXY header: how long, and how many of them on a
//! core. Who waits longest goes first when there are too many, because a balancer sends its header
//! with the connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::core::event::Event;

/// How long a visitor may take for its header, from when it was accepted.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Visitors of one core who are waited for, whatever their service: each holds a descriptor and up to
/// 4 KiB. At ten thousand visitors a second it is full if headers come a tenth of a second late.
const ANNOUNCED_MAX: usize = 1_024;

/// Those of one core.
#[derive(Debug, Default)]
pub(super) struct Announced {
    next: u64,
    /// In the order of their coming; set tells one to go.
    waiting: BTreeMap<u64, Rc<Event>>,
}

thread_local! {
    static ANNOUNCED: Rc<RefCell<Announced>> = Rc::default();
}

/// The place of one who is waited for; given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    all: Rc<RefCell<Announced>>,
    number: u64,
    /// Set if somebody else needs the place.
    pub(super) must_go: Rc<Event>,
}

impl Place {
    /// One more on this core, at the cost of the one who has waited longest if need be.
    pub(super) fn on_this_core() -> Place {
        ANNOUNCED.with(|all| Place::among(all, ANNOUNCED_MAX))
    }

    fn among(all: &Rc<RefCell<Announced>>, most: usize) -> Place {
        let mut announced = all.borrow_mut();
        if announced.waiting.len() >= most
            && let Some((_, longest)) = announced.waiting.pop_first()
        {
            longest.set();
        }
        let (number, must_go) = (announced.next, Rc::<Event>::default());
        announced.next += 1;
        announced.waiting.insert(number, Rc::clone(&must_go));
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
