//! A report as a page of Markdown, and the files of a report.

use std::path::{Path, PathBuf};

use super::chart;
use super::model::Report;
use super::table::Table;
use crate::harness::BenchError;

/// What stands under a table in a terminal: what it was measured on, what failed, what to know.
pub fn notes(report: &Report) -> String {
    let machine = &report.machine;
    let settings = &report.settings;
    let mut text = format!(
        "{}; {}; commit {}\n{}; {} core(s) per side, {} × {} s each; load average before: {}\n{}\n",
        machine.summary(),
        machine.date,
        machine.commit,
        settings.path,
        settings.cores,
        settings.repeats,
        settings.seconds,
        machine.load_average_before,
        machine.versions.join("; "),
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

/// The page.
pub fn markdown(report: &Report, charts: &[PathBuf]) -> String {
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
pub fn write_all(report: &Report, directory: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let failed = |path: &Path| format!("writing {}", path.display());
    std::fs::create_dir_all(directory).map_err(BenchError::io(failed(directory)))?;
    let mut charts = Vec::new();
    for metric in report.measured().into_iter().filter(|it| it.has_chart) {
        let path = directory.join(format!("{}-{}.svg", report.bench, metric.name));
        std::fs::write(&path, chart::bars(report, metric))
            .map_err(BenchError::io(failed(&path)))?;
        charts.push(path);
    }
    let json = directory.join(format!("{}.json", report.bench));
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| BenchError::Failed(format!("the report as JSON: {error}")))?;
    std::fs::write(&json, text + "\n").map_err(BenchError::io(failed(&json)))?;
    let page = directory.join(format!("{}.md", report.bench));
    std::fs::write(&page, markdown(report, &charts)).map_err(BenchError::io(failed(&page)))?;
    let mut paths = vec![json, page];
    paths.extend(charts);
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::super::model::examples::report;
    use super::*;

    #[test]
    fn a_report_is_written_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = write_all(&report(), &directory.path().join("new")).expect("written");
        let names: Vec<String> = paths
            .iter()
            .map(|path| {
                path.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        assert_eq!(
            names,
            [
                "example.json",
                "example.md",
                "example-throughput_gbit_s.svg"
            ]
        );
        let page = std::fs::read_to_string(&paths[1]).expect("a page");
        assert!(page.contains("![example-throughput_gbit_s.svg]"), "{page}");
        assert!(
            page.contains("failed: udp, ours, round 1: it hung"),
            "{page}"
        );
        assert!(page.contains("command: qmux-bench example"), "{page}");
    }
}
