//! The process at the other end of a handover. Both ends are one server, so both belong to one
//! user; a path in a directory that others can write to is no proof of that.

use std::fmt;
use std::io;
use std::num::NonZeroU32;

use rustix::process::geteuid;
use socket2::Socket;

use crate::sys::pass::Peer;

const ROOT: u32 = 0;

/// A process to which this one hands nothing over, and from which it takes nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stranger(Peer);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer { pid, uid } = self.0;
        let pid = pid.map_or(0, NonZeroU32::get);
        write!(f, "process {pid} of the user with id {uid}")
    }
}

/// Returns the other end, unless it belongs to this process's user or to root.
///
/// # Errors
/// Those of getsockopt(2).
pub(super) fn stranger(connection: &Socket) -> io::Result<Option<Stranger>> {
    let peer = Peer::of(connection)?;
    let may = may_hand_over(peer.uid, geteuid().as_raw());
    Ok((!may).then_some(Stranger(peer)))
}

fn may_hand_over(peer: u32, own: u32) -> bool {
    peer == own || peer == ROOT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_hand_over() {
        assert!(may_hand_over(1_000, 1_000));
        assert!(may_hand_over(ROOT, 1_000));
        assert!(!may_hand_over(1_001, 1_000));
        assert!(!may_hand_over(1_001, ROOT), "not even to root");
    }
}
