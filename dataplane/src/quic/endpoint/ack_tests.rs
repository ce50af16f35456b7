//! Acknowledgements that wait, and what does not wait with them.

use std::time::Instant;

use qmux_proto::control::{Heartbeat, Message};

use super::tests::{Pair, run, until};
use crate::buffer::{Datagram, StreamBuf};
use crate::quic::lane::{Brought, Lane};
use crate::quic::settings;

/// A client does the same; without that stream a lane has always more to say.
fn open_control_stream(lane: &Lane) {
    lane.send_control(&Message::Heartbeat(Heartbeat {
        sequence: 1,
        acknowledged: 0,
    }));
}

#[test]
fn datagrams_in_bulk_are_acknowledged_although_not_at_once() {
    run(async |config| {
        let pair = Pair::connected(&config).await;
        let (lane, accepted) = (&pair.client_lane, &pair.server_lane);
        open_control_stream(lane);
        until("the path to be measured", || {
            lane.packet_bytes_max() == settings::PACKET_BYTES_MAX
        })
        .await;
        until("the server's side", || accepted.counted_opened.get()).await;
        accepted.admit();
        let counters = &pair.server_endpoint().counters;
        until("a turn of datagrams alone", || {
            for _ in 0..8 {
                let mut datagram = Datagram::with_capacity(1_000);
                datagram.bytes_mut().resize(1_000, 7);
                lane.send_datagram(datagram).expect("sent");
            }
            counters.quic_acknowledgements_deferred.get() > 0
        })
        .await;
        let (acknowledged, sent) = {
            let stats = lane.conn.borrow().stats();
            (stats.acked_bytes, stats.sent_bytes)
        };
        until("the acknowledgement", || {
            accepted.acks_due().is_none() && lane.conn.borrow().stats().acked_bytes > acknowledged
        })
        .await;
        assert!(sent > acknowledged, "something was left to acknowledge");
    });
}

#[test]
fn what_waits_for_the_congestion_window_does_not_wait_for_an_acknowledgement() {
    run(async |config| {
        let pair = Pair::connected(&config).await;
        let lane = &pair.client_lane;
        open_control_stream(lane);
        until("a message that waits for its answer", || {
            lane.ack_turn(Brought::Flows, Instant::now());
            !lane.dirty.get()
        })
        .await;
        // As when the window had a few bytes left, which quiche calls open: the flush has left
        // something, and the peer's next acknowledgement lets it be sent.
        let stream = lane.open_stream().expect("the peer allows it");
        let waiters = lane.attach(stream);
        let rest = lane.write_unflushed(stream, StreamBuf::copied(b"bulk"), false, &waiters);
        assert!(rest.expect("open").is_none());
        assert!(!lane.dirty.get());
        lane.ack_turn(Brought::NothingForStreams, Instant::now());
        assert!(lane.dirty.get(), "it is sent now");
    });
}
