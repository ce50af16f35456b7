//! The one table of all goals.

use std::collections::BTreeMap;

use serde::Serialize;

use super::found::Found;
use super::judge::Judge;
use super::probe::{BEFORE, OURS, QUINN, QUINN_BBR, QUINN_TUNED, RATHOLE, RAW};
use super::table::{ROWS, Row};
use crate::harness::machine::Machine;
use crate::report::Table;

/// The columns, where any line has a number of them.
const COLUMNS: [(&str, &str); 7] = [
    (RAW, "no tunnel"),
    (QUINN, "quinn-dp"),
    (QUINN_TUNED, "quinn-dp tuned"),
    (QUINN_BBR, "quinn-dp BBR"),
    (RATHOLE, "rathole"),
    (BEFORE, "qmux-dp before"),
    (OURS, "qmux-dp"),
];

/// Everything that the table shows, also for programs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Page {
    machine: Option<Machine>,
    goals: Vec<Line>,
    commands: Vec<(&'static str, String)>,
    failures: Vec<String>,
    /// What a reader must know before comparing lines with each other.
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    goal: u8,
    pub(super) what: &'static str,
    pub(super) limit: String,
    pub(super) values: BTreeMap<&'static str, String>,
    verdict: &'static str,
    found: String,
    command: &'static str,
}

impl Line {
    fn of(row: &Row, found: &Found) -> Self {
        let judge = Judge { found, row };
        let (verdict, found) = match judge.verdict() {
            Some((true, found)) => ("reached", found),
            Some((false, found)) => ("missed", found),
            None => ("not measured", String::new()),
        };
        let cell = |(tunnel, _)| Some((tunnel, judge.cell(tunnel)?));
        Self {
            goal: row.goal,
            what: row.what,
            limit: row.rule.limit(),
            values: COLUMNS.into_iter().filter_map(cell).collect(),
            verdict,
            found,
            command: row.probe,
        }
    }

    pub(super) fn verdict(&self) -> String {
        let verdict = self.verdict.replace("missed", "MISSED");
        let found = self.found.as_str();
        [
            verdict.as_str(),
            if found.is_empty() { "" } else { ": " },
            found,
        ]
        .concat()
    }
}

/// What each run has, once if all have the same.
pub(crate) fn in_turn(values: impl Iterator<Item = String>) -> String {
    let mut values: Vec<String> = values.collect();
    if values.windows(2).all(|pair| pair[0] == pair[1]) {
        values.truncate(1);
    }
    values.join("; ")
}

pub(super) fn lines(found: &Found) -> Vec<Line> {
    ROWS.iter().map(|row| Line::of(row, found)).collect()
}

/// That not everything was measured on one commit.
fn of_several_commits(found: &Found) -> Option<String> {
    let commits = found.commits().into_iter();
    let parts = commits.map(|(commit, probes)| format!("{} of {commit}", probes.join(", ")));
    let parts: Vec<String> = parts.collect();
    (parts.len() > 1).then(|| format!("measured on different commits: {}", parts.join("; ")))
}

impl Page {
    pub(crate) fn of(found: &Found) -> Self {
        let commands = found.probes();
        let commands = commands.filter_map(|probe| Some((probe, found.command(probe)?)));
        let failures = found.probes().flat_map(|probe| found.failures(probe));
        Self {
            machine: found.machine().cloned(),
            goals: lines(found),
            commands: commands.collect(),
            failures: failures.collect(),
            notes: of_several_commits(found).into_iter().collect(),
        }
    }

    /// The table of one run, or of several of which each cell has all values, in their order.
    fn table(runs: &[Self]) -> Table {
        let goals = || runs.iter().flat_map(|run| &run.goals);
        let has = |label: &str| goals().any(|row| row.values.contains_key(label));
        let columns: Vec<_> = COLUMNS.iter().filter(|(label, _)| has(label)).collect();
        let mut head = vec!["goal", "what", "limit"];
        head.extend(columns.iter().map(|(_, head)| head));
        head.extend(["verdict", "by"]);
        let mut table = Table::new(head.len(), head);
        for at in 0..ROWS.len() {
            let rows: Vec<&Line> = runs.iter().filter_map(|run| run.goals.get(at)).collect();
            let Some(row) = rows.first() else { break };
            let mut cells = vec![row.goal.to_string(), row.what.into(), row.limit.clone()];
            cells.extend(columns.iter().map(|(label, _)| {
                let values = rows.iter().map(|row| row.values.get(label).cloned());
                in_turn(values.map(|value| value.unwrap_or("–".into())))
            }));
            let verdict = in_turn(rows.iter().map(|row| row.verdict()));
            cells.extend([verdict, row.command.into()]);
            table.push(cells);
        }
        table
    }

    pub(crate) fn summary(&self) -> String {
        let count = |verdict| self.goals.iter().filter(|it| it.verdict == verdict).count();
        let (missed, unknown) = (count("missed"), count("not measured"));
        let all = self.goals.len();
        let reached = all - missed - unknown;
        format!("{reached} of {all} lines reached, {missed} missed, {unknown} not measured")
    }

    pub(crate) fn to_text(&self) -> String {
        let table = Self::table(std::slice::from_ref(self)).to_text();
        format!("{table}\n{}\n", self.notes())
    }

    pub(crate) fn to_markdown(&self) -> String {
        let table = Self::markdown_of(std::slice::from_ref(self));
        format!("# Goals\n\n{table}\n```text\n{}```\n", self.notes())
    }

    pub(crate) fn markdown_of(runs: &[Self]) -> String {
        let table = Self::table(runs).to_markdown();
        table.replace("MISSED", "**missed**")
    }

    fn notes(&self) -> String {
        let machine = self.machine.iter().map(Machine::kind);
        let notes = self.notes.iter().map(|note| format!("note: {note}"));
        let failures = self.failures.iter().map(|it| format!("failed: {it}"));
        let commands = self.commands.iter();
        let commands = commands.map(|(name, command)| format!("{name}: {command}"));
        let lines = [self.summary()].into_iter().chain(machine).chain(notes);
        let lines = lines.chain(failures).chain(commands);
        lines.map(|line| line + "\n").collect()
    }
}
