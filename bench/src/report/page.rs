//! A report as a page of Markdown, and the files of a report.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::chart;
use super::model::{Report, Settings};
use super::table::Table;
use crate::harness::{make, write};

/// What stands under a table in a terminal: what it was measured on, what failed, what to know.
pub(crate) fn notes(report: &Report) -> String {
    let machine = &report.machine;
    let Settings {
        path,
        cores,
        repeats,
        seconds,
        ..
    } = &report.settings;
    let (summary, date, commit) = (machine.summary(), &machine.date, &machine.commit);
    let (load, versions) = (machine.load_average_before, machine.versions.join("; "));
    let mut text = format!(
        "{summary}; {date}; commit {commit}\n{path}; {cores} core(s) per side, {repeats} × {seconds} s each; load \
         average before: {load}\n{versions}\n"
    );
    for failure in report.failures() {
        text.push_str(&format!("failed: {failure}\n"));
    }
    for remark in report.remarks() {
        text.push_str(&format!("note: {remark}\n"));
    }
    text.push_str(&format!("command: {}\n", report.command));
    text
}

fn markdown(report: &Report, charts: &[PathBuf]) -> String {
    let mut text = format!(
        "# {}\n\n{}\n\
         Medians of {} run(s), each with a fresh tunnel, the tunnels in turn within every round; ± is half the \
         distance between the extremes. Ratios are medians of the ratios within a round. CPU and memory are those of \
         server and client together. Process and kernel counters of every run are in the JSON file beside this one.\n\n",
        report.bench,
        Table::of(report).to_markdown(),
        report.settings.repeats,
    );
    for chart in charts {
        let name = chart.file_name().unwrap_or_default().to_string_lossy();
        text.push_str(&format!("![{name}]({name})\n\n"));
    }
    text.push_str("```text\n");
    text.push_str(&notes(report));
    text.push_str("```\n");
    text
}

/// Writes `NAME.json`, `NAME.md` and a chart for each metric that has one into a directory, which
/// is created. Returns their paths.
pub(crate) fn write_all(report: &Report, directory: &Path) -> Result<Vec<PathBuf>> {
    make(directory)?;
    let mut charts = Vec::new();
    for metric in report.measured().into_iter().filter(|it| it.has_chart) {
        let path = directory.join(format!("{}-{}.svg", report.bench, metric.name));
        write(&path, &chart::bars(report, metric))?;
        charts.push(path);
    }
    let path = |ending| directory.join(format!("{}.{ending}", report.bench));
    let (json, page) = (path("json"), path("md"));
    write(&json, &(serde_json::to_string_pretty(report)? + "\n"))?;
    write(&page, &markdown(report, &charts))?;
    charts.splice(..0, [json, page]);
    Ok(charts)
}

#[cfg(test)]
mod tests {
    use super::super::model::examples::report;
    use super::*;

    #[test]
    fn a_report_is_written_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path().join("new");
        let paths = write_all(&report(), &directory).expect("written");
        let names = [
            "example.json",
            "example.md",
            "example-throughput_gbit_s.svg",
        ];
        assert_eq!(paths, names.map(|name| directory.join(name)));
        let page = std::fs::read_to_string(&paths[1]).expect("a page");
        for words in [
            "![example-throughput_gbit_s.svg]",
            "failed: udp, ours, round 1: it hung",
            "command: qmux-bench example",
        ] {
            assert!(page.contains(words), "{page}");
        }
    }
}
