//! The one table of all goals.

use serde::Serialize;

use super::found::Found;
use super::judge::{Line, Verdict, judge};
use super::probe::{ALLOCATIONS, PROBES, Tunnel};

/// The columns, where any line has a number of them.
const COLUMNS: [(Tunnel, &str); 7] = [
    (Tunnel::Raw, "no tunnel"),
    (Tunnel::Quinn, "quinn-dp"),
    (Tunnel::QuinnTuned, "quinn-dp tuned"),
    (Tunnel::QuinnBbr, "quinn-dp BBR"),
    (Tunnel::Rathole, "rathole"),
    (Tunnel::Before, "qmux-dp before"),
    (Tunnel::Ours, "qmux-dp"),
];

/// Everything that the table shows, also for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// On what was measured.
    machine: Option<serde_json::Value>,
    goals: Vec<Row>,
    /// Each probe and its command.
    commands: Vec<(String, String)>,
    failures: Vec<String>,
    /// What a reader must know before comparing lines with each other.
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    goal: u8,
    what: String,
    limit: String,
    values: std::collections::BTreeMap<&'static str, String>,
    verdict: &'static str,
    found: String,
    command: &'static str,
}

impl Row {
    fn of(line: Line) -> Self {
        let (verdict, found) = match line.verdict {
            Verdict::Reached(found) => ("reached", found),
            Verdict::Missed(found) => ("missed", found),
            Verdict::Unknown => ("not measured", String::new()),
        };
        Self {
            goal: line.goal,
            what: line.what,
            limit: line.limit.trim_end().to_owned(),
            values: line.cells,
            verdict,
            found,
            command: line.probe,
        }
    }

    fn verdict(&self) -> String {
        let verdict = match self.verdict {
            "missed" => "MISSED",
            other => other,
        };
        if self.found.is_empty() {
            verdict.to_owned()
        } else {
            format!("{verdict}: {}", self.found)
        }
    }
}

/// That not everything was measured on one commit.
fn of_several_commits(found: &Found) -> Option<String> {
    let commits = found.commits();
    let parts: Vec<String> = commits
        .iter()
        .map(|(commit, probes)| format!("{} of {commit}", probes.join(", ")))
        .collect();
    (parts.len() > 1).then(|| format!("measured on different commits: {}", parts.join("; ")))
}

impl Page {
    /// What was found, judged.
    pub fn of(found: &Found, allocations_command: &str) -> Self {
        let mut commands: Vec<(String, String)> = PROBES
            .iter()
            .filter_map(|probe| Some((probe.name.to_owned(), found.command(probe.name)?)))
            .collect();
        if found.has(ALLOCATIONS) {
            let origin = found.origin(ALLOCATIONS);
            let command = format!("{allocations_command} ({origin})");
            commands.push((ALLOCATIONS.to_owned(), command));
        }
        Self {
            machine: found.machine().cloned(),
            goals: judge(found).into_iter().map(Row::of).collect(),
            commands,
            failures: PROBES
                .iter()
                .flat_map(|probe| found.failures(probe.name))
                .collect(),
            notes: of_several_commits(found).into_iter().collect(),
        }
    }

    fn table(&self) -> Vec<Vec<String>> {
        let columns: Vec<(&str, &str)> = COLUMNS
            .iter()
            .map(|(tunnel, head)| (tunnel.label(), *head))
            .filter(|(label, _)| self.goals.iter().any(|row| row.values.contains_key(label)))
            .collect();
        let mut head = vec!["goal".to_owned(), "what".to_owned(), "limit".to_owned()];
        head.extend(columns.iter().map(|(_, head)| (*head).to_owned()));
        head.extend(["verdict".to_owned(), "by".to_owned()]);
        let mut rows = vec![head];
        for row in &self.goals {
            let mut cells = vec![row.goal.to_string(), row.what.clone(), row.limit.clone()];
            cells.extend(
                columns
                    .iter()
                    .map(|(label, _)| row.values.get(label).cloned().unwrap_or_else(|| "–".into())),
            );
            cells.extend([row.verdict(), row.command.to_owned()]);
            rows.push(cells);
        }
        rows
    }

    /// How many goals' lines are missed, and how many were not measured.
    pub fn counts(&self) -> (usize, usize) {
        let count = |verdict| self.goals.iter().filter(|it| it.verdict == verdict).count();
        (count("missed"), count("not measured"))
    }

    fn summary(&self) -> String {
        let (missed, unknown) = self.counts();
        let all = self.goals.len();
        let reached = all - missed - unknown;
        format!("{reached} of {all} lines reached, {missed} missed, {unknown} not measured")
    }

    /// For a terminal.
    pub fn to_text(&self) -> String {
        let rows = self.table();
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(&widths);
            let line: Vec<String> = cells
                .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
                .collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
            if index == 0 {
                let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
                text.push_str(&rule.join("  "));
                text.push('\n');
            }
        }
        text.push_str(&format!("\n{}\n", self.notes()));
        text
    }

    /// For readers.
    pub fn to_markdown(&self) -> String {
        let rows = self.table();
        let mut text = String::from("# Goals\n\n");
        for (index, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .map(|cell| cell.replace("MISSED", "**missed**"))
                .collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
            if index == 0 {
                text.push_str(&format!("|{}\n", " --- |".repeat(row.len())));
            }
        }
        text.push_str(&format!("\n```text\n{}```\n", self.notes()));
        text
    }

    fn notes(&self) -> String {
        let mut text = format!("{}\n", self.summary());
        if let Some(machine) = &self.machine {
            let word = |key: &str| match &machine[key] {
                serde_json::Value::String(word) => word.clone(),
                serde_json::Value::Null => String::new(),
                other => other.to_string(),
            };
            text.push_str(&format!(
                "{} × {}, Linux {}\n",
                word("cpus"),
                word("cpu"),
                word("kernel"),
            ));
        }
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        for failure in &self.failures {
            text.push_str(&format!("failed: {failure}\n"));
        }
        for (name, command) in &self.commands {
            text.push_str(&format!("{name}: {command}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_miss_is_written_in_capitals_and_counted() {
        let mut found = Found::default();
        let tunnel = json!({"tunnel": "qmux-dp", "summary": {"p50_us": {"median": 400.0}},
            "runs": [{"values": {"p50_us": 400.0}}, {"error": "it hung"}]});
        found.add(
            "connect",
            json!({"command": "qmux-bench connect",
                "cases": [{"case": "connect, echo ×1", "tunnels": [tunnel]}]}),
        );
        let page = Page::of(&found, "");
        assert_eq!(page.counts().0, 1);
        let text = page.to_text();
        assert!(text.contains("MISSED"), "{text}");
        assert!(
            text.contains("connect: qmux-bench connect (unknown, commit unknown)"),
            "{text}"
        );
        assert!(text.contains("failed: connect, connect, echo ×1, qmux-dp: it hung"));
        assert!(
            page.to_markdown()
                .contains("| **missed**: 1 of 2 runs failed | connect |")
        );
        assert!(!text.contains("different commits"), "{text}");
        // A column without numbers is not there.
        assert!(!text.contains("quinn-dp tuned"), "{text}");
    }

    #[test]
    fn what_is_of_another_commit_is_named() {
        let mut found = Found::default();
        for (probe, commit) in [("tcp", "aaa"), ("udp", "bbb"), ("link", "aaa")] {
            let machine = json!({"date": "today", "commit": commit});
            found.add(probe, json!({"command": "x", "machine": machine}));
        }
        found.set_allocations(&(Found::allocations_head("yesterday", "ccc") + "UDP, 64 bytes\n"));
        let text = Page::of(&found, "count").to_text();
        let wanted =
            "note: measured on different commits: tcp, link of aaa; udp of bbb; allocations of ccc";
        assert!(text.contains(wanted), "{text}");
        assert!(
            text.contains("allocations: count (yesterday, commit ccc)"),
            "{text}"
        );
    }
}
