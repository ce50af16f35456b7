//! What the client role of one core tells that of the others. Every message is for all cores.

use std::fmt;

use crate::core::mailbox::{Kind, Mail};

/// One message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClientMail {
    /// The servers have changed, or what is known about their cores: plan again.
    Plan,
    /// This server may be gone: ask it on each lane.
    Alarm {
        /// The server's number.
        server: u64,
    },
    /// A lane to this server has registered: lanes that wait to try again need not wait long.
    Found {
        /// The server's number.
        server: u64,
    },
    /// The health of a service has changed.
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
