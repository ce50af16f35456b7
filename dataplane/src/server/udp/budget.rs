//! The bound for the flows of all traffic sockets of one core together. A service of a thousand
//! ports has a thousand sockets on each core, and a stranger who may send to one may send to all.

use std::cell::Cell;
use std::rc::Rc;

/// The most UDP flows of one core. Source addresses can be forged, so there must be a limit; one
/// flow costs about 400 bytes in a table.
pub(super) const FLOWS_PER_CORE_MAX: usize = 65_536;

/// Flows that a socket may have, however many the other sockets have.
const FLOWS_PER_SOCKET_MIN: usize = 32;

/// The count of flows of the sockets that share a core. No I/O.
#[derive(Debug, Default)]
pub(super) struct Budget {
    flows: Cell<usize>,
    tables: Cell<usize>,
}

impl Budget {
    /// Counts one more socket.
    pub(super) fn joined(&self) {
        self.tables.set(self.tables.get() + 1);
    }

    /// Counts one socket less, and its flows.
    pub(super) fn left(&self, flows: usize) {
        self.tables.set(self.tables.get().saturating_sub(1));
        self.flows.set(self.flows.get().saturating_sub(flows));
    }

    /// Counts a flow that has begun.
    pub(super) fn opened(&self) {
        self.flows.set(self.flows.get() + 1);
    }

    /// Counts a flow that has ended.
    pub(super) fn closed(&self) {
        self.flows.set(self.flows.get().saturating_sub(1));
    }

    /// How many flows a socket that has `own` of them may have: its equal share, which nobody can
    /// take away, and whatever all sockets together leave of the core's.
    pub(super) fn allowed(&self, own: usize) -> usize {
        let share = FLOWS_PER_CORE_MAX / self.tables.get().max(1);
        let left = FLOWS_PER_CORE_MAX.saturating_sub(self.flows.get());
        (own + left).max(share.max(FLOWS_PER_SOCKET_MIN))
    }
}

thread_local! {
    static BUDGET: Rc<Budget> = Rc::default();
    static KEPT_BYTES: Rc<Cell<usize>> = Rc::default();
}

/// The budget of this core.
pub(super) fn of_this_core() -> Rc<Budget> {
    BUDGET.with(Rc::clone)
}

/// Number of bytes of first datagrams that the sockets of this core keep.
pub(super) fn kept_bytes_of_this_core() -> Rc<Cell<usize>> {
    KEPT_BYTES.with(Rc::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_may_have_all_flows_and_a_flood_at_the_others_leaves_it_its_share() {
        let budget = Budget::default();
        budget.joined();
        assert_eq!(budget.allowed(0), FLOWS_PER_CORE_MAX);
        for _ in 0..99 {
            budget.joined();
        }
        assert_eq!(
            budget.allowed(0),
            FLOWS_PER_CORE_MAX,
            "while the others have none"
        );
        for _ in 0..2 * FLOWS_PER_CORE_MAX {
            budget.opened();
        }
        assert_eq!(budget.allowed(0), FLOWS_PER_CORE_MAX / 100);
        assert_eq!(
            budget.allowed(9_000),
            9_000,
            "no flow has to end, and none more begins"
        );
        budget.left(2 * FLOWS_PER_CORE_MAX);
        assert_eq!(budget.allowed(0), FLOWS_PER_CORE_MAX);
    }

    #[test]
    fn all_sockets_together_have_no_more_than_twice_the_cores_flows() {
        let budget = Budget::default();
        let mut sockets = vec![0_usize; 1_000];
        sockets.iter().for_each(|_| budget.joined());
        // A stranger fills the sockets one after the other.
        for own in &mut sockets {
            while *own < budget.allowed(*own) {
                *own += 1;
                budget.opened();
            }
        }
        assert!(sockets.iter().sum::<usize>() <= 2 * FLOWS_PER_CORE_MAX);
        assert!(sockets.iter().all(|own| *own >= FLOWS_PER_SOCKET_MIN));
    }
}
