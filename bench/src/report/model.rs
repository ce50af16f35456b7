//! A report: every run with all that was recorded of it, and what the runs come to.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metric::Metric;
use crate::harness::machine::Machine;
use crate::harness::meter::Usage;
use crate::harness::tunnel::{Farewell, Placement};
use crate::stats::{Summary, paired_ratio};

/// How much else a CPU may do before a run counts as disturbed, in percent of one CPU. The kernel's
/// own work for the tunnel's packets outside of any process is within it.
const ELSEWHERE_PERCENT_MAX: f64 = 25.0;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Settings {
    pub(crate) cores: usize,
    pub(crate) placement: Placement,
    pub(crate) path: String,
    pub(crate) repeats: usize,
    pub(crate) seconds: f64,
    /// Before that, how long it ran unmeasured.
    pub(crate) warm_up_seconds: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) overrides: Vec<String>,
}

/// One run: a fresh tunnel, one case, once.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Run {
    /// In which round, from 1.
    pub(crate) round: usize,
    pub(crate) values: BTreeMap<String, f64>,
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    /// What the programs told at their end.
    #[serde(skip_deserializing)]
    pub(crate) farewell: Farewell,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) load_command: Option<String>,
    /// Why the first attempt failed, if this is the second one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repeated_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct MetricSummary {
    #[serde(flatten)]
    pub(crate) summary: Summary,
    /// How many times as large as that of each baseline, within the rounds.
    #[serde(default)]
    pub(crate) ratios: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct TunnelReport {
    pub(crate) tunnel: String,
    #[serde(default)]
    pub(crate) summary: BTreeMap<String, MetricSummary>,
    pub(crate) runs: Vec<Run>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct CaseReport {
    pub(crate) case: String,
    pub(crate) tunnels: Vec<TunnelReport>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(crate) bench: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    #[serde(skip_deserializing)]
    pub(crate) settings: Settings,
    pub(crate) baselines: Vec<String>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) cases: Vec<CaseReport>,
}

impl Run {
    /// Adds values; what is no number was not measured.
    pub(crate) fn take(&mut self, values: impl IntoIterator<Item = (&'static str, f64)>) {
        let values = values.into_iter().filter(|(_, value)| value.is_finite());
        let values = values.map(|(metric, value)| (metric.to_owned(), value));
        self.values.extend(values);
    }
}

impl TunnelReport {
    pub(crate) fn values(&self, metric: &str) -> Vec<Option<f64>> {
        let values = self.runs.iter().map(|run| run.values.get(metric));
        values.map(Option::<&f64>::copied).collect()
    }
}

impl CaseReport {
    fn summarise(&mut self, metrics: &[Metric], baselines: &[String]) {
        for metric in metrics.iter().map(|it| &*it.name) {
            let is_baseline = |it: &&TunnelReport| baselines.contains(&it.tunnel);
            let baselines = self.tunnels.iter().filter(is_baseline);
            let baselines: Vec<(String, Vec<Option<f64>>)> = baselines
                .map(|it| (it.tunnel.clone(), it.values(metric)))
                .collect();
            for tunnel in &mut self.tunnels {
                let values = tunnel.values(metric);
                let Some(summary) = Summary::of(values.iter().copied().flatten()) else {
                    continue;
                };
                let ratio = |(label, theirs): &(String, Vec<Option<f64>>)| {
                    Some((label.clone(), paired_ratio(&values, theirs)?))
                };
                let ratios = baselines.iter().filter_map(ratio).collect();
                let summary = MetricSummary { summary, ratios };
                tunnel.summary.insert(metric.to_owned(), summary);
            }
        }
    }
}

impl Report {
    /// Reads one; `None` if it is not there or is none.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
    }

    pub(crate) fn runs(&self, case: &str, tunnel: &str) -> Option<&TunnelReport> {
        let mut cases = self.cases.iter();
        let mut tunnels = cases.find(|it| it.case == case)?.tunnels.iter();
        tunnels.find(|it| it.tunnel == tunnel)
    }

    pub(crate) fn summary(&self, case: &str, tunnel: &str, metric: &str) -> Option<&Summary> {
        Some(&self.runs(case, tunnel)?.summary.get(metric)?.summary)
    }

    pub(crate) fn summarise(&mut self) {
        for case in &mut self.cases {
            case.summarise(&self.metrics, &self.baselines);
        }
    }

    pub(crate) fn measured(&self) -> Vec<&Metric> {
        let tunnels = || self.cases.iter().flat_map(|case| &case.tunnels);
        let has = |metric: &&Metric| tunnels().any(|it| it.summary.contains_key(&*metric.name));
        self.metrics.iter().filter(has).collect()
    }

    pub(crate) fn each_run(&self) -> impl Iterator<Item = (&str, &str, &Run)> {
        let tunnels = self.cases.iter().flat_map(|case| {
            let tunnels = case.tunnels.iter();
            tunnels.map(|tunnel| (case.case.as_str(), tunnel))
        });
        tunnels.flat_map(|(case, tunnel)| {
            let runs = tunnel.runs.iter();
            runs.map(move |run| (case, tunnel.tunnel.as_str(), run))
        })
    }

    /// Runs that failed, each with case, tunnel, round and reason.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.told(|run| run.error.clone())
    }

    /// What a reader must know before trusting the numbers: a busy machine, complaints of the
    /// programs. What several runs share is said once.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let elsewhere = self.each_run().filter_map(|(.., run)| run.usage.as_ref());
        let elsewhere = elsewhere.map(|usage| usage.elsewhere_percent);
        let busy: Vec<f64> = elsewhere.filter(|it| *it > ELSEWHERE_PERCENT_MAX).collect();
        if let Some(most) = busy.iter().copied().reduce(f64::max) {
            let (disturbed, all) = (busy.len(), self.each_run().count());
            remarks.push(format!(
                "in {disturbed} of {all} runs the machine was busy with something else, too (up to {most:.0} % of a CPU)"
            ));
        }
        remarks.extend(self.told(|run| {
            let error = run.repeated_after.as_ref()?;
            Some(format!(
                "measured at the second attempt; the first failed: {error}"
            ))
        }));
        let mut complaints: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (_, tunnel, run) in self.each_run() {
            for complaint in &run.farewell.complaints {
                let times = complaints.entry((tunnel, without_time(complaint)));
                *times.or_default() += 1;
            }
        }
        let complaints = complaints.into_iter();
        remarks.extend(
            complaints.map(|((tunnel, complaint), times)| {
                format!("{tunnel}, {times} times: {complaint}")
            }),
        );
        remarks
    }

    fn told(&self, what: impl Fn(&Run) -> Option<String>) -> Vec<String> {
        let told = self.each_run().filter_map(|(case, tunnel, run)| {
            let text = what(run)?;
            Some(format!("{case}, {tunnel}, round {}: {text}", run.round))
        });
        told.collect()
    }
}

/// A line of a log from its level on; as it is if it has none.
fn without_time(line: &str) -> &str {
    ["WARN", "ERROR"]
        .into_iter()
        .find_map(|level| Some(&line[line.find(level)?..]))
        .unwrap_or(line)
}

/// Reports to test what is made of them.
#[cfg(test)]
pub(super) mod examples {
    use super::super::metric::higher;
    use super::*;
    use serde_json::json;

    pub(in super::super) const SPEED: Metric = higher("throughput_gbit_s", "Gbit/s", 2).main();

    /// Two cases, in the second of which a tunnel has failed.
    pub(in super::super) fn report() -> Report {
        let runs = |speeds: &[f64]| -> serde_json::Value {
            let runs = (1..).zip(speeds);
            runs.map(|(round, speed)| json!({"round": round, "values": {&*SPEED.name: speed}}))
                .collect()
        };
        let tunnel = |tunnel: &str, runs| json!({"tunnel": tunnel, "runs": runs});
        let failed = json!([{"round": 1, "error": "it hung"}]);
        let report = json!({
            "bench": "example",
            "command": "qmux-bench example",
            "baselines": ["raw"],
            "cases": [
                {"case": "tcp", "tunnels": [
                    tunnel("raw", runs(&[20.0, 10.0])),
                    tunnel("ours", runs(&[10.0, 5.0])),
                ]},
                {"case": "udp", "tunnels": [tunnel("raw", runs(&[1.0])), tunnel("ours", failed)]},
            ],
        });
        let mut report: Report = serde_json::from_value(report).expect("a report");
        report.metrics = vec![SPEED];
        report.summarise();
        report
    }
}

#[cfg(test)]
mod tests {
    use super::examples::{SPEED, report};
    use super::*;

    #[test]
    fn medians_and_ratios_are_worked_out_and_failures_told_with_their_place() {
        let report = report();
        let ours = &report.cases[0].tunnels[1].summary[&*SPEED.name];
        assert_eq!(ours.summary.median, 7.5);
        // Half as fast in each round, however different the rounds were.
        assert_eq!(ours.ratios["raw"], 0.5);
        assert_eq!(report.measured(), [&SPEED]);
        assert!(report.cases[1].tunnels[1].summary.is_empty());
        assert_eq!(report.failures(), ["udp, ours, round 1: it hung"]);
    }

    #[test]
    fn a_busy_machine_is_remarked_and_what_programs_complain_about_said_once() {
        let mut report = report();
        assert_eq!(report.remarks(), Vec::<String>::new());
        for run in &mut report.cases[0].tunnels[1].runs {
            let second = run.round;
            let line = format!("server: 2026-01-01T00:00:0{second}Z  WARN too few files");
            run.farewell.complaints.push(line);
            run.usage = Some(Usage {
                elsewhere_percent: 60.0,
                ..Usage::default()
            });
        }
        let [busy, complaint] = &report.remarks()[..] else {
            panic!("{:?}", report.remarks());
        };
        assert!(
            busy.contains("2 of 6 runs") && busy.contains("60 %"),
            "{busy}"
        );
        assert_eq!(complaint, "ours, 2 times: WARN too few files");
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let written = serde_json::to_string(&report()).expect("JSON");
        let mut read: Report = serde_json::from_str(&written).expect("a report");
        read.metrics = vec![SPEED];
        assert_eq!(read, report());
    }
}
