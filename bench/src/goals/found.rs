//! What the probes have found: their reports, as they have written them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::probe::{ALLOCATIONS, OURS, PROBES};
use crate::harness::machine::Machine;
use crate::report::{Report, TunnelReport};
use crate::stats::{Summary, paired_ratio};

/// How allocations are counted again.
const ALLOCATIONS_COMMAND: &str =
    "cargo run --release -p qmux-dp --features count-allocations -- allocations";

/// The case and the metrics that the lines of `qmux-dp allocations` are read as.
pub(super) const ANY_LOAD: &str = "any load";
pub(super) const ALLOCATIONS_OURS: &str = "ours_per_packet";
pub(super) const ALLOCATIONS_OTHERS: &str = "others_per_packet";

#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    reports: BTreeMap<String, Report>,
}

impl Found {
    /// Reads what probes have left under a directory. What is not there, or cannot be read, was
    /// not measured.
    pub(crate) fn read(directory: &Path) -> Self {
        let mut found = Self::default();
        for probe in PROBES {
            let file = format!("{}/{}.json", probe.name, probe.bench);
            if let Some(report) = Report::read(&directory.join(file)) {
                found.reports.insert(probe.name.to_owned(), report);
            }
        }
        let file = format!("{ALLOCATIONS}/allocations.txt");
        if let Ok(printed) = std::fs::read_to_string(directory.join(file)) {
            found.add_allocations(&printed);
        }
        found
    }

    #[cfg(test)]
    pub(super) fn add(&mut self, probe: &str, report: Report) {
        self.reports.insert(probe.to_owned(), report);
    }

    /// What `qmux-dp allocations` has printed.
    pub(super) fn add_allocations(&mut self, printed: &str) {
        let report = of_allocations(printed);
        self.reports.insert(ALLOCATIONS.to_owned(), report);
    }

    pub(crate) fn has(&self, probe: &str) -> bool {
        self.reports.contains_key(probe)
    }

    pub(crate) fn probes(&self) -> impl Iterator<Item = &'static str> {
        let names = PROBES.iter().map(|probe| probe.name).chain([ALLOCATIONS]);
        names.filter(|name| self.has(name))
    }

    /// The command that a probe's numbers come from, with when it was run and on what commit: each
    /// may be of another run.
    pub(crate) fn command(&self, probe: &str) -> Option<String> {
        let report = self.reports.get(probe)?;
        let Machine { date, commit, .. } = &report.machine;
        Some(format!("{} ({date}, commit {commit})", report.command))
    }

    pub(crate) fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.values()
    }

    pub(crate) fn commits(&self) -> BTreeMap<&str, Vec<&'static str>> {
        let mut commits: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
        for name in self.probes() {
            let commit = &self.reports[name].machine.commit;
            commits.entry(commit.as_str()).or_default().push(name);
        }
        commits
    }

    /// What stands before the lines of `qmux-dp allocations`, which itself tells neither.
    pub(crate) fn allocations_head(date: &str, commit: &str) -> String {
        format!("date: {date}\ncommit: {commit}\n")
    }

    /// What the numbers were measured on, as the first report has it: machine, date, commit.
    pub(crate) fn machine(&self) -> Option<&Machine> {
        let mut reports = self.reports.iter();
        let first = reports.find(|(probe, _)| *probe != ALLOCATIONS);
        first.map(|(_, report)| &report.machine)
    }

    /// Runs of a probe that failed, each with case, tunnel and reason.
    pub(crate) fn failures(&self, probe: &str) -> Vec<String> {
        let runs = self
            .reports
            .get(probe)
            .into_iter()
            .flat_map(Report::each_run);
        let failures = runs.filter_map(|(case, tunnel, run)| {
            let error = run.error.as_ref()?;
            Some(format!("{probe}, {case}, {tunnel}: {error}"))
        });
        failures.collect()
    }

    fn tunnel(&self, probe: &str, case: &str, tunnel: &str) -> Option<&TunnelReport> {
        self.reports.get(probe)?.runs(case, tunnel)
    }

    /// How many runs of a tunnel failed, of how many.
    pub(crate) fn runs(&self, probe: &str, case: &str, tunnel: &str) -> (usize, usize) {
        let runs = self.tunnel(probe, case, tunnel);
        let runs = runs.map(|it| it.runs.as_slice()).unwrap_or_default();
        let failed = runs.iter().filter(|run| run.error.is_some());
        (failed.count(), runs.len())
    }

    pub(crate) fn summary(
        &self,
        probe: &str,
        case: &str,
        tunnel: &str,
        metric: &str,
    ) -> Option<&Summary> {
        let report = self.reports.get(probe)?;
        report.summary(case, tunnel, metric)
    }

    /// How many times as much of a metric the first case and tunnel has as the second: the median
    /// of the ratios within a round. A value above `most` counts as `most`.
    pub(crate) fn times(
        &self,
        (probe, metric): (&str, &str),
        ours: (&str, &str),
        baseline: (&str, &str),
        most: f64,
    ) -> Option<f64> {
        let rounds = |(case, tunnel)| {
            let runs = self.tunnel(probe, case, tunnel);
            let values = runs.map_or(Vec::new(), |it| it.values(metric));
            let capped = values.into_iter().map(|value| Some(value?.min(most)));
            capped.collect::<Vec<Option<f64>>>()
        };
        paired_ratio(&rounds(ours), &rounds(baseline))
    }
}

/// What `qmux-dp allocations` has printed, of its own and of others, each the most of all loads.
fn of_allocations(printed: &str) -> Report {
    let word = |key: &str| {
        let mut lines = printed.lines();
        let word = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        word.unwrap_or("unknown")
    };
    let counts = printed.lines().filter_map(|line| {
        let (_, rest) = line.split_once("; ours ")?;
        let (ours, others) = rest.split_once(" per packet, others' ")?;
        let others = others.trim_end_matches('.');
        Some((ours.parse::<f64>().ok()?, others.parse::<f64>().ok()?))
    });
    let most = counts.reduce(|(a, b), (ours, others)| (a.max(ours), b.max(others)));
    let summary = |value: f64| json!({"median": value, "min": value, "max": value, "samples": 1});
    let summaries = most.map_or(json!({}), |(ours, others)| {
        json!({ALLOCATIONS_OURS: summary(ours), ALLOCATIONS_OTHERS: summary(others)})
    });
    let tunnel = json!({"tunnel": OURS, "summary": summaries, "runs": []});
    let report = json!({
        "command": ALLOCATIONS_COMMAND,
        "machine": {"date": word("date"), "commit": word("commit")},
        "cases": [{"case": ANY_LOAD, "tunnels": [tunnel]}],
    });
    serde_json::from_value(report).unwrap_or_default()
}
