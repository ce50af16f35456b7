//! Tables, for terminals and for Markdown.

use super::model::{Report, TunnelReport};

/// A spread below this is not worth a reader's attention, in percent.
const SPREAD_SHOWN_PERCENT: f64 = 0.5;

/// Rows of text under a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    /// So many columns are names, the others numbers.
    names: usize,
}

/// The first columns of a report are names: the case and the tunnel.
const NAME_COLUMNS: usize = 2;

impl Table {
    /// Without rows. The first `names` columns are names, aligned on the left.
    pub fn new(names: usize, head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
            names,
        }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// A report's numbers: a row for each case and tunnel.
    pub fn of(report: &Report) -> Self {
        let metrics = report.measured();
        let mut table = Self::new(NAME_COLUMNS, ["case", "tunnel"]);
        for metric in &metrics {
            table.head.push(metric.unit.to_string());
            if metric.has_ratio {
                let ratios = report
                    .baselines
                    .iter()
                    .map(|baseline| format!("× {baseline}"));
                table.head.extend(ratios);
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

    /// For a terminal.
    pub fn to_text(&self) -> String {
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

    /// For Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = line(&self.head);
        let marks: Vec<String> = (0..self.head.len())
            .map(|column| if column < self.names { "---" } else { "---:" }.to_owned())
            .collect();
        text.push_str(&line(&marks));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text
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
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            let (before, after) = if column < self.names {
                ("", gap.as_str())
            } else {
                (gap.as_str(), "")
            };
            let separator = if column == 0 { "" } else { "  " };
            line.push_str(&format!("{separator}{before}{cell}{after}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// The median, with its spread if there is one.
fn cell(tunnel: &TunnelReport, metric: &str, decimals: usize) -> String {
    let Some(found) = tunnel.summary.get(metric) else {
        return "–".into();
    };
    let (median, spread) = (found.summary.median, found.summary.spread_percent());
    if found.summary.samples > 1 && spread >= SPREAD_SHOWN_PERCENT {
        format!("{median:.decimals$} ±{spread:.0}%")
    } else {
        format!("{median:.decimals$}")
    }
}

fn ratio(tunnel: &TunnelReport, metric: &str, baseline: &str) -> String {
    let found = tunnel.summary.get(metric);
    match found.and_then(|found| found.ratios.get(baseline)) {
        Some(ratio) => format!("{ratio:.2}"),
        None => "–".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::examples::report;
    use super::*;

    #[test]
    fn a_row_has_median_spread_and_ratio() {
        let table = Table::of(&report());
        assert_eq!(table.head, ["case", "tunnel", "Gbit/s", "× raw"]);
        assert_eq!(table.rows[1], ["tcp", "ours", "7.50 ±33%", "0.50"]);
        assert_eq!(table.rows[3], ["udp", "ours", "failed", "–"]);
    }

    #[test]
    fn columns_are_aligned_in_text() {
        let text = Table::of(&report()).to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "case  tunnel      Gbit/s  × raw");
        assert_eq!(lines[2], "tcp   raw     15.00 ±33%   1.00");
        assert_eq!(lines[3], "tcp   ours     7.50 ±33%   0.50");
        // An empty line between the cases.
        assert_eq!(lines[4], "");
    }

    #[test]
    fn markdown_has_a_head_and_marks() {
        let text = Table::of(&report()).to_markdown();
        assert!(
            text.starts_with("| case | tunnel | Gbit/s | × raw |\n| --- | --- | ---: | ---: |\n")
        );
        assert_eq!(text.lines().count(), 6);
    }
}
