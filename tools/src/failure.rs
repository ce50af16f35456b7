//! How a command ends that did not succeed.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the exit code says to scripts: the same as for `qmux-dp`.
const FAILED_WHILE_RUNNING: u8 = 1;
const BAD_INPUT: u8 = 2;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What was asked for cannot be done; nothing was written.
    #[error("{0}")]
    Input(String),
    /// The system refused while it was being done.
    #[error("{} cannot be written: {error}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What was looked for was found, and said on standard output.
    #[error("see above")]
    Told,
    /// Something that depends neither on input nor on a file.
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
