//! The failures of a command.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code for a failure while running, the same as that of `qmux-dp`.
const FAILED_WHILE_RUNNING: u8 = 1;
const BAD_INPUT: u8 = 2;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What was asked for cannot be done; nothing was written.
    #[error("{0}")]
    Input(String),
    /// The system refused while the command was running.
    #[error("{} cannot be written: {error}", path.display())]
    Write {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The fault that was looked for was found, and printed on standard output.
    #[error("see above")]
    Told,
    /// A failure that depends neither on input nor on a file.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Input(_) => ExitCode::from(BAD_INPUT),
            Self::Write { .. } | Self::Told | Self::Internal(_) => {
                ExitCode::from(FAILED_WHILE_RUNNING)
            }
        }
    }
}
