//! A lane as the client sees it: flows that the server opens, datagrams that it sends.

use std::rc::Rc;
use std::sync::Arc;

use qmux_proto::FlowError;

use super::ClientShared;
use crate::core::CoreContext;
use crate::flow::udp::client::ClientFlows;
use crate::quic::end::LaneEnd;
use crate::quic::lane::{Lane, LaneEvents};

/// One lane to one server.
pub(super) struct ClientLane {
    pub(super) lane: Rc<Lane>,
    pub(super) udp: Rc<ClientFlows>,
    pub(super) context: Rc<CoreContext>,
    pub(super) shared: Arc<ClientShared>,
}

/// Handler of the lane's events.
pub(super) struct ClientLaneEvents(pub(super) Rc<ClientLane>);

impl LaneEvents for ClientLaneEvents {
    fn stream_opened(&self, lane: &Rc<Lane>, stream: u64) {
        let ClientLaneEvents(this) = self;
        if this.context.draining.get() {
            this.context.counters.tcp_flows_refused_draining.increment();
            lane.reset(stream, FlowError::Draining);
            lane.stop(stream, FlowError::Draining);
            return;
        }
        monoio::spawn(super::flow::run(Rc::clone(this), stream));
    }

    fn datagram(&self, _lane: &Rc<Lane>, data: &[u8]) {
        self.0.udp.datagram(data);
    }

    fn datagrams_done(&self, _lane: &Rc<Lane>) {
        self.0.udp.datagrams_done();
    }

    fn ended(&self, _lane: &Rc<Lane>, _end: &LaneEnd) {
        self.0.udp.lane_ended();
    }
}
