//! `qmux-bench performance`: docs/performance.md, the prose of a template, with what was measured
//! woven in.
//!
//! A line `<!-- measured KIND NAME [METRICS]: COMMAND -->` of the template says what stands under
//! it: a table of what the command has written into a directory of that name. The number itself
//! stands in no source, so that none outlives the run that it is of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::commands::options::Mistake;
use crate::goals::{Found, Page, in_turn};
use crate::harness::cleanup::say;
use crate::harness::machine::Machine;
use crate::harness::read;
use crate::report::stages::{CHARGED, ON_CPU, Profile};
use crate::report::{Metric, Report, Table};

/// What begins and ends such a line, and what ends what stands under it.
const DIRECTIVE: &str = "<!-- measured ";
const DIRECTIVE_END: &str = " -->";
const BLOCK_END: &str = "<!-- end -->";

/// Columns of a document.
const COLUMNS_MAX: usize = 100;

/// How far below a directory results are looked for: runs of the goals, and a probe's within.
const DEPTH_MAX: usize = 3;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The prose, with lines that say what was measured stands under them
    #[arg(long, value_name = "FILE")]
    template: PathBuf,
    /// A directory of results; NAME=DIR is taken as if it were called NAME
    #[arg(long = "from", value_name = "DIR")]
    from: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let template = read(&args.template)?;
    let mut results = Results::default();
    args.from.iter().try_for_each(|from| results.add(from))?;
    let path = args.template.display();
    let page = page(&template, &results).map_err(|wrong| anyhow!("{path}, {wrong:#}"))?;
    say!("{}", page.strip_suffix('\n').unwrap_or(&page));
    Ok(true)
}

/// Directories of results, each under the name that it is looked for by.
#[derive(Clone, Debug, Default)]
struct Results(Vec<(String, PathBuf)>);

impl Results {
    /// Of `DIR` with what is below it, or of `NAME=DIR`, which is taken as if it had that name.
    fn add(&mut self, from: &str) -> Result<()> {
        let named = from.split_once('=');
        let (name, path) = named.map_or((None, from), |(name, path)| (Some(name), path));
        let is_there = Path::new(path).is_dir();
        ensure!(
            is_there,
            Mistake(format!("--from: there is no directory {path}"))
        );
        self.add_below(name, Path::new(path), DEPTH_MAX);
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

    fn texts(&self, name: &str, ending: &str) -> impl Iterator<Item = String> {
        let files = self.files(name, ending).into_iter();
        files.filter_map(|it| std::fs::read_to_string(it).ok())
    }

    fn reports(&self, name: &str) -> Vec<Report> {
        let files = self.files(name, ".json");
        files.iter().filter_map(|it| Report::read(it)).collect()
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn page(template: &str, results: &Results) -> Result<String> {
    let mut page = String::new();
    for (number, line) in template.lines().enumerate() {
        page += &format!("{line}\n");
        if let Some(rest) = line.strip_prefix(DIRECTIVE) {
            let block = Directive::of(rest).and_then(|it| it.block(results));
            let block = block.with_context(|| format!("line {} of the template", number + 1))?;
            page += &format!("\n{block}\n{BLOCK_END}\n");
        }
    }
    Ok(page)
}

#[derive(Debug, PartialEq, Eq)]
struct Directive<'a> {
    kind: &'a str,
    name: &'a str,
    /// The metrics of a report, in this order; only a table has them.
    metrics: Vec<&'a str>,
    command: &'a str,
}

impl<'a> Directive<'a> {
    fn of(rest: &'a str) -> Result<Self> {
        let parse = || {
            let (words, command) = rest.strip_suffix(DIRECTIVE_END)?.split_once(": ")?;
            let mut words = words.split(' ');
            let (kind, name) = (words.next()?, words.next()?);
            let metrics = words.next().unwrap_or_default().split(',');
            Some(Self {
                kind,
                name,
                metrics: metrics.filter(|it| !it.is_empty()).collect(),
                command,
            })
        };
        let wanted = "KIND NAME [METRICS]: COMMAND";
        parse().with_context(|| format!("{DIRECTIVE}{wanted}{DIRECTIVE_END} is expected"))
    }

    /// What stands under it: that it was not measured, if so.
    fn block(&self, results: &Results) -> Result<String> {
        let (runs, table) = match self.kind {
            "goals" => goals(results),
            "table" => (results.reports(self.name), self.table(results)),
            "stages" => stages(results, self.name),
            "nanoseconds" => nanoseconds(results, self.name),
            kind => bail!("there is no kind {kind:?}"),
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
        let tunnels = first.cases.iter().flat_map(|case| &case.tunnels);
        let tunnels = distinct(tunnels.map(|it| it.tunnel.as_str()));
        let metric = |name: &&str| first.metrics.iter().find(|it| it.name == **name);
        let metrics: Vec<&Metric> = self.metrics.iter().filter_map(metric).collect();
        let mut table = Table::new(1, ["what"].iter().chain(&tunnels).copied());
        for case in first.cases.iter().map(|it| &it.case) {
            for metric in &metrics {
                let cell = |tunnel: &&str| {
                    let values = reports.iter().map(|report| {
                        let found = report.summary(case, tunnel, &metric.name);
                        found.map_or("–".into(), |it| {
                            format!("{:.*}", metric.decimals, it.median)
                        })
                    });
                    in_turn(values)
                };
                let cells: Vec<String> = tunnels.iter().map(cell).collect();
                if cells.iter().any(|cell| cell != "–") {
                    let what = format!("{case}: {}", metric.unit);
                    table.push([vec![what], cells].concat());
                }
            }
        }
        Some(table.to_markdown())
    }
}

fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    all.filter(|it| seen.insert(*it)).collect()
}

/// The goals of all runs; a directory of one has its table.
fn goals(results: &Results) -> (Vec<Report>, Option<String>) {
    let is_run = |path: &&PathBuf| path.join("goals.json").is_file();
    let paths = results.0.iter().map(|(_, path)| path).filter(is_run);
    let found: Vec<Found> = paths.map(|it| Found::read(it)).collect();
    let pages: Vec<Page> = found.iter().map(Page::of).collect();
    let reports = found.iter().flat_map(Found::reports).cloned().collect();
    let summaries: Vec<String> = pages.iter().map(Page::summary).collect();
    let summaries = wrapped(&(summaries.join("; ") + "."));
    let page = || format!("{summaries}\n{}", Page::markdown_of(&pages));
    (reports, (!pages.is_empty()).then(page))
}

/// What `qmux-bench profile --stages` has written, one column for each process.
fn stages(results: &Results, name: &str) -> (Vec<Report>, Option<String>) {
    let texts = results.texts(name, ".json");
    let profiles = texts.filter_map(|text| serde_json::from_str(&text).ok());
    let profiles: Vec<Profile> = profiles.collect();
    let titles = profiles.iter().map(|it| it.title.as_str());
    let mut table = Table::new(1, ["stage"].into_iter().chain(titles));
    let mut push = |name: &str, ns: &dyn Fn(&Profile) -> Option<f64>| {
        let cell = |profile: &Profile| {
            let ns = ns(profile)?;
            let per_gb = ns / profile.traffic.bytes;
            Some(match profile.traffic.packets {
                Some(packets) => format!("{per_gb:.3} ({:.0})", ns / packets),
                None => format!("{per_gb:.3}"),
            })
        };
        let cells = profiles.iter().map(|it| cell(it).unwrap_or("–".into()));
        table.push([name.to_owned()].into_iter().chain(cells).collect());
    };
    let names = profiles.iter().flat_map(|it| &it.stages);
    for name in distinct(names.map(|(stage, _)| stage.as_ref())) {
        push(name, &|profile| {
            let mut stages = profile.stages.iter();
            let (_, ns) = stages.find(|(stage, _)| stage == name)?;
            Some(*ns as f64)
        });
    }
    let sum = |profile: &Profile| Some(profile.stages.iter().map(|it| it.1 as f64).sum());
    push("sum", &sum);
    push(ON_CPU, &|it| Some(it.traffic.on_cpu_seconds * 1e9));
    push(CHARGED, &|it| Some(it.traffic.charged_seconds * 1e9));
    let table = (!profiles.is_empty()).then(|| table.to_markdown());
    (results.reports(name), table)
}

/// Lines of `THING … N ns`, as a test has printed them.
fn nanoseconds(results: &Results, name: &str) -> (Vec<Report>, Option<String>) {
    let mut table = Table::new(1, ["what", "ns"]);
    let mut any = false;
    for text in results.texts(name, ".txt") {
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
    (results.reports(name), any.then(|| table.to_markdown()))
}

/// When, on what source, and on which machine.
fn origin(reports: &[Report]) -> String {
    let mut machines: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for machine in reports
        .iter()
        .map(|it| &it.machine)
        .filter(|it| it.cpus > 0)
    {
        let prices = machines.entry(machine.kind()).or_default();
        prices.push(machine.system_call_ns);
    }
    let joined = |of: fn(&Machine) -> &str| {
        let all: BTreeSet<&str> = reports.iter().map(|it| of(&it.machine)).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let dates = joined(|it| it.date.split(' ').next().unwrap_or_default());
    let mut parts = vec![dates, format!("commit {}", joined(|it| &it.commit))];
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
    let (mut wrapped, mut columns) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        let gap = match columns {
            0 => "",
            _ if columns + 1 + length > COLUMNS_MAX => "\n",
            _ => " ",
        };
        columns = if gap == " " {
            columns + 1 + length
        } else {
            length
        };
        wrapped += &format!("{gap}{word}");
    }
    wrapped + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEMPLATE: &str = "prose\n<!-- measured table loop speed: run it -->\nmore\n";

    fn two_runs(directory: &Path) -> Results {
        let mut results = Results::default();
        for (run, speed) in [("a", 1.25), ("b", 2.0)] {
            let below = directory.join(run).join("loop");
            std::fs::create_dir_all(&below).expect("a directory");
            let tunnel =
                json!({"tunnel": "ours", "runs": [], "summary": {"speed": {"median": speed}}});
            let report = json!({
                "machine": {"date": format!("2026-01-0{run} 1:00"), "commit": run},
                "metrics": [{"name": "speed", "unit": "Gbit/s", "better": "higher", "decimals": 1}],
                "cases": [{"case": "tcp", "tunnels": [tunnel]}],
            });
            std::fs::write(below.join("x.json"), report.to_string()).expect("a file");
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
        let by = "By `run it`: 2026-01-0a, 2026-01-0b; commit a, b.\n\n<!-- end -->\nmore";
        assert!(page.contains(by), "{page}");
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
            assert_eq!(error.to_string(), "line 2 of the template");
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
