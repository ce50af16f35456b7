//! From QMux's YAML to `dp.toml`.
//!
//! Knows the layouts of QMux's `server.yaml` and `client.yaml`. Everything in the YAML either
//! arrives in the TOML or gets a [`Note`]; nothing is lost silently. The result is checked with
//! [`Config::parse`], and what that would refuse becomes a note as well: except for certificates
//! that are not in place yet, a file without such notes loads.

mod carry;
mod client;
mod draft;
mod go;
mod quic;
mod server;
mod yaml;

use std::fmt;
use std::path::Path;

use crate::config::Config;
use draft::Draft;
use yaml::Mapping;

/// The result of importing a YAML file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The text of a `dp.toml`.
    pub toml: String,
    /// The settings that could not be carried over unchanged, in the order of the YAML's lines.
    pub notes: Vec<Note>,
}

/// Something that was not carried over unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line of the YAML, from 1; absent where the note is about the result.
    pub line: Option<usize>,
    /// The key in the YAML, as in `listeners[0].capacity`; for notes about the result, its key.
    pub key: String,
    /// What happened to the setting.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(formatter, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)
    }
}

/// Why nothing could be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The text is not YAML.
    #[error("{line}:{column}: is not valid YAML: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What the YAML reader says.
        message: String,
    },
    /// The text is YAML, but not a config file of QMux.
    #[error(
        "holds neither a QMux server (with listeners) nor a QMux client (with server.servers and \
         local)"
    )]
    NoRole,
    /// The text is a config file of QMux's mesh mode.
    #[error(
        "is a config file of QMux's mesh mode, which has no counterpart; server.yaml and \
         client.yaml can be imported"
    )]
    Mesh,
}

/// Translates a `server.yaml` or `client.yaml` into a `dp.toml`, which is to stand at `target`.
///
/// # Errors
/// The text is not YAML, or not a config file of QMux.
pub fn import(yaml: &str, target: &Path) -> Result<Imported, ImportError> {
    let document = yaml::parse(yaml)?;
    let root = Mapping::root(&document).ok_or(ImportError::NoRole)?;
    if root.has("tunnel") {
        return Err(ImportError::Mesh);
    }
    let mut draft = Draft::new();
    if root.has("listeners") {
        server::carry(root, &mut draft);
    } else if root.has("local") || root.has("server") {
        client::carry(root, &mut draft);
    } else {
        return Err(ImportError::NoRole);
    }
    let (toml, mut notes) = draft.finish();
    notes.sort_by_key(|note| note.line.unwrap_or(usize::MAX));
    notes.extend(remaining_problems(&toml, target));
    Ok(Imported { toml, notes })
}

/// The problems that the check of the result still finds, apart from the certificates.
fn remaining_problems(toml: &str, target: &Path) -> Vec<Note> {
    let Err(errors) = Config::parse(toml, target) else {
        return Vec::new();
    };
    errors
        .problems()
        .iter()
        .filter(|problem| {
            !problem.key.ends_with("_file") || problem.message.starts_with("is missing")
        })
        .map(|problem| Note {
            line: None,
            key: problem.key.clone(),
            message: format!(
                "must be put right before the file loads: {}",
                problem.message
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests;
