//! Why there is no link.

use std::io;

use thiserror::Error;

use super::profile::ProfileError;

/// Why a [`Network`](super::Network) could not be built or used.
#[derive(Debug, Error)]
pub enum LinkError {
    /// This process may not do what a link needs, or this machine cannot.
    #[error("no link emulator here: {what}; {remedy}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What would help.
        remedy: &'static str,
    },
    /// A profile cannot be emulated.
    #[error("the {direction} profile cannot be emulated: {source}")]
    Profile {
        /// Of which direction.
        direction: &'static str,
        /// What is wrong with it.
        source: ProfileError,
    },
    /// The `ip` program refused.
    #[error("`{command}` failed: {message}")]
    Ip {
        /// The command line.
        command: String,
        /// What it said.
        message: String,
    },
    /// The system refused.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

impl LinkError {
    /// Whether no link can be had here at all, whatever its profile: a test may then say so and
    /// end.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported { .. })
    }

    pub(super) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::System { action, source }
    }
}
