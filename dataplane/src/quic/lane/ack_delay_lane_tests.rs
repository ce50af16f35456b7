//! What a lane may have to say that does not wait with its acknowledgements.

use std::rc::Rc;

use qmux_proto::control::{Heartbeat, Message};

use super::*;
use crate::buffer::Datagram;
use crate::quic::endpoint::tests::{Pair, run, until};
use crate::quic::lane::StreamWaiters;
use crate::quic::lane::room::Capacity;

#[test]
fn whatever_the_peers_packets_may_let_go_on_does_not_wait_with_their_acknowledgement() {
    run(async |config| {
        let pair = Pair::connected(&config).await;
        let lane = &pair.client_lane;
        // A client does the same; without that stream a lane has always more to say.
        lane.send_control(&Message::Heartbeat(Heartbeat {
            sequence: 1,
            acknowledged: 0,
        }));
        until("a lane that has said all", || !lane.has_more_to_say()).await;

        let says_more = |what: &str, begin: &dyn Fn(), end: &dyn Fn()| {
            begin();
            assert!(lane.has_more_to_say(), "{what}");
            end();
            assert!(!lane.has_more_to_say(), "after {what}");
        };
        let flow = Rc::new(StreamWaiters::default());
        let waits = || lane.room.wait(&flow);
        let is_woken = || assert_eq!(lane.room.wake(1, |_| Capacity::Bytes(1)), 1);
        says_more("a flow that waits for room", &waits, &is_woken);
        let datagram = || {
            let mut datagram = Datagram::with_capacity(100);
            datagram.bytes_mut().resize(100, 7);
            assert!(lane.queue_datagram(datagram).is_ok());
        };
        let no_datagram = || lane.conn.borrow_mut().dgram_purge_outgoing(|_| true);
        says_more("a datagram", &datagram, &no_datagram);
        let full = |is_full| lane.ack_delay.blocked.set(is_full);
        says_more("a full window", &|| full(true), &|| full(false));
        let release = |at| lane.release_at.set(at);
        let paced = || release(Some(Instant::now()));
        says_more("what pacing holds back", &paced, &|| release(None));
        // The next question takes the new number for the old one.
        let lost = &lane.ack_delay.lost;
        says_more("a lost packet", &|| lost.set(lost.get() + 1), &|| ());
        let stranger = |is_one| lane.counted_unadmitted.set(is_one);
        says_more(
            "a lane that has not registered",
            &|| stranger(true),
            &|| {
                stranger(false);
            },
        );
        let opened = |is_so| lane.counted_opened.set(is_so);
        says_more("a handshake", &|| opened(false), &|| opened(true));
        let closed = lane.conn.borrow_mut().close(true, 0, b"");
        closed.expect("open until now");
        assert!(lane.has_more_to_say(), "the end");
    });
}
