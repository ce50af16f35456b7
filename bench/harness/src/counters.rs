//! The counters that programs log for each core when they stop: `… counters core=N name=value …`.

use std::collections::BTreeMap;

/// Counters by name; what is not listed is zero.
pub type Counters = BTreeMap<String, u64>;

/// Those of every core, out of the lines of a log.
pub fn of_cores<'a>(lines: impl IntoIterator<Item = &'a str>) -> BTreeMap<u64, Counters> {
    lines.into_iter().filter_map(parse_line).collect()
}

/// The sums over all cores.
pub fn totals(cores: &BTreeMap<u64, Counters>) -> Counters {
    let mut totals = Counters::new();
    for (name, value) in cores.values().flatten() {
        *totals.entry(name.clone()).or_default() += value;
    }
    totals
}

fn parse_line(line: &str) -> Option<(u64, Counters)> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "counters")?;
    let mut counters: Counters = words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect();
    let core = counters.remove("core")?;
    Some((core, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_added_up() {
        let log = [
            "2026-01-01T00:00:00Z  INFO qmux_dp::run: stopping: no new flows",
            "2026-01-01T00:00:00Z  INFO qmux_dp::run: counters core=0 mail=2 lanes=1",
            "2026-01-01T00:00:00Z  INFO qmux_dp::run: counters core=1 mail=40",
        ];
        let cores = of_cores(log);
        assert_eq!(cores[&1]["mail"], 40);
        let wanted = [("lanes", 1), ("mail", 42)].map(|(name, it)| (name.to_owned(), it));
        assert_eq!(totals(&cores), BTreeMap::from(wanted));
    }

    #[test]
    fn other_lines_and_broken_values_count_nothing() {
        let lines = [
            "ready",
            "counters without a core=x lanes=1",
            "counters core=0 a=1 b=many c",
        ];
        let wanted = BTreeMap::from([("a".to_owned(), 1)]);
        assert_eq!(of_cores(lines), BTreeMap::from([(0, wanted)]));
    }
}
