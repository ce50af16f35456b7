//! What the client role of one core tells that of the others. All of it is for every core.

use std::fmt;

use crate::core::mailbox::{Kind, Mail};

/// One piece of news.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClientMail {
    /// The servers, or what is known about their cores, have changed.
    Plan,
    /// This server may be gone: ask it on each lane.
    Alarm {
        /// The server's number.
        server: u64,
    },
    /// A lane to this server has registered: those that wait to try again need not wait long.
    Found {
        /// The server's number.
        server: u64,
    },
    /// What is known of a service has changed.
    ServiceHealth,
}

impl fmt::Display for ClientMail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientMail::Plan => "plan lanes",
            ClientMail::Alarm { .. } => "ask a server whether it lives",
            ClientMail::Found { .. } => "a server is there again",
            ClientMail::ServiceHealth => "a service can be reached, or cannot",
        })
    }
}

impl Mail for ClientMail {
    fn kind(&self) -> Kind {
        Kind::Control
    }
}
