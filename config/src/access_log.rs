//! `[server] access_log`: where to write a line for each flow that has ended.

use std::fmt;
use std::path::PathBuf;

use crate::section::Section;

const KEY: &str = "access_log";
const OFF: &str = "off";
const STDERR: &str = "stderr";
const FORM: &str = "\"off\", \"stderr\" or the path of a file";

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    #[default]
    Off,
    /// To standard error, between the lines of the program's own log.
    Stderr,
    /// To the end of a file.
    File(PathBuf),
}

impl fmt::Display for AccessLog {
    /// Writes it as in dp.toml, with the whole path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str(OFF),
            Self::Stderr => f.write_str(STDERR),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl AccessLog {
    /// Reads the key from the section of a server.
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let Some(text) = section.filled_string(KEY, FORM) else {
            return Self::Off;
        };
        let report = section.report();
        report.place(section.key(KEY), &text.span());
        match *text.get_ref() {
            OFF => Self::Off,
            STDERR => Self::Stderr,
            path => Self::File(report.resolve(path)),
        }
    }
}
