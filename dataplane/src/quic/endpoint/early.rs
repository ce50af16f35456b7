//! Early flushes, in the turn of a flow. Where many flows of a lane write in one turn of the core,
//! what they have written is sent in parts, so that the peer works on the first part while the last
//! flows are still read. And a flow that must not go on before something is acknowledged has the
//! acknowledgement sent.
//!
//! Without early flushes both sides of a tunnel, and the service behind it, take turns: each waits
//! for all that the other has to send in its turn, and idles meanwhile.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use super::Endpoint;
use crate::quic::lane::Lane;
use crate::quic::transmit::{BATCH_BYTES_SURE, Batch, Filled, Ready};

/// Batches of an early flush. Where packets of many lengths wait, the flush task, which shares its
/// time, sends the others.
const BATCHES_MAX: usize = 16;

impl Endpoint {
    /// Sends what the lane has to send, so that the peer can begin with it. The flush task, which
    /// has its turn later, does the rest: packets over TLS, packets for which the socket has no
    /// room, and timers. Returns true if the socket took all that could be sent.
    pub(in crate::quic) fn flush_early(&self, lane: &Lane) -> bool {
        self.flush_early_by(lane, |ready| {
            let way = ready.way;
            self.socket
                .try_send(ready.bytes, ready.segment, way.peer, way.local)
        })
    }

    fn flush_early_by(
        &self,
        lane: &Lane,
        mut send: impl FnMut(&Ready<'_>) -> io::Result<()>,
    ) -> bool {
        lane.unsent.flushed();
        if lane.conn.was_interrupted() {
            return false; // The flush task ends it.
        }
        // Before the handshake is complete, an error of the network says whether anybody is there:
        // the flush task must see it, and the kernel tells it once.
        if !lane.is_established() || lane.way().tls.is_some() || lane.hurries.get() {
            return false;
        }
        // The flush task holds the batch while it waits for the socket.
        let Some(mut batch) = self.batch.take() else {
            return false;
        };
        if !batch.is_kept() {
            lane.close_bundle();
            let segments = self.segments(Instant::now());
            for round in 1.. {
                let filled = batch.fill(lane, segments);
                let Some(ready) = batch.ready() else { break };
                if send(&ready).is_err() {
                    // The flush task meets the error again, and handles it.
                    batch.keep_for(lane.key());
                    break;
                }
                self.count_sent(&ready);
                lane.note_sent(&ready);
                // A shorter packet ends a batch, and there may be more behind it.
                let is_enough = filled == Filled::All
                    || ready.bytes.len() >= BATCH_BYTES_SURE
                    || round >= BATCHES_MAX;
                if is_enough && !batch.carries() {
                    break;
                }
            }
        }
        let all_sent = !batch.is_kept();
        self.batch.set(Some(batch));
        all_sent
    }

    /// Sends the packets that an early flush could not send.
    pub(super) async fn send_kept(self: &Rc<Self>, batch: &mut Box<Batch>) {
        let Some(key) = batch.take_kept() else { return };
        let lane = self.lanes.borrow().get(&key).cloned();
        let Some(lane) = lane else {
            // The lane is gone, and its packets with it.
            **batch = Batch::default();
            return;
        };
        loop {
            self.send(&lane, batch).await;
            if let Some(ready) = batch.ready() {
                lane.note_sent(&ready);
            }
            if !batch.carries() {
                return;
            }
            if lane.conn.was_interrupted() {
                **batch = Batch::default();
                return;
            }
            batch.fill(&lane, self.segments(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use super::super::tests::{Pair, run, until};
    use super::*;
    use crate::buffer::StreamBuf;

    /// More flows than write before an early flush, but fewer than cause two.
    const FLOWS: usize = 24;

    /// Opens `FLOWS` streams and writes to each what `request` says of it, all in one turn. Returns
    /// how many packets the endpoint sent meanwhile.
    fn write_to_all(pair: &Pair, request: impl Fn(usize) -> &'static [u8]) -> u64 {
        let packets = &pair.client_endpoint().counters.quic_packets_sent;
        let before = packets.get();
        let lane = &pair.client_lane;
        for flow in 0..FLOWS {
            let stream = lane.open_stream().expect("the peer allows it");
            let waiters = lane.attach(stream);
            let rest = lane.write(stream, StreamBuf::copied(request(flow)), false, &waiters);
            assert!(rest.expect("open").is_none(), "there is room");
        }
        packets.get() - before
    }

    async fn all_have_come(pair: &Pair) {
        let came = || {
            let conn = pair.server_lane.conn.borrow();
            let mut streams = (0..FLOWS as u64).map(|number| 4 * number);
            streams.all(|stream| conn.stream_readable(stream))
        };
        until("every stream", came).await;
    }

    /// Expects that most flows' packets, but not all, are sent before the last one has written.
    fn most_do_not_wait(request: impl Fn(usize) -> &'static [u8]) {
        run(async |config| {
            let pair = Pair::connected(&config).await;
            let sent = usize::try_from(write_to_all(&pair, request)).expect("a few");
            assert!((FLOWS / 2..FLOWS).contains(&sent), "{sent} of {FLOWS}");
            all_have_come(&pair).await;
        });
    }

    #[test]
    fn many_flows_that_write_in_one_turn_do_not_wait_for_the_last_of_them() {
        most_do_not_wait(|_| b"a request");
    }

    #[test]
    fn flows_whose_packets_need_several_calls_do_not_wait_either() {
        most_do_not_wait(|flow| &b"one of them is longer"[flow % 3..]);
    }

    #[test]
    fn what_a_flow_must_acknowledge_before_it_goes_on_leaves_in_its_own_turn() {
        run(async |config| {
            let pair = Pair::connected(&config).await;
            let lane = &pair.server_lane;
            // A packet to acknowledge, and something that goes with it.
            lane.ack_packet(100);
            lane.ping();
            let batches = &pair.server_endpoint().counters.quic_send_batches;
            let before = batches.get();
            let mut acknowledged = pin!(lane.acknowledge_now());
            let at_once =
                poll_fn(|cx| Poll::Ready(acknowledged.as_mut().poll(cx).is_ready())).await;
            assert!(at_once, "no other task has had its turn");
            assert_eq!(batches.get(), before + 1);
        });
    }

    #[test]
    fn what_the_socket_has_no_room_for_goes_before_everything_else() {
        run(async |config| {
            let pair = Pair::connected(&config).await;
            let endpoint = pair.client_endpoint();
            let lane = &pair.client_lane;
            let stream = lane.open_stream().expect("the peer allows it");
            let waiters = lane.attach(stream);
            let written = lane.write(stream, StreamBuf::copied(b"first"), true, &waiters);
            assert!(written.is_ok());
            endpoint.flush_early_by(lane, |_| Err(io::ErrorKind::WouldBlock.into()));
            // The batch is not filled again before those packets are sent.
            endpoint.flush_early_by(lane, |_| panic!("nothing is sent meanwhile"));
            let came = || pair.server_lane.conn.borrow().stream_readable(stream);
            until("the stream", came).await;
            let repeated = lane.conn.borrow().stats().stream_retrans_bytes;
            assert_eq!(repeated, 0, "it was sent once");
        });
    }

    #[test]
    fn what_was_kept_of_a_lane_that_is_gone_is_forgotten() {
        run(async |config| {
            let pair = Pair::connected(&config).await;
            let endpoint = pair.client_endpoint();
            let mut batch = Box::<Batch>::default();
            batch.keep_for(u64::MAX);
            endpoint.batch.set(Some(batch));
            pair.client_lane.ping();
            let kept = || {
                let batch = endpoint.batch.take();
                let kept = batch.as_ref().is_some_and(|batch| batch.is_kept());
                endpoint.batch.set(batch);
                kept
            };
            until("it to be forgotten", || !kept()).await;
            write_to_all(&pair, |_| b"a request");
            all_have_come(&pair).await;
        });
    }
}
