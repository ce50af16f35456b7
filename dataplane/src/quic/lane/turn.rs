//! What one turn of receiving brought a lane, and how much of it was genuine.
//!
//! Anybody who knows a lane's address or connection id can send it packets. quiche takes them all
//! silently, and counts those that it could decrypt: only these are a sign of life, and only they
//! are worth an acknowledgement.

use std::cell::Cell;

use super::Lane;

/// The counts of a turn while it lasts.
#[derive(Debug, Default)]
pub(in crate::quic) struct Turn {
    /// Datagrams that quiche was given.
    datagrams: Cell<u64>,
    /// Bytes of datagrams that came along the current path.
    bytes: Cell<usize>,
    /// Number of packets that quiche had decrypted at the end of the last turn.
    genuine_before: Cell<u64>,
}

/// The result of a turn that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::quic) struct TurnOver {
    /// Whether something came from the peer.
    pub(in crate::quic) genuine: bool,
    /// Number of datagrams that had no effect.
    pub(in crate::quic) ignored: u64,
    /// Bytes that came along the current path.
    pub(in crate::quic) bytes: usize,
}

impl Turn {
    /// Counts a datagram that quiche was given; `bytes` of it came along the current path.
    pub(in crate::quic) fn fed(&self, bytes: usize) {
        self.datagrams.set(self.datagrams.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Notes that the path has changed.
    pub(super) fn moved(&self) {
        self.bytes.set(0);
    }

    fn over(&self, genuine: u64) -> TurnOver {
        let new = genuine.saturating_sub(self.genuine_before.replace(genuine));
        TurnOver {
            genuine: new > 0,
            // During the handshake, one datagram may bring several packets.
            ignored: self.datagrams.take().saturating_sub(new),
            bytes: self.bytes.take(),
        }
    }
}

impl Lane {
    /// Ends the turn, after its packets have been given to quiche.
    pub(in crate::quic) fn end_turn(&self) -> TurnOver {
        self.turn.over(self.genuine_packets())
    }

    /// Whether packets that are not the peer's change nothing for the lane, because it is up and
    /// goes on. During the handshake they raise the amplification limit (RFC 9000 section 8.1), or
    /// wait for their keys; and one may be a stateless reset.
    pub(in crate::quic) fn is_unmoved_by_noise(&self) -> bool {
        let conn = self.conn.borrow();
        self.counted_opened.get()
            && !conn.is_closed()
            && !conn.is_draining()
            && conn.local_error().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_quiche_could_not_decrypt_is_no_sign_of_life() {
        let turn = Turn::default();
        turn.fed(100);
        turn.fed(0);
        let noise = TurnOver {
            genuine: false,
            ignored: 2,
            bytes: 100,
        };
        assert_eq!(turn.over(0), noise);
        turn.fed(100);
        turn.fed(50);
        let half = TurnOver {
            genuine: true,
            ignored: 1,
            bytes: 150,
        };
        assert_eq!(turn.over(1), half);
        turn.fed(100);
        // An Initial and a Handshake packet in one datagram.
        assert_eq!(turn.over(3).ignored, 0);
        turn.fed(7);
        turn.moved();
        assert_eq!(turn.over(4).bytes, 0);
    }
}
