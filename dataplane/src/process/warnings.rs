//! The last warnings and errors of the log, for the status page.
//!
//! Code that logs never waits: if somebody reads the warnings at that moment, a line is left out
//! here. The log itself has the warning nevertheless.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// The most lines that are kept: a page of them.
const LINES_MAX: usize = 20;

/// The most bytes of a line that are kept.
const LINE_BYTES_MAX: usize = 1_024;

/// The lines that are kept.
#[derive(Debug)]
pub(super) struct Warnings(Mutex<VecDeque<String>>);

impl Warnings {
    pub(super) const fn new() -> Warnings {
        Warnings(Mutex::new(VecDeque::new()))
    }

    /// Keeps a line of the log, and drops the oldest one if there are too many.
    pub(super) fn note(&self, line: &[u8]) {
        let Ok(mut lines) = self.0.try_lock() else {
            return;
        };
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        let line = &line[..line.len().min(LINE_BYTES_MAX)];
        lines.push_back(plain(&String::from_utf8_lossy(line)));
    }

    /// The lines, the oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }
}

/// The line without the colours for a terminal, and without the line feed.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut parts = line.trim_end().split('\u{1b}');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let rest = part.split_once('m').map_or("", |(_colour, rest)| rest);
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_stay_without_colours() {
        let warnings = Warnings::new();
        for number in 0..LINES_MAX + 5 {
            warnings.note(format!("\u{1b}[33m WARN\u{1b}[0m line {number}\n").as_bytes());
        }
        let lines = warnings.lines();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!(lines[0], " WARN line 5");
        warnings.note(&[b'x'; 10_000]);
        let last = warnings.lines().pop().expect("one");
        assert_eq!(last.len(), LINE_BYTES_MAX);
    }
}
