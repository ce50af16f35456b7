//! The counters that a program logs for each core when it stops.

use std::collections::BTreeMap;

use super::program::Program;

/// Counters of one core by name; what is not listed is zero.
pub(crate) struct CoreCounters(BTreeMap<String, u64>);

impl CoreCounters {
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// Counters of every core of a program that has stopped.
pub(crate) fn of(program: &Program) -> BTreeMap<u64, CoreCounters> {
    program
        .lines()
        .iter()
        .filter(|line| line.split_whitespace().any(|word| word == "counters"))
        .map(|line| {
            let mut pairs: BTreeMap<String, u64> = line
                .split_whitespace()
                .filter_map(|word| word.split_once('='))
                .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
                .collect();
            let core = pairs
                .remove("core")
                .unwrap_or_else(|| panic!("a line of counters without core=: {line}"));
            (core, CoreCounters(pairs))
        })
        .collect()
}

/// The sum of a counter over all cores.
pub(crate) fn total(counters: &BTreeMap<u64, CoreCounters>, name: &str) -> u64 {
    counters.values().map(|core| core.get(name)).sum()
}
