//! The messages of a handover between two processes, in order:
//!
//! | who | says | with |
//! | --- | --- | --- |
//! | successor | [`Hello`] | |
//! | predecessor | [`Offer`] | |
//! | predecessor | [`Socket`], as many as offered | the socket |
//! | predecessor | [`PACKETS`] | where its packets are to be sent |
//! | successor | [`Left`], for each address whose sockets it has no use for | |
//! | successor | [`TAKE`], once it could serve at once | |
//! | predecessor | [`Answer`] | |
//!
//! The predecessor may answer before it is asked, if the successor takes too long.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::server::succession::SocketUse;

/// The version of this exchange; others are refused.
pub(super) const VERSION: u32 = 2;

/// The longest message.
pub(super) const MESSAGE_BYTES_MAX: usize = 4_096;

pub(super) const PACKETS: &[u8] = b"packets";
pub(super) const TAKE: &[u8] = b"take";

/// The successor's request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) cores: usize,
}

/// The predecessor's offer, or the reason why there is none.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Offer {
    Sockets(usize),
    Refused(String),
}

/// A socket that comes with this message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Socket {
    used_for: String,
    pub(super) address: SocketAddr,
    pub(super) core: usize,
}

/// Sockets that the predecessor is to keep; each entry stands for those of all cores.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Left {
    used_for: String,
    pub(super) address: SocketAddr,
}

/// What becomes of the sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The successor has them, and the predecessor does not read them any more.
    Gone,
    /// The predecessor keeps them all, for this reason.
    Kept(String),
}

const USES: [(&str, SocketUse); 3] = [
    ("quic", SocketUse::Quic),
    ("tcp", SocketUse::Tcp),
    ("udp", SocketUse::Udp),
];

fn name_of(used_for: SocketUse) -> String {
    let name = USES.iter().find(|(_, it)| *it == used_for);
    name.map_or("", |(name, _)| name).to_owned()
}

fn use_of(name: &str) -> Option<SocketUse> {
    let known = USES.iter().find(|(known, _)| *known == name);
    known.map(|(_, used_for)| *used_for)
}

impl Socket {
    pub(super) fn new(used_for: SocketUse, address: SocketAddr, core: usize) -> Socket {
        Socket {
            used_for: name_of(used_for),
            address,
            core,
        }
    }

    pub(super) fn used_for(&self) -> Option<SocketUse> {
        use_of(&self.used_for)
    }
}

impl Left {
    pub(super) fn new(used_for: SocketUse, address: SocketAddr) -> Left {
        Left {
            used_for: name_of(used_for),
            address,
        }
    }

    pub(super) fn used_for(&self) -> Option<SocketUse> {
        use_of(&self.used_for)
    }
}

/// The message as it is sent. Nothing of this can fail.
pub(super) fn text(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}
