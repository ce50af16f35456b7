//! Every problem of a config file, in the order of its lines.

use std::fmt;
use std::path::PathBuf;

/// One problem of a config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The config file.
    pub path: PathBuf,
    /// Line and column, both from 1; absent when the file as a whole is the problem.
    pub position: Option<(usize, usize)>,
    /// The full name of the key, as in `server.listeners[0].quic_addr`; empty when the problem is
    /// not about a key.
    pub key: String,
    /// What is wrong and what would be right, on one line.
    pub message: String,
    /// The line of the file with a caret under the place, on two lines; absent where it could show
    /// a secret.
    pub excerpt: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.path.display())?;
        if let Some((line, column)) = self.position {
            write!(formatter, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(formatter, " {}:", self.key)?;
        }
        write!(formatter, " {}", self.message)
    }
}

/// All the problems of one config file; at least one.
///
/// Displays each problem on a line that starts `path:line:column: key: `, followed by the line that
/// it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    problems: Vec<Problem>,
}

impl Errors {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "errors without a problem");
        problems.sort_by_key(|problem| problem.position);
        Self { problems }
    }

    /// The problems, in the order of the lines that they are about.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{problem}")?;
            for line in problem.excerpt.iter().flat_map(|excerpt| excerpt.lines()) {
                write!(formatter, "\n    | {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
