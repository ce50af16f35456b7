//! Tables, for terminals and for Markdown.

use super::model::{MetricSummary, Report, TunnelReport};

/// A spread below this is not worth a reader's attention, in percent.
const SPREAD_SHOWN_PERCENT: f64 = 0.5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    /// The number of columns that are names; the others are numbers.
    names: usize,
}

/// The first columns of a report are names: the case and the tunnel.
const NAME_COLUMNS: usize = 2;

impl Table {
    /// Without rows. The first `names` columns are names, aligned on the left.
    pub(crate) fn new(names: usize, head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
            names,
        }
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// A report's numbers: a row for each case and tunnel.
    pub(crate) fn of(report: &Report) -> Self {
        let metrics = report.measured();
        let mut table = Self::new(NAME_COLUMNS, ["case", "tunnel"]);
        for metric in &metrics {
            table.head.push(metric.unit.to_string());
            if metric.has_ratio {
                let baselines = report.baselines.iter();
                table.head.extend(baselines.map(|it| format!("× {it}")));
            }
        }
        for case in &report.cases {
            for tunnel in &case.tunnels {
                let mut row = vec![case.case.clone(), tunnel.tunnel.clone()];
                for metric in &metrics {
                    row.push(cell(tunnel, &metric.name, metric.decimals));
                    if metric.has_ratio {
                        let ratios = report.baselines.iter();
                        row.extend(ratios.map(|baseline| ratio(tunnel, &metric.name, baseline)));
                    }
                }
                if tunnel.summary.is_empty()
                    && let Some(first) = row.get_mut(NAME_COLUMNS)
                {
                    *first = "failed".into();
                }
                table.rows.push(row);
            }
        }
        table
    }

    pub(crate) fn to_text(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        self.push_line(&mut text, &self.head, &widths);
        self.push_line(&mut text, &rule, &widths);
        let mut case = self.rows.first().and_then(|row| row.first());
        for row in &self.rows {
            if row.first() != case {
                case = row.first();
                text.push('\n');
            }
            self.push_line(&mut text, row, &widths);
        }
        text
    }

    pub(crate) fn to_markdown(&self) -> String {
        let marks = (0..self.head.len()).map(|column| match column {
            column if column < self.names => "---".to_owned(),
            _ => "---:".to_owned(),
        });
        let marks: Vec<String> = marks.collect();
        let lines = [&self.head, &marks].into_iter().chain(&self.rows);
        lines
            .map(|it| format!("| {} |\n", it.join(" | ")))
            .collect()
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![0; self.head.len()];
        for row in [&self.head].into_iter().chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    fn push_line(&self, text: &mut String, cells: &[String], widths: &[usize]) {
        let cells = cells.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            column if column < self.names => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// The median, with its spread if there is one.
fn cell(tunnel: &TunnelReport, metric: &str, decimals: usize) -> String {
    let Some(MetricSummary { summary, .. }) = tunnel.summary.get(metric) else {
        return "–".into();
    };
    let (median, spread) = (summary.median, summary.spread_percent());
    if summary.samples > 1 && spread >= SPREAD_SHOWN_PERCENT {
        return format!("{median:.decimals$} ±{spread:.0}%");
    }
    format!("{median:.decimals$}")
}

fn ratio(tunnel: &TunnelReport, metric: &str, baseline: &str) -> String {
    let ratio = tunnel.summary.get(metric);
    let ratio = ratio.and_then(|found| found.ratios.get(baseline));
    ratio.map_or("–".into(), |ratio| format!("{ratio:.2}"))
}

#[cfg(test)]
mod tests {
    use super::super::model::examples::report;
    use super::*;

    #[test]
    fn a_row_has_median_spread_and_ratio_aligned_in_text_and_marked_in_markdown() {
        let table = Table::of(&report());
        let text = "case  tunnel      Gbit/s  × raw\n────  ──────  ──────────  ─────\n\
                    tcp   raw     15.00 ±33%   1.00\ntcp   ours     7.50 ±33%   0.50\n\n\
                    udp   raw           1.00   1.00\nudp   ours        failed      –\n";
        assert_eq!(table.to_text(), text);
        let markdown = "| case | tunnel | Gbit/s | × raw |\n| --- | --- | ---: | ---: |\n\
                        | tcp | raw | 15.00 ±33% | 1.00 |\n| tcp | ours | 7.50 ±33% | 0.50 |\n\
                        | udp | raw | 1.00 | 1.00 |\n| udp | ours | failed | – |\n";
        assert_eq!(table.to_markdown(), markdown);
    }
}
