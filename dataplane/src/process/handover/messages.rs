//! What the two processes say to each other, in order:
//!
//! | who | says | with |
//! | --- | --- | --- |
//! | successor | [`Hello`] | |
//! | predecessor | [`Offer`] | |
//! | predecessor | [`Socket`], as many as offered | the socket |
//! | predecessor | [`PACKETS`] | where its packets are to be sent |
//! | successor | [`TAKE`], once it has all that it needs | |
//! | predecessor | [`GONE`], once it reads no more; [`ENDING`] if it has been stopped meanwhile | |

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::server::succession::SocketUse;

/// Of this exchange. Others are refused.
pub(super) const VERSION: u32 = 1;

/// Longest message.
pub(super) const MESSAGE_BYTES_MAX: usize = 4_096;

pub(super) const PACKETS: &[u8] = b"packets";
pub(super) const TAKE: &[u8] = b"take";
pub(super) const GONE: &[u8] = b"gone";
pub(super) const ENDING: &[u8] = b"ending";

/// Who asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) cores: usize,
}

/// What is there, or why not.
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

const USES: [(&str, SocketUse); 3] = [
    ("quic", SocketUse::Quic),
    ("tcp", SocketUse::Tcp),
    ("udp", SocketUse::Udp),
];

impl Socket {
    pub(super) fn new(used_for: SocketUse, address: SocketAddr, core: usize) -> Socket {
        let name = USES.iter().find(|(_, it)| *it == used_for);
        Socket {
            used_for: name.map_or("", |(name, _)| name).to_owned(),
            address,
            core,
        }
    }

    pub(super) fn used_for(&self) -> Option<SocketUse> {
        let known = USES.iter().find(|(name, _)| *name == self.used_for);
        known.map(|(_, used_for)| *used_for)
    }
}

/// As it is sent. Nothing of it can fail.
pub(super) fn text(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}
