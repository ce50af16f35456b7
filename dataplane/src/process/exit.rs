//! The reasons for which the program ends, and their exit codes.

use std::net::SocketAddr;
use std::process::ExitCode;

use qmux_config::Config;

/// A reason to end that is worth a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A bad command line, configuration, certificate or address: exit code 2.
    #[error("{0}")]
    Input(String),
    /// The value of a key of the configuration cannot be used on this machine, or now.
    #[error("{key}: {why}")]
    Key {
        /// The full name of the key, as in `server.listeners[0].quic_addr`.
        key: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// An address of the configuration cannot be bound.
    #[error("{why}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Whether it is one of TCP; otherwise it is one of UDP.
        tcp: bool,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A failure while running: exit code 1.
    #[error("{0}")]
    Running(String),
}

impl Failure {
    /// A failure that concerns this key.
    pub(crate) fn of_key(key: impl Into<String>, why: impl std::fmt::Display) -> Failure {
        Failure::Key {
            key: key.into(),
            why: why.to_string(),
        }
    }

    /// Adds the file, the line and the key, if the failure concerns a key of `config`.
    pub(crate) fn located(self, config: &Config) -> Failure {
        match self {
            Failure::Key { key, why } => Failure::Input(format!("{}: {why}", config.at_key(&key))),
            Failure::Address { address, tcp, why } => {
                Failure::Input(match config.at_address(tcp, address) {
                    Some(place) => format!("{place}: {why}"),
                    None => why,
                })
            }
            other => other,
        }
    }

    /// The process's exit code.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Failure::Input(_) | Failure::Key { .. } | Failure::Address { .. } => ExitCode::from(2),
            Failure::Running(_) => ExitCode::from(1),
        }
    }
}
