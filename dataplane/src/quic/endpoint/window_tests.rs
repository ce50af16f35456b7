//! What the flows of a lane write while its congestion window is full: two real ends, whose packets
//! are carried from the one to the other by hand, so that nothing but an acknowledgement lets more
//! be sent, and it is known of how much.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use qmux_config::{Config, CongestionControl};
use qmux_proto::FlowError;
use qmux_proto::control::{Heartbeat, Message};

use super::tests::{Pair, run, until};
use crate::buffer::{Datagram, StreamBuf};
use crate::quic::lane::{
    CONTROL_STREAM, Lane, QUEUE_BYTES_MAX, StreamRead, StreamRoom, StreamWaiters,
};
use crate::quic::transmit::{Batch, Filled};
use crate::sys::udp::GSO_SEGMENTS_MAX;

/// Packets as on the internet: the first window is 32 of them.
const PACKET_BYTES: u16 = 1_400;

/// Packets that the server receives, and then acknowledges with one packet.
const ACKNOWLEDGED_PACKETS: usize = 16;

/// Acknowledgements: several times as many as the lane lets come between two looks at what waits.
const ROUNDS: usize = 64;

/// Bytes of datagrams that wait: more than an acknowledgement lets be sent.
const DATAGRAM_BYTES_WAITING: usize = 200_000;

/// Flows that always have something to write.
const FLOWS: usize = 4;

/// More than a flow writes in a test, so that nothing but the congestion window limits it.
const STREAM_WINDOW_BYTES: u64 = 64 << 20;

/// The flows that were woken, in this order, which is the order in which a core lets them run.
type Woken = Arc<Mutex<VecDeque<usize>>>;

/// Wakes the flow of this number.
struct WakeFlow(usize, Woken);

impl Wake for WakeFlow {
    fn wake(self: Arc<Self>) {
        self.1.lock().expect("no panic").push_back(self.0);
    }
}

/// A flow of the client.
struct Flow {
    stream: u64,
    waiters: Rc<StreamWaiters>,
    written: usize,
}

impl Flow {
    /// Opens a stream by its first byte.
    fn open(lane: &Lane) -> Flow {
        let stream = lane.open_stream().expect("the peer allows it");
        let waiters = lane.attach(stream);
        let mut flow = Flow {
            stream,
            waiters,
            written: 0,
        };
        flow.write(lane, 1);
        flow
    }

    fn write(&mut self, lane: &Lane, bytes: usize) {
        let block = StreamBuf::copied(&vec![7; bytes]);
        let rest = lane.write_unflushed(self.stream, block, false, &self.waiters);
        assert!(rest.expect("open").is_none(), "there was room for it");
        lane.mark_dirty();
        self.written += bytes;
    }

    /// Writes as much as there is room for, and then waits to be woken.
    fn write_all_it_may(&mut self, lane: &Lane, waker: &Waker) {
        loop {
            match lane.room(self.stream, usize::MAX, &self.waiters) {
                StreamRoom::Bytes(bytes) => self.write(lane, bytes),
                StreamRoom::Blocked => break,
                StreamRoom::Stopped(reason) => panic!("{reason}"),
            }
        }
        let mut cx = Context::from_waker(waker);
        while self.waiters.writable.poll(&mut cx).is_ready() {}
    }
}

/// A lane whose client sends as much as the window lets it.
struct FullLane {
    pair: Pair,
    batch: Batch,
    /// The client's packets that the server has not received.
    on_the_way: VecDeque<Vec<u8>>,
    /// Bytes of packets that the client has sent.
    sent: usize,
    /// The size of the datagrams that are always there to be sent, if any are.
    datagrams: Option<usize>,
    /// Flows that always have something to write.
    flows: Vec<Flow>,
    woken: Woken,
}

impl FullLane {
    /// Fills the window. `others` is the number of further flows, which have written a byte each.
    ///
    /// From here on the test must not wait for anything: the tasks of the endpoints would send what
    /// the test is to carry.
    async fn new(
        mut config: Config,
        datagrams: Option<usize>,
        others: usize,
    ) -> (FullLane, Vec<Flow>) {
        // BBR's window depends on times.
        config.quic.congestion_control = CongestionControl::Reno;
        config.quic.max_udp_payload = PACKET_BYTES;
        config.quic.initial_stream_receive_window = STREAM_WINDOW_BYTES;
        config.quic.max_stream_receive_window = STREAM_WINDOW_BYTES;
        let pair = Pair::connected(&config).await;
        let lane = &pair.client_lane;
        // A client does the same; without that stream a lane does not know its window.
        assert_eq!(lane.open_stream(), Some(CONTROL_STREAM));
        lane.send_control(&Message::Heartbeat(Heartbeat {
            sequence: 1,
            acknowledged: 0,
        }));
        until("a lane with nothing in flight", || {
            let window = lane.path_sample().window_bytes;
            let free = lane.conn.borrow_mut().stream_capacity(CONTROL_STREAM);
            lane.packet_bytes_max() == usize::from(PACKET_BYTES)
                && free.is_ok_and(|free| free as u64 == window)
        })
        .await;
        let open = |flows| (0..flows).map(|_| Flow::open(lane)).collect();
        let (others, flows) = (open(others), open(FLOWS));
        let mut full = FullLane {
            pair,
            batch: Batch::default(),
            on_the_way: VecDeque::new(),
            sent: 0,
            datagrams,
            flows,
            woken: Arc::new(Mutex::new((0..FLOWS).collect())),
        };
        full.add_datagrams();
        full.turn();
        (full, others)
    }

    fn lane(&self) -> &Lane {
        &self.pair.client_lane
    }

    fn add_datagrams(&self) {
        let Some(bytes) = self.datagrams else { return };
        let waiting = self.lane().conn.borrow().dgram_send_queue_byte_size();
        let missing = DATAGRAM_BYTES_WAITING.saturating_sub(waiting) / bytes;
        for _ in 0..missing {
            let mut datagram = Datagram::with_capacity(bytes);
            datagram.bytes_mut().resize(bytes, 7);
            self.lane().send_datagram(datagram).expect("there is room");
        }
    }

    /// Lets the server receive some packets, and the client its acknowledgement.
    fn acknowledge(&mut self) {
        self.add_datagrams();
        let packets = self.on_the_way.len().min(ACKNOWLEDGED_PACKETS);
        self.arrive(packets);
        let Pair {
            client_lane: client,
            server_lane: server,
            ..
        } = &self.pair;
        for mut packet in take_packets(server, &mut self.batch) {
            let endpoint = self.pair.client_endpoint();
            endpoint.feed(client, &mut packet, client.way());
        }
        self.pair.client_endpoint().finish_turn();
    }

    fn arrive(&mut self, packets: usize) {
        let (server, endpoint) = (&self.pair.server_lane, self.pair.server_endpoint());
        for mut packet in self.on_the_way.drain(..packets) {
            endpoint.feed(server, &mut packet, server.way());
        }
        endpoint.finish_turn();
    }

    /// Lets the flows that were woken run: each writes as much as there is room for.
    fn run_flows(&mut self) {
        loop {
            let next = self.woken.lock().expect("no panic").pop_front();
            let Some(flow) = next else { return };
            let waker = Waker::from(Arc::new(WakeFlow(flow, Arc::clone(&self.woken))));
            self.flows[flow].write_all_it_may(&self.pair.client_lane, &waker);
        }
    }

    /// Does what the tasks of the client's core do in a turn: the flows run, and the lane is
    /// flushed, until there is nothing to do.
    fn turn(&mut self) {
        for flushes in 0.. {
            assert!(flushes < 100, "a turn does not end");
            self.run_flows();
            if !self.lane().dirty.replace(false) {
                return;
            }
            self.flush();
        }
    }

    /// Does what [`Endpoint::flush_lane`](super::Endpoint) does, but for the socket.
    fn flush(&mut self) {
        let lane = &self.pair.client_lane;
        lane.unsent.flushed();
        let packets = take_packets(lane, &mut self.batch);
        lane.note_blocked();
        lane.wake_room_waiters_after_flush();
        self.sent += packets.iter().map(Vec::len).sum::<usize>();
        self.on_the_way.extend(packets);
    }

    /// Bytes that the flows have written.
    fn written(&self) -> usize {
        self.flows.iter().map(|flow| flow.written).sum()
    }

    /// Bytes of the flows that were written and have not been sent: the server receives all that is
    /// on the way, and reads it.
    fn unsent(mut self) -> usize {
        self.arrive(self.on_the_way.len());
        let server = &self.pair.server_lane;
        let mut buffer = [0; 16_384];
        let mut arrived = 0;
        for flow in &self.flows {
            let waiters = server.attach(flow.stream);
            while let StreamRead::Bytes(bytes, _) = server.read(flow.stream, &mut buffer, &waiters)
            {
                arrived += bytes;
            }
        }
        self.written() - arrived
    }
}

/// All packets that the lane may send now, whatever its pacing says.
fn take_packets(lane: &Lane, batch: &mut Batch) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    loop {
        lane.hurries.set(true);
        let filled = batch.fill(lane, GSO_SEGMENTS_MAX);
        if let Some(ready) = batch.ready() {
            packets.extend(ready.bytes.chunks(ready.segment).map(<[u8]>::to_vec));
        }
        if filled == Filled::All {
            return packets;
        }
    }
}

/// Flows beside datagrams of this size get a part of the window, and little of theirs waits.
fn beside_datagrams(bytes: usize) {
    run(async |config| {
        let (mut lane, _) = FullLane::new(config, Some(bytes), 0).await;
        let mut go_on = || {
            for _ in 0..4 * ROUNDS {
                lane.acknowledge();
                lane.turn();
            }
            (lane.written(), lane.sent)
        };
        // At first there is room in any case.
        let (before, after) = (go_on(), go_on());
        let (written, sent) = (after.0 - before.0, after.1 - before.1);
        assert!(4 * written > sent, "{bytes}: {written} of {sent} bytes");
        let unsent = lane.unsent();
        assert!(unsent < QUEUE_BYTES_MAX, "{bytes}: {unsent} bytes wait");
    });
}

#[test]
fn several_flows_beside_small_datagrams_that_keep_the_window_full_get_room() {
    beside_datagrams(200);
}

#[test]
fn several_flows_beside_datagrams_that_keep_the_window_full_get_room() {
    beside_datagrams(1_000);
}

#[test]
fn several_flows_beside_datagrams_of_a_packet_that_keep_the_window_full_get_room() {
    beside_datagrams(1_300);
}

#[test]
fn a_stream_that_is_reset_does_not_let_others_write_more_than_the_window_lets_through() {
    run(async |config| {
        let (mut lane, others) = FullLane::new(config, None, ROUNDS).await;
        for flow in others {
            lane.acknowledge();
            // Of the tasks that run before the flush, the last one gives its flow up.
            lane.run_flows();
            lane.lane().reset(flow.stream, FlowError::VisitorReset);
            lane.turn();
        }
        let unsent = lane.unsent();
        assert!(unsent < 4 * usize::from(PACKET_BYTES), "{unsent} bytes");
    });
}
