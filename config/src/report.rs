//! Collects all problems while a file is being read, so that one run reports everything.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::conflicts::Claims;
use crate::errors::{Errors, Problem};
use crate::places::Places;
use crate::source::{Position, Source};

/// The problems and warnings of one file. Every section of it shares this, hence the cells; one
/// thread only.
pub(crate) struct Report<'a> {
    source: Source<'a>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
    files: RefCell<BTreeSet<PathBuf>>,
    /// Keys that a message may have to name later, with the bytes where their values begin.
    keys: RefCell<Vec<(String, usize)>>,
    times_matter: bool,
}

/// What was found in a file besides the values of its keys.
pub(crate) struct Findings {
    pub(crate) warnings: Vec<String>,
    /// The files that were read.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) places: Places,
}

impl<'a> Report<'a> {
    pub(crate) fn new(source: Source<'a>) -> Self {
        Self {
            source,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            files: RefCell::default(),
            keys: RefCell::default(),
            times_matter: true,
        }
    }

    /// Turns the errors for certificates that have expired, or are not valid yet, into warnings.
    pub(crate) fn whatever_the_time(self) -> Self {
        Self {
            times_matter: false,
            ..self
        }
    }

    /// Whether certificates must be valid now.
    pub(crate) fn times_matter(&self) -> bool {
        self.times_matter
    }

    /// Notes that `key`, which stands at `span`, is wrong.
    pub(crate) fn problem(
        &self,
        key: impl Into<String>,
        span: &Range<usize>,
        message: impl Into<String>,
    ) {
        let problem = self.unquoted(key.into(), span, message.into());
        self.problems.borrow_mut().push(Problem {
            excerpt: self.source.excerpt(span),
            ..problem
        });
    }

    /// Notes that `key` is wrong, and does not quote its line, because a secret may be there.
    pub(crate) fn unquoted_problem(
        &self,
        key: impl Into<String>,
        span: &Range<usize>,
        message: impl Into<String>,
    ) {
        let problem = self.unquoted(key.into(), span, message.into());
        self.problems.borrow_mut().push(problem);
    }

    fn unquoted(&self, key: String, span: &Range<usize>, message: String) -> Problem {
        let Position { line, column } = self.source.position(span.start);
        Problem {
            path: self.source.path.to_owned(),
            position: Some((line, column)),
            key,
            message: without_secrets(message),
            excerpt: None,
        }
    }

    /// Notes something that works, but that the operator should know.
    pub(crate) fn warning(&self, key: &str, span: &Range<usize>, message: &str) {
        let Position { line, column } = self.source.position(span.start);
        self.warnings.borrow_mut().push(format!(
            "{}:{line}:{column}: {key}: {message}",
            self.source.path.display()
        ));
    }

    /// The line on which `span` starts, for messages that point at two places.
    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        self.source.position(span.start).line
    }

    /// Whether the value at `span` contains an environment variable, so that it is a string
    /// whatever type it is to have.
    pub(crate) fn is_expanded(&self, span: &Range<usize>) -> bool {
        let text = self.source.text.get(span.clone());
        text.is_some_and(|text| text.contains("${"))
    }

    /// A path from the file, relative to the directory of the file.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.source
            .path
            .parent()
            .unwrap_or(Path::new(""))
            .join(path)
    }

    /// Notes a file that contains a part of the configuration.
    pub(crate) fn reads(&self, file: &Path) {
        self.files.borrow_mut().insert(file.to_owned());
    }

    /// Notes where the value of a key stands that can turn out wrong when it is used.
    pub(crate) fn place(&self, key: String, span: &Range<usize>) {
        self.keys.borrow_mut().push((key, span.start));
    }

    /// Returns what was found besides the values, if nothing is wrong. `claims` are the addresses
    /// that will be bound.
    pub(crate) fn finish(self, claims: Claims) -> Result<Findings, Errors> {
        let problems = self.problems.into_inner();
        if problems.is_empty() {
            let files = self.files.into_inner();
            let keys = self.keys.into_inner();
            Ok(Findings {
                warnings: self.warnings.into_inner(),
                files: files.into_iter().collect(),
                places: Places::new(&self.source, claims.into_vec(), keys),
            })
        } else {
            Err(Errors::new(problems))
        }
    }
}
/// The message with nothing between its quotes if that is a private key, or a URL with a password:
/// values of keys that expect neither are repeated in messages.
fn without_secrets(message: String) -> String {
    let Some((first, last)) = message.find('"').zip(message.rfind('"')) else {
        return message;
    };
    let quoted = &message[first..last];
    let is_secret = quoted.contains("-----BEGIN") || quoted.contains("://") && quoted.contains('@');
    if is_secret {
        format!("{}\"…{}", &message[..first], &message[last..])
    } else {
        message
    }
}
