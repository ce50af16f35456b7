//! How much of what a lane has to say goes with one send call.

use crate::buffer::StreamBuf;
use crate::quic::transmit::{Batch, Filled};
use crate::sys::udp::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};

use super::tests::{Pair, run};

#[test]
fn a_small_window_is_sent_in_several_batches() {
    run(async |mut config| {
        // The first window is 32 packets, so with packets as on the internet a batch could hold it.
        config.quic.max_udp_payload = 1_400;
        let pair = Pair::connected(&config).await;
        let lane = &pair.client_lane;
        let stream = lane.open_stream().expect("the peer allows it");
        let waiters = lane.attach(stream);
        let bulk = StreamBuf::copied(&vec![7; 1 << 20]);
        let rest = lane.write_unflushed(stream, bulk, false, &waiters);
        assert!(rest.is_ok(), "some of it is taken");
        let window = usize::try_from(lane.path_sample().window_bytes).expect("it fits");
        assert!(window < GSO_BYTES_MAX, "a batch could hold {window} bytes");
        // On a slow machine, pacing would end the batch earlier.
        lane.hurries.set(true);
        let mut batch = Batch::default();
        let filled = batch.fill(lane, GSO_SEGMENTS_MAX);
        assert_eq!(filled, Filled::More);
        let bytes = batch.ready().expect("there is much to send").bytes.len();
        assert!(
            bytes <= window / 2,
            "{bytes} bytes of {window} with one call"
        );
    });
}
