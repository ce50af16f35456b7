//! The counters that a program logs for each core when it stops.

use std::collections::BTreeMap;

use super::program::Program;

/// Counters of one core by name; what is not listed is zero.
pub(crate) struct CoreCounters(qmux_harness::counters::Counters);

impl CoreCounters {
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// Counters of every core of a program that has stopped.
pub(crate) fn of(program: &Program) -> BTreeMap<u64, CoreCounters> {
    let lines = program.lines();
    let cores = qmux_harness::counters::of_cores(lines.iter().map(String::as_str));
    cores
        .into_iter()
        .map(|(core, it)| (core, CoreCounters(it)))
        .collect()
}

/// The sum of a counter over all cores.
pub(crate) fn total(counters: &BTreeMap<u64, CoreCounters>, name: &str) -> u64 {
    counters.values().map(|core| core.get(name)).sum()
}
