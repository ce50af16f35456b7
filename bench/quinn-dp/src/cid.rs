//! Connection ids in the layout of qmux-dp: the index of the core, then random bytes.

use std::time::Duration;

use qmux_proto::cid::CID_RANDOM_LEN;
use quinn::{ConnectionId, ConnectionIdGenerator};

/// quinn has one endpoint per listener, which owns every lane: there is one core to name.
pub(crate) const ONLY_CORE: u8 = 0;

/// Makes the ids that the server issues.
#[derive(Debug)]
pub(crate) struct CoreConnectionIds;

impl ConnectionIdGenerator for CoreConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = rand::random::<[u8; CID_RANDOM_LEN]>();
        ConnectionId::new(qmux_proto::ConnectionId::new(ONLY_CORE, random).as_bytes())
    }

    fn cid_len(&self) -> usize {
        qmux_proto::CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
