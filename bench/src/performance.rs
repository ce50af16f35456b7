//! docs/performance.md: the prose of a template, with what was measured woven in.
//!
//! A line `<!-- measured KIND NAME [METRICS]: COMMAND -->` of the template says what stands under
//! it: a table of what the command has written into a directory of that name. The number itself
//! stands in no source, so that none outlives the run that it is of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::goals::{Found, Page, in_turn};
use crate::report::{Report, Table};

/// What begins and ends such a line, and what ends what stands under it.
const DIRECTIVE: &str = "<!-- measured ";
const DIRECTIVE_END: &str = " -->";
const BLOCK_END: &str = "<!-- end -->";

/// Columns of a document.
const COLUMNS_MAX: usize = 100;

/// How far below a directory results are looked for: runs of the goals, and a probe's within.
const DEPTH_MAX: usize = 3;

/// Directories of results, each under the name that it is looked for by.
#[derive(Clone, Debug, Default)]
pub struct Results(Vec<(String, PathBuf)>);

impl Results {
    /// Of `DIR` with what is below it, or of `NAME=DIR`, which is taken as if it had that name.
    pub fn add(&mut self, from: &str) -> Result<(), String> {
        let (name, path) = match from.split_once('=') {
            Some((name, path)) => (Some(name), Path::new(path)),
            None => (None, Path::new(from)),
        };
        if !path.is_dir() {
            return Err(format!("--from: there is no directory {}", path.display()));
        }
        self.add_below(name, path, DEPTH_MAX);
        Ok(())
    }

    fn add_below(&mut self, name: Option<&str>, path: &Path, depth: usize) {
        let own = path.file_name().unwrap_or_default().to_string_lossy();
        self.0.push((name.unwrap_or(&own).to_owned(), path.into()));
        for below in entries(path).into_iter().filter(|it| it.is_dir()) {
            if depth > 0 {
                self.add_below(None, &below, depth - 1);
            }
        }
    }

    /// The files of directories of a name that end like this.
    fn files(&self, name: &str, ending: &str) -> Vec<PathBuf> {
        let directories = self.0.iter().filter(|(own, _)| own == name);
        let files = directories.flat_map(|(_, path)| entries(path));
        let ends = |it: &PathBuf| it.to_string_lossy().ends_with(ending);
        files.filter(ends).collect()
    }

    fn reports(&self, name: &str) -> Vec<Report> {
        let files = self.files(name, ".json");
        files.iter().filter_map(|it| Report::read(it)).collect()
    }
}

/// What is in a directory, by name.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The whole page.
pub fn page(template: &str, results: &Results) -> Result<String, String> {
    let mut page = String::new();
    for (number, line) in template.lines().enumerate() {
        page.push_str(line);
        page.push('\n');
        if let Some(rest) = line.strip_prefix(DIRECTIVE) {
            let wrong = |what: String| format!("line {} of the template: {what}", number + 1);
            let directive = Directive::of(rest).map_err(wrong)?;
            let block = directive.block(results).map_err(wrong)?;
            page.push_str(&format!("\n{block}\n{BLOCK_END}\n"));
        }
    }
    Ok(page)
}

/// One of those lines.
#[derive(Debug, PartialEq, Eq)]
struct Directive<'a> {
    kind: &'a str,
    name: &'a str,
    /// Which metrics of a report, in this order; of a table alone.
    metrics: Vec<&'a str>,
    command: &'a str,
}

impl<'a> Directive<'a> {
    fn of(rest: &'a str) -> Result<Self, String> {
        let wrong =
            || format!("{DIRECTIVE}KIND NAME [METRICS]: COMMAND{DIRECTIVE_END} is expected");
        let rest = rest.strip_suffix(DIRECTIVE_END).ok_or_else(wrong)?;
        let (words, command) = rest.split_once(": ").ok_or_else(wrong)?;
        let mut words = words.split(' ');
        let (kind, name) = words.next().zip(words.next()).ok_or_else(wrong)?;
        let metrics = words.next().unwrap_or_default();
        Ok(Self {
            kind,
            name,
            metrics: metrics.split(',').filter(|it| !it.is_empty()).collect(),
            command,
        })
    }

    /// What stands under it: that it was not measured, if so.
    fn block(&self, results: &Results) -> Result<String, String> {
        let (runs, table) = match self.kind {
            "goals" => goals(results),
            "table" => (results.reports(self.name), self.table(results)),
            "stages" => stages(results, self.name),
            "nanoseconds" => nanoseconds(results, self.name),
            kind => return Err(format!("there is no kind {kind:?}")),
        };
        let command = self.command;
        Ok(match table {
            Some(table) => {
                let by = format!("By `{command}`: {}.", origin(&runs));
                format!("{table}\n{}", wrapped(&by))
            }
            None => wrapped(&format!("Not measured; `{command}` does it.")),
        })
    }

    /// Cases and metrics below each other, tunnels beside each other.
    fn table(&self, results: &Results) -> Option<String> {
        let mut reports = results.reports(self.name);
        reports.retain(|report| !report.cases.is_empty());
        let first = reports.first()?;
        let mut tunnels: Vec<&str> = Vec::new();
        for runs in first.cases.iter().flat_map(|case| &case.tunnels) {
            if !tunnels.contains(&runs.tunnel.as_str()) {
                tunnels.push(&runs.tunnel);
            }
        }
        let mut table = Table::new(1, ["what"].iter().chain(&tunnels).copied());
        for case in first.cases.iter().map(|it| &it.case) {
            for name in &self.metrics {
                let Some(metric) = first.metrics.iter().find(|it| it.name == *name) else {
                    continue;
                };
                let cell = |tunnel: &&str| {
                    let values: Vec<String> = reports
                        .iter()
                        .map(|report| match report.summary(case, tunnel, name) {
                            Some(found) => format!("{:.*}", metric.decimals, found.median),
                            None => "–".into(),
                        })
                        .collect();
                    in_turn(values.iter().map(String::as_str))
                };
                let mut row = vec![format!("{case}: {}", metric.unit)];
                row.extend(tunnels.iter().map(cell));
                if row.iter().skip(1).any(|cell| cell != "–") {
                    table.push(row);
                }
            }
        }
        Some(table.to_markdown())
    }
}

/// The goals of all runs; a directory of one has its table.
fn goals(results: &Results) -> (Vec<Report>, Option<String>) {
    let is_run = |path: &&PathBuf| path.join("goals.json").is_file();
    let paths = results.0.iter().map(|(_, path)| path).filter(is_run);
    let found: Vec<Found> = paths.map(|it| Found::read(it)).collect();
    let pages: Vec<Page> = found.iter().map(Page::of).collect();
    let reports = found.iter().flat_map(Found::reports).cloned().collect();
    if pages.is_empty() {
        return (reports, None);
    }
    let summaries: Vec<String> = pages.iter().map(Page::summary).collect();
    let summaries = wrapped(&(summaries.join("; ") + "."));
    let table = Page::markdown_of(&pages);
    (reports, Some(format!("{summaries}\n{table}")))
}

/// The stages of one process, as `qmux-bench profile --stages` has written them.
#[derive(Deserialize)]
struct Profile {
    title: String,
    bytes: f64,
    packets: Option<f64>,
    cpu_seconds: f64,
    stages: Vec<(String, f64)>,
}

/// One column for each process.
fn stages(results: &Results, name: &str) -> (Vec<Report>, Option<String>) {
    let files = results.files(name, ".json");
    let texts = files
        .iter()
        .filter_map(|it| std::fs::read_to_string(it).ok());
    let profiles: Vec<Profile> = texts
        .filter_map(|text| serde_json::from_str(&text).ok())
        .collect();
    let titles = profiles.iter().map(|it| it.title.as_str());
    let mut table = Table::new(1, ["stage"].into_iter().chain(titles));
    let mut names: Vec<&str> = Vec::new();
    for (stage, _) in profiles.iter().flat_map(|it| &it.stages) {
        if !names.contains(&stage.as_str()) {
            names.push(stage);
        }
    }
    let mut push = |name: &str, ns: &dyn Fn(&Profile) -> Option<f64>| {
        let cell = |profile: &Profile| {
            let ns = ns(profile)?;
            let per_gb = ns / profile.bytes;
            Some(match profile.packets {
                Some(packets) => format!("{per_gb:.3} ({:.0})", ns / packets),
                None => format!("{per_gb:.3}"),
            })
        };
        let cells = profiles
            .iter()
            .map(|it| cell(it).unwrap_or_else(|| "–".into()));
        table.push([name.to_owned()].into_iter().chain(cells).collect());
    };
    for name in names {
        push(name, &|profile| {
            let mut stages = profile.stages.iter();
            stages.find(|(stage, _)| stage == name).map(|it| it.1)
        });
    }
    let sum = |profile: &Profile| Some(profile.stages.iter().map(|(_, ns)| ns).sum());
    push("sum", &sum);
    push("measured by the system", &|it| Some(it.cpu_seconds * 1e9));
    let table = (!profiles.is_empty()).then(|| table.to_markdown());
    (results.reports(name), table)
}

/// Lines of `THING … N ns`, as a test has printed them.
fn nanoseconds(results: &Results, name: &str) -> (Vec<Report>, Option<String>) {
    let files = results.files(name, ".txt");
    let texts = files
        .iter()
        .filter_map(|it| std::fs::read_to_string(it).ok());
    let mut table = Table::new(1, ["what", "ns"]);
    let mut any = false;
    for text in texts {
        for line in text.lines().filter(|line| line.ends_with(" ns")) {
            // The name of the test stands before what it prints first.
            let line = line.split_once(" ... ").map_or(line, |(_, rest)| rest);
            let line = line.replace(" ns   two", " ns; two");
            let Some((what, ns)) = line.trim_end_matches(" ns").split_once("  ") else {
                continue;
            };
            any = true;
            let ns: Vec<&str> = ns.split_whitespace().filter(|it| *it != "ns").collect();
            table.push(vec![what.to_owned(), ns.join(" ").replace(" ns;", ";")]);
        }
    }
    let reports = results.reports(name);
    (reports, any.then(|| table.to_markdown()))
}

/// When, on what source, and on which machine.
fn origin(reports: &[Report]) -> String {
    let mut dates = BTreeSet::new();
    let mut commits = BTreeSet::new();
    let mut machines: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for report in reports {
        let machine = &report.machine;
        dates.insert(machine.date.split(' ').next().unwrap_or_default());
        commits.insert(machine.commit.as_str());
        if machine.cpus > 0 {
            let prices = machines.entry(machine.kind()).or_default();
            prices.push(machine.system_call_ns);
        }
    }
    let joined = |it: BTreeSet<&str>| it.into_iter().collect::<Vec<_>>().join(", ");
    let mut parts = vec![joined(dates), format!("commit {}", joined(commits))];
    parts.extend(machines.into_iter().map(|(machine, prices)| {
        let least = prices.iter().copied().fold(f64::INFINITY, f64::min);
        let most = prices.iter().copied().fold(0.0, f64::max);
        let range = match (format!("{least:.0}"), format!("{most:.0}")) {
            (least, most) if least == most => least,
            (least, most) => format!("{least} to {most}"),
        };
        format!("{machine}, {range} ns per getppid")
    }));
    parts.join("; ")
}

/// In lines of a document.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |it| it.chars().count());
        if line > 0 && line + 1 + word.chars().count() > COLUMNS_MAX {
            lines.push(String::new());
        }
        if let Some(last) = lines.last_mut() {
            let gap = if last.is_empty() { "" } else { " " };
            last.push_str(&format!("{gap}{word}"));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "prose\n<!-- measured table loop speed: run it -->\nmore\n";

    /// Results of two runs that differ.
    fn two_runs(directory: &Path) -> Results {
        let mut results = Results::default();
        for (run, tunnels) in [
            (
                "a",
                r#"{"tunnel": "ours", "runs": [], "summary": {"speed": {"median": 1.25}}}"#,
            ),
            (
                "b",
                r#"{"tunnel": "ours", "runs": [], "summary": {"speed": {"median": 2}}}"#,
            ),
        ] {
            let below = directory.join(run).join("loop");
            std::fs::create_dir_all(&below).expect("a directory");
            let report = format!(
                r#"{{"machine": {{"date": "2026-01-0{run} 1:00", "commit": "{run}"}},
                    "metrics": [{{"name": "speed", "unit": "Gbit/s", "better": "higher",
                        "decimals": 1}}],
                    "cases": [{{"case": "tcp", "tunnels": [{tunnels}]}}]}}"#
            );
            std::fs::write(below.join("x.json"), report).expect("a file");
            let run = directory.join(run);
            results.add(run.to_str().expect("UTF-8")).expect("results");
        }
        results
    }

    #[test]
    fn what_two_runs_have_measured_stands_under_its_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let page = page(TEMPLATE, &two_runs(directory.path())).expect("a page");
        assert!(page.starts_with("prose\n<!-- measured table loop speed: run it -->\n\n| what |"));
        assert!(page.contains("| tcp: Gbit/s | 1.2; 2.0 |"), "{page}");
        assert!(
            page.contains(
                "By `run it`: 2026-01-0a, 2026-01-0b; commit a, b.\n\n<!-- end -->\nmore"
            )
        );
    }

    #[test]
    fn what_was_not_measured_is_said_with_the_command_that_does_it() {
        let page = page(TEMPLATE, &Results::default()).expect("a page");
        assert!(page.contains("\nNot measured; `run it` does it.\n"));
    }

    #[test]
    fn a_line_that_cannot_be_understood_is_an_error_that_names_it() {
        for wrong in ["table loop: run", "chart loop: run -->", "table -->"] {
            let template = format!("prose\n{DIRECTIVE}{wrong}\n");
            let error = page(&template, &Results::default()).expect_err("no page");
            assert!(error.starts_with("line 2 of the template: "), "{error}");
        }
    }

    #[test]
    fn nanoseconds_are_taken_from_what_a_test_prints() {
        let directory = tempfile::tempdir().expect("a directory");
        let printed = "running 2 tests\n\
            test costs::a ... atomic add   4.9 ns   two threads, each 43.5 ns\n\
            mail   18.0 ns\nok\n";
        std::fs::write(directory.path().join("costs.txt"), printed).expect("a file");
        let mut results = Results::default();
        let from = format!("costs={}", directory.path().display());
        results.add(&from).expect("results");
        let (_, table) = nanoseconds(&results, "costs");
        let table = table.expect("a table");
        assert!(table.contains("| atomic add | 4.9; two threads, each 43.5 |\n| mail | 18.0 |"));
    }
}
