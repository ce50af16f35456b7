//! What the probes have found: their reports, as they have written them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::probe::{ALLOCATIONS, PROBES, Tunnel};
use crate::stats::paired_ratio;

/// The reports that are there, by probe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    reports: BTreeMap<String, Value>,
    /// What `qmux-dp allocations` has printed.
    allocations: Option<String>,
}

impl Found {
    /// Reads what probes have left under a directory. What is not there, or cannot be read, was not measured.
    pub fn read(directory: &Path) -> Self {
        let mut found = Self::default();
        for probe in PROBES {
            let file = directory
                .join(probe.name)
                .join(format!("{}.json", probe.bench));
            let text = std::fs::read_to_string(file).ok();
            if let Some(report) = text.and_then(|text| serde_json::from_str(&text).ok()) {
                found.add(probe.name, report);
            }
        }
        let file = directory.join(ALLOCATIONS).join("allocations.txt");
        found.allocations = std::fs::read_to_string(file).ok();
        found
    }

    pub(super) fn add(&mut self, probe: &str, report: Value) {
        self.reports.insert(probe.to_owned(), report);
    }

    #[cfg(test)]
    pub(super) fn set_allocations(&mut self, printed: &str) {
        self.allocations = Some(printed.to_owned());
    }

    /// Whether a probe was measured.
    pub fn has(&self, probe: &str) -> bool {
        match probe {
            ALLOCATIONS => self.allocations.is_some(),
            _ => self.reports.contains_key(probe),
        }
    }

    /// The command that a probe's numbers come from, with when it was run and on what commit: each may be of another run.
    pub fn command(&self, probe: &str) -> Option<String> {
        let command = self.reports.get(probe)?["command"].as_str()?;
        Some(format!("{command} ({})", self.origin(probe)))
    }

    /// When a probe was run, and on what commit.
    pub fn origin(&self, probe: &str) -> String {
        let date = self.word(probe, "date").unwrap_or("unknown");
        let commit = self.word(probe, "commit").unwrap_or("unknown");
        format!("{date}, commit {commit}")
    }

    fn word(&self, probe: &str, key: &str) -> Option<&str> {
        if probe == ALLOCATIONS {
            let mut lines = self.allocations.as_deref()?.lines();
            return lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        }
        self.reports.get(probe)?["machine"][key].as_str()
    }

    /// The commits that the probes were run on, each with its probes.
    pub fn commits(&self) -> BTreeMap<&str, Vec<&'static str>> {
        let mut commits: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
        let names = PROBES.iter().map(|probe| probe.name).chain([ALLOCATIONS]);
        for name in names.filter(|name| self.has(name)) {
            let commit = self.word(name, "commit").unwrap_or("unknown");
            commits.entry(commit).or_default().push(name);
        }
        commits
    }

    /// What stands before the lines of `qmux-dp allocations`, which itself tells neither.
    pub fn allocations_head(date: &str, commit: &str) -> String {
        format!("date: {date}\ncommit: {commit}\n")
    }

    /// What the numbers were measured on, as the first report has it: machine, date, commit.
    pub fn machine(&self) -> Option<&Value> {
        self.reports.values().next().map(|it| &it["machine"])
    }

    /// Runs of a probe that failed, each with case, tunnel and reason.
    pub fn failures(&self, probe: &str) -> Vec<String> {
        let mut failures = Vec::new();
        let cases = self
            .reports
            .get(probe)
            .and_then(|it| it["cases"].as_array());
        for case in cases.into_iter().flatten() {
            for tunnel in case["tunnels"].as_array().into_iter().flatten() {
                for run in tunnel["runs"].as_array().into_iter().flatten() {
                    if let Some(error) = run["error"].as_str() {
                        let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                        let (case, tunnel) = (name(&case["case"]), name(&tunnel["tunnel"]));
                        failures.push(format!("{probe}, {case}, {tunnel}: {error}"));
                    }
                }
            }
        }
        failures
    }

    fn tunnel(&self, probe: &str, case: &str, tunnel: Tunnel) -> Option<&Value> {
        let cases = self.reports.get(probe)?["cases"].as_array()?;
        let case = cases.iter().find(|it| it["case"] == case)?;
        let mut tunnels = case["tunnels"].as_array()?.iter();
        tunnels.find(|it| it["tunnel"] == tunnel.label())
    }

    /// How many runs of a tunnel failed, of how many.
    pub fn runs(&self, probe: &str, case: &str, tunnel: Tunnel) -> (usize, usize) {
        let runs = self.tunnel(probe, case, tunnel);
        let runs = runs.and_then(|it| it["runs"].as_array());
        let runs = runs.map(Vec::as_slice).unwrap_or_default();
        let failed = runs.iter().filter(|run| run["error"].is_string());
        (failed.count(), runs.len())
    }

    /// The median of a metric over the rounds.
    pub fn median(&self, probe: &str, case: &str, tunnel: Tunnel, metric: &str) -> Option<f64> {
        self.tunnel(probe, case, tunnel)?["summary"][metric]["median"].as_f64()
    }

    /// The largest value of a metric in any round.
    pub fn largest(&self, probe: &str, case: &str, tunnel: Tunnel, metric: &str) -> Option<f64> {
        self.tunnel(probe, case, tunnel)?["summary"][metric]["max"].as_f64()
    }

    /// A metric's value in each round.
    fn rounds(&self, probe: &str, case: &str, tunnel: Tunnel, metric: &str) -> Vec<Option<f64>> {
        let runs = self.tunnel(probe, case, tunnel);
        let runs = runs.and_then(|it| it["runs"].as_array());
        runs.into_iter()
            .flatten()
            .map(|run| run["values"][metric].as_f64())
            .collect()
    }

    /// How many times as much a tunnel has of a metric as another: the median of the ratios within a round.
    pub fn times(
        &self,
        (probe, case, metric): (&str, &str, &str),
        tunnel: Tunnel,
        baseline: Tunnel,
    ) -> Option<f64> {
        let of = |tunnel| self.rounds(probe, case, tunnel, metric);
        paired_ratio(&of(tunnel), &of(baseline))
    }

    /// How many times as much a tunnel has of a metric in one case as in another, likewise.
    pub fn grown(
        &self,
        (probe, metric): (&str, &str),
        tunnel: Tunnel,
        from: &str,
        to: &str,
    ) -> Option<f64> {
        let of = |case| self.rounds(probe, case, tunnel, metric);
        paired_ratio(&of(to), &of(from))
    }

    /// The allocations per packet of `qmux-dp allocations`, of its own and of others, over all loads: the largest.
    pub fn allocations_per_packet(&self) -> Option<(f64, f64)> {
        let mut most: Option<(f64, f64)> = None;
        for line in self.allocations.as_deref()?.lines() {
            let Some((ours, others)) = line
                .split_once("; ours ")
                .and_then(|(_, rest)| rest.split_once(" per packet, others' "))
            else {
                continue;
            };
            let ours: f64 = ours.parse().ok()?;
            let others: f64 = others.trim_end_matches('.').parse().ok()?;
            let (a, b) = most.unwrap_or_default();
            most = Some((a.max(ours), b.max(others)));
        }
        most
    }
}
