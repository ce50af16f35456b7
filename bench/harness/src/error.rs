//! What can go wrong with programs and around them.

use std::io;
use std::time::Duration;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended before it should have.
    #[error("{name} ended too early; its last lines:\n{log}")]
    Ended {
        /// The name of the program.
        name: String,
        /// The end of its log.
        log: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {limit:?}{log}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// The end of the log of who should have done it, after a line break; or empty.
        log: String,
    },
    /// What a program printed is not what was expected.
    #[error("{what}: {problem}")]
    Output {
        /// The name of the program whose output it is.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Any other failure, with its own text.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// For `map_err`: says what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
