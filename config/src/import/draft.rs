//! The `dp.toml` that is being written.

use std::fmt::Write as _;
use std::time::Duration;

use super::Note;
use crate::units;

const HEAD: &str = "# Imported from a QMux config. Keys that are not here have their defaults; \
    `qmux-ctl config server`\n# and `qmux-ctl config client` show all of them.\n";

/// The text so far, and the notes so far.
pub(super) struct Draft {
    text: String,
    /// The header of a section that has no key yet; it is written with its first one.
    pending: Option<String>,
    pub(super) notes: Vec<Note>,
}

impl Draft {
    pub(super) fn new() -> Self {
        Self {
            text: HEAD.to_owned(),
            pending: None,
            notes: Vec::new(),
        }
    }

    /// Starts a section, which appears only if it gets a key.
    pub(super) fn section(&mut self, header: &str) {
        self.pending = Some(header.to_owned());
    }

    /// Starts a section that appears even if it stays empty.
    pub(super) fn needed_section(&mut self, header: &str) {
        self.section(header);
        self.flush();
    }

    pub(super) fn string(&mut self, key: &str, value: &str) {
        self.raw(key, &toml::Value::String(value.to_owned()).to_string());
    }

    pub(super) fn duration(&mut self, key: &str, value: Duration) {
        self.raw(key, &format!("\"{}\"", units::format_duration(value)));
    }

    pub(super) fn size(&mut self, key: &str, bytes: u64) {
        self.raw(key, &format!("\"{}\"", units::format_size(bytes)));
    }

    /// Writes a number or a boolean.
    pub(super) fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        self.raw(key, &value.to_string());
    }

    fn raw(&mut self, key: &str, value: &str) {
        self.flush();
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{key} = {value}");
    }

    fn flush(&mut self) {
        if let Some(header) = self.pending.take() {
            let _ = writeln!(self.text, "\n{header}");
        }
    }

    pub(super) fn finish(self) -> (String, Vec<Note>) {
        (self.text, self.notes)
    }
}
