//! The plan of which lanes one core keeps, made from the servers, the number of lanes to each, and
//! the index of the core.
//!
//! Every core applies the same rules, so the cores agree without talking to each other: lane `k`
//! belongs to client core `k % client cores`. The plan does no I/O; its owner starts and retires
//! supervisors as told.

use std::collections::BTreeSet;

/// A lane, by the number of its server and its own index.
pub(crate) type LaneId = (u64, usize);

/// What the owner must do to follow the plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) start: Vec<LaneId>,
    pub(crate) retire: Vec<LaneId>,
}

/// The lanes of one core.
#[derive(Debug)]
pub(crate) struct Plan {
    core: usize,
    cores: usize,
    running: BTreeSet<LaneId>,
}

impl Plan {
    /// An empty plan for core `core` of `cores`.
    pub(crate) fn new(core: usize, cores: usize) -> Plan {
        Plan {
            core,
            cores,
            running: BTreeSet::new(),
        }
    }

    /// Brings the plan in line with `servers`: their numbers, each with its number of lanes.
    pub(crate) fn update(&mut self, servers: impl Iterator<Item = (u64, usize)>) -> Changes {
        let mut wanted = BTreeSet::new();
        for (server, count) in servers {
            wanted.extend(
                (self.core..count)
                    .step_by(self.cores.max(1))
                    .map(|lane| (server, lane)),
            );
        }
        let changes = Changes {
            start: wanted.difference(&self.running).copied().collect(),
            retire: self.running.difference(&wanted).copied().collect(),
        };
        self.running = wanted;
        changes
    }
}
