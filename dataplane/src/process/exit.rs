//! The reasons for which the program ends, and their exit codes.

use std::process::ExitCode;

/// A reason to end that is worth a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A bad command line, configuration, certificate or address: exit code 2.
    #[error("{0}")]
    Input(String),
    /// A failure while running: exit code 1.
    #[error("{0}")]
    Running(String),
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Failure::Input(_) => ExitCode::from(2),
            Failure::Running(_) => ExitCode::from(1),
        }
    }
}
