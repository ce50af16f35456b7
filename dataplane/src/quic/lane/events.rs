//! The events of a lane, which its role handles.

use std::rc::Rc;

use super::Lane;
use crate::quic::end::LaneEnd;
use crate::quic::roaming::TlsId;

/// The handler of a lane's events. All calls come from the endpoint's tasks, outside of any borrow.
pub(crate) trait LaneEvents {
    /// The peer opened a stream that nobody has attached to.
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64);
    /// A datagram arrived.
    fn datagram(&self, lane: &Rc<Lane>, data: &[u8]);
    /// All datagrams of this turn have been delivered: send what was batched.
    fn datagrams_done(&self, lane: &Rc<Lane>);
    /// The peer leaves unanswered what was sent to it, or is heard again.
    fn silence(&self, _lane: &Rc<Lane>, _silent: bool) {}
    /// On a server: the peer is at another address, or comes along another connection.
    fn moved(&self, _lane: &Rc<Lane>) {}
    /// A TLS connection is over. If the lane rode it, there is no path to its peer until another
    /// one is chosen.
    fn way_lost(&self, _lane: &Rc<Lane>, _id: TlsId) {}
    /// The peer, or somebody between, has ended the TLS connection that the lane rode. The lane
    /// counts as silent until it is heard by another path.
    fn hung_up(&self, _lane: &Rc<Lane>) {}
    /// The lane has ended; its streams have been woken.
    fn ended(&self, lane: &Rc<Lane>, end: &LaneEnd);
}
