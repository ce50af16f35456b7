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

/// How it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Settings {
    /// Cores of each side of a tunnel.
    pub cores: usize,
    /// Which CPUs they had.
    pub placement: Placement,
    /// What lay between the sides.
    pub path: String,
    /// How often everything was measured.
    pub repeats: usize,
    /// How long each time.
    pub seconds: f64,
    /// Before that, how long it ran unmeasured.
    pub warm_up_seconds: f64,
    /// Lines that were added to dp.toml.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
}

/// One run: a fresh tunnel, one case, once.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Run {
    /// In which round, from 1.
    pub round: usize,
    /// What was measured, by metric.
    pub values: BTreeMap<String, f64>,
    /// What the processes used.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What the programs told at their end.
    #[serde(skip_deserializing)]
    pub farewell: Farewell,
    /// The load's command, where it is a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_command: Option<String>,
    /// Why the first attempt failed, if this is the second one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeated_after: Option<String>,
    /// Why nothing was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the runs of one metric come to.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct MetricSummary {
    /// Median and extremes.
    #[serde(flatten)]
    pub summary: Summary,
    /// How many times as large as that of each baseline, within the rounds.
    #[serde(default)]
    pub ratios: BTreeMap<String, f64>,
}

/// All runs of a tunnel in one case.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct TunnelReport {
    /// The tunnel's label.
    pub tunnel: String,
    /// By metric.
    #[serde(default)]
    pub summary: BTreeMap<String, MetricSummary>,
    /// One for each round.
    pub runs: Vec<Run>,
}

/// All tunnels in one case.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CaseReport {
    /// The case.
    pub case: String,
    /// In the order of the command line.
    pub tunnels: Vec<TunnelReport>,
}

/// All of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Report {
    /// Which measurement.
    pub bench: String,
    /// The command that reproduces it.
    pub command: String,
    /// What it was made on and with.
    pub machine: Machine,
    /// How it was made.
    #[serde(skip_deserializing)]
    pub settings: Settings,
    /// The tunnels that ratios refer to.
    pub baselines: Vec<String>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// What came of it.
    pub cases: Vec<CaseReport>,
}

impl Run {
    /// Adds values; what is no number was not measured.
    pub fn take(&mut self, values: impl IntoIterator<Item = (&'static str, f64)>) {
        let values = values.into_iter().filter(|(_, value)| value.is_finite());
        let values = values.map(|(metric, value)| (metric.to_owned(), value));
        self.values.extend(values);
    }
}

impl TunnelReport {
    /// The values of one metric, one for each run.
    pub(crate) fn values(&self, metric: &str) -> Vec<Option<f64>> {
        let values = self.runs.iter().map(|run| run.values.get(metric));
        values.map(Option::<&f64>::copied).collect()
    }
}

impl CaseReport {
    /// Fills the summaries in.
    fn summarise(&mut self, metrics: &[Metric], baselines: &[String]) {
        for metric in metrics {
            let baselines: Vec<(String, Vec<Option<f64>>)> = baselines
                .iter()
                .filter_map(|label| {
                    let baseline = self.tunnels.iter().find(|it| it.tunnel == *label)?;
                    Some((label.clone(), baseline.values(&metric.name)))
                })
                .collect();
            for tunnel in &mut self.tunnels {
                let values = tunnel.values(&metric.name);
                let Some(summary) = Summary::of(values.iter().copied().flatten()) else {
                    continue;
                };
                let ratios = baselines
                    .iter()
                    .filter_map(|(label, theirs)| {
                        Some((label.clone(), paired_ratio(&values, theirs)?))
                    })
                    .collect();
                let summary = MetricSummary { summary, ratios };
                tunnel.summary.insert(metric.name.to_string(), summary);
            }
        }
    }
}

impl Report {
    /// Reads one; `None` if it is not there or is none.
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
    }

    /// All runs of a tunnel in a case.
    pub(crate) fn runs(&self, case: &str, tunnel: &str) -> Option<&TunnelReport> {
        let mut cases = self.cases.iter();
        let mut tunnels = cases.find(|it| it.case == case)?.tunnels.iter();
        tunnels.find(|it| it.tunnel == tunnel)
    }

    /// Median and extremes of a metric.
    pub(crate) fn summary(&self, case: &str, tunnel: &str, metric: &str) -> Option<&Summary> {
        Some(&self.runs(case, tunnel)?.summary.get(metric)?.summary)
    }

    /// Works out medians, spreads and ratios of all runs.
    pub fn summarise(&mut self) {
        for case in &mut self.cases {
            case.summarise(&self.metrics, &self.baselines);
        }
    }

    /// Metrics that at least one run has.
    pub fn measured(&self) -> Vec<&Metric> {
        let has = |metric: &Metric| {
            self.tunnels()
                .any(|tunnel| tunnel.summary.contains_key(&*metric.name))
        };
        self.metrics.iter().filter(|metric| has(metric)).collect()
    }

    /// Runs that failed, each with case, tunnel, round and reason.
    pub fn failures(&self) -> Vec<String> {
        self.told(|run| run.error.clone())
    }

    /// What a reader must know before trusting the numbers: a busy machine, complaints of the
    /// programs. What several runs share is said once.
    pub fn remarks(&self) -> Vec<String> {
        let runs = || self.tunnels().flat_map(|tunnel| &tunnel.runs);
        let mut remarks = Vec::new();
        let busy: Vec<f64> = runs()
            .filter_map(|run| Some(run.usage.as_ref()?.elsewhere_percent))
            .filter(|percent| *percent > ELSEWHERE_PERCENT_MAX)
            .collect();
        if let Some(most) = busy.iter().copied().reduce(f64::max) {
            let (disturbed, all) = (busy.len(), runs().count());
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
        for tunnel in self.tunnels() {
            for complaint in tunnel.runs.iter().flat_map(|run| &run.farewell.complaints) {
                let place = (tunnel.tunnel.as_str(), without_time(complaint));
                *complaints.entry(place).or_default() += 1;
            }
        }
        for ((tunnel, complaint), times) in complaints {
            remarks.push(format!("{tunnel}, {times} times: {complaint}"));
        }
        remarks
    }

    fn tunnels(&self) -> impl Iterator<Item = &TunnelReport> {
        self.cases.iter().flat_map(|case| &case.tunnels)
    }

    fn told(&self, what: impl Fn(&Run) -> Option<String>) -> Vec<String> {
        let mut told = Vec::new();
        for case in &self.cases {
            for tunnel in &case.tunnels {
                for run in &tunnel.runs {
                    if let Some(text) = what(run) {
                        let (case, tunnel, round) = (&case.case, &tunnel.tunnel, run.round);
                        told.push(format!("{case}, {tunnel}, round {round}: {text}"));
                    }
                }
            }
        }
        told
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
    fn medians_and_ratios_are_worked_out() {
        let report = report();
        let ours = &report.cases[0].tunnels[1].summary[&*SPEED.name];
        assert_eq!(ours.summary.median, 7.5);
        // Half as fast in each round, however different the rounds were.
        assert_eq!(ours.ratios["raw"], 0.5);
        assert_eq!(report.measured(), [&SPEED]);
    }

    #[test]
    fn failures_are_told_with_their_place() {
        let report = report();
        assert!(report.cases[1].tunnels[1].summary.is_empty());
        assert_eq!(report.failures(), ["udp, ours, round 1: it hung"]);
    }

    #[test]
    fn a_busy_machine_is_remarked() {
        let mut report = report();
        assert_eq!(report.remarks(), Vec::<String>::new());
        report.cases[0].tunnels[0].runs[0].usage = Some(Usage {
            elsewhere_percent: 60.0,
            ..Usage::default()
        });
        assert!(
            report.remarks()[0].contains("60 %"),
            "{:?}",
            report.remarks()
        );
    }

    #[test]
    fn what_programs_complain_about_is_said_once() {
        let mut report = report();
        for run in &mut report.cases[0].tunnels[1].runs {
            let line = format!(
                "server: 2026-01-01T00:00:0{}Z  WARN too few files",
                run.round
            );
            run.farewell.complaints.push(line);
        }
        assert_eq!(report.remarks(), ["ours, 2 times: WARN too few files"]);
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let written = serde_json::to_string(&report()).expect("JSON");
        let mut read: Report = serde_json::from_str(&written).expect("a report");
        read.metrics = vec![SPEED];
        assert_eq!(read, report());
    }
}
