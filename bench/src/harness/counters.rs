//! The counters that qmux-dp logs for each core when it stops: `… counters core=N name=value …`.

use std::collections::BTreeMap;

/// Counters of every core of a program by name; what is not listed is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<u64, BTreeMap<String, u64>>);

impl Counters {
    /// Takes the lines of counters out of a log.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        Self(lines.into_iter().filter_map(parse_line).collect())
    }

    /// The sums of all counters over all cores.
    pub fn totals(&self) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        for (name, value) in self.0.values().flatten() {
            *totals.entry(name.clone()).or_default() += value;
        }
        totals
    }
}

fn parse_line(line: &str) -> Option<(u64, BTreeMap<String, u64>)> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "counters")?;
    let mut counters: BTreeMap<String, u64> = words
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect();
    let core = counters.remove("core")?;
    Some((core, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: [&str; 4] = [
        "2026-01-01T00:00:00Z  INFO qmux_dp::run: stopping: no new flows, letting flows finish",
        "2026-01-01T00:00:00Z  INFO qmux_dp::run: counters core=0 mail_received=2 lanes_opened=1",
        "2026-01-01T00:00:00Z  INFO qmux_dp::run: counters core=1 mail_received=40",
        "2026-01-01T00:00:00Z  INFO qmux_dp::run: stopped",
    ];

    #[test]
    fn cores_are_added_up() {
        let counters = Counters::parse(LOG).totals();
        assert_eq!(counters["mail_received"], 42);
        assert_eq!(counters["lanes_opened"], 1);
        assert_eq!(counters.len(), 2);
    }

    #[test]
    fn other_lines_and_broken_values_count_nothing() {
        let lines = ["ready", "counters without a core=x lanes=1", "counters core=0 a=1 b=many c"];
        let counters = Counters::parse(lines);
        assert_eq!(counters.totals(), BTreeMap::from([("a".to_owned(), 1)]));
    }
}
