//! Which lanes one core keeps: told from the servers, their numbers of cores, and the core's own place.
//!
//! Every core has the same rules, so that the cores agree without talking: lane `k` belongs to client core
//! `k % client cores`. The plan does no I/O; its owner starts and retires supervisors as told.

use std::collections::BTreeSet;

use qmux_config::Lanes;

/// A lane by its server's number and its own index.
pub(crate) type LaneId = (u64, usize);

/// What to do to follow the plan.
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
    lanes: Lanes,
    running: BTreeSet<LaneId>,
}

impl Plan {
    /// No lane yet. `core` is the index of this core among `cores`.
    pub(crate) fn new(core: usize, cores: usize, lanes: Lanes) -> Plan {
        Plan {
            core,
            cores,
            lanes,
            running: BTreeSet::new(),
        }
    }

    /// Brings the plan in line with `servers`: their numbers, each with its number of cores (0 if not known yet).
    pub(crate) fn update(&mut self, servers: impl Iterator<Item = (u64, usize)>) -> Changes {
        let mut wanted = BTreeSet::new();
        for (server, server_cores) in servers {
            let count = lane_count(self.lanes, server_cores, self.cores);
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

/// Lanes to open to a server of `server_cores` cores from `client_cores` cores: each core of either side gets at
/// least one. Lane `k` joins server core `k % server_cores` and client core `k % client_cores`.
pub(crate) fn lane_count(lanes: Lanes, server_cores: usize, client_cores: usize) -> usize {
    match lanes {
        // One lane first: it brings the number of cores, which the others need to aim.
        _ if server_cores == 0 => 1,
        Lanes::Count(count) => usize::from(count.get()),
        Lanes::Auto => server_cores.max(client_cores),
    }
}
