//! Lanes that close while a probe of their handshake is due.

use std::rc::Rc;
use std::time::{Duration, Instant};

use qmux_config::Config;
use qmux_proto::LaneError;

use super::Endpoint;
use super::tests::{Holder, Owner, run, setup};
use crate::quic::lane::Lane;
use crate::quic::transmit::{Batch, CLOSING_PACKETS_MAX, Filled};
use crate::sys::udp::GSO_SEGMENTS_MAX;

/// The client's side of a lane that is up, but knows only by its own handshake: nothing of the
/// server's has come since, and a packet of it must be probed for.
///
/// From here on the test must not wait for anything: the server would confirm the handshake.
async fn unconfirmed(config: &Config) -> (Rc<Endpoint>, Rc<Lane>) {
    let server = Endpoint::start(setup(config, true), Some(Rc::<Owner>::default() as _));
    let client = Endpoint::start(setup(config, false), None);
    let address = server.socket.local_addr();
    let lane = client.dial(address, "localhost", 0, None).expect("dial");
    lane.handle_events(Rc::new(Holder(Rc::clone(&lane))));
    lane.established().await.expect("established");
    let _lost = packets(&lane);
    let probe_at = lane.conn.borrow().timeout_instant().expect("in flight");
    while Instant::now() < probe_at {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        !lane.conn.borrow().is_closed(),
        "the idle timeout is far away"
    );
    (client, lane)
}

/// The number of packets that the lane sends at a time, up to a hundred batches.
fn packets(lane: &Lane) -> usize {
    let mut batch = Batch::default();
    let mut packets = 0;
    for _ in 0..100 {
        lane.hurries.set(true);
        let filled = batch.fill(lane, GSO_SEGMENTS_MAX);
        packets += batch.ready().map_or(0, |ready| ready.packets());
        if filled == Filled::All {
            break;
        }
    }
    packets
}

#[test]
fn a_lane_that_closes_says_so_before_its_timers_make_it_probe() {
    run(async |config| {
        let (client, lane) = unconfirmed(&config).await;
        lane.close(LaneError::Shutdown, "");
        let at = lane.conn.borrow().timeout_instant();
        let mut armed = lane.armed.get();
        client.timers.borrow_mut().arm(lane.key(), at, &mut armed);
        lane.armed.set(armed);
        client.fire_timers(Instant::now());
        assert_eq!(packets(&lane), 1);
        assert!(lane.conn.borrow().is_draining(), "it has said so");
    });
}

#[test]
fn a_lane_that_cannot_say_that_it_closes_sends_few_packets() {
    run(async |config| {
        let (_client, lane) = unconfirmed(&config).await;
        lane.conn.borrow_mut().on_timeout();
        lane.close(LaneError::Shutdown, "");
        let packets = packets(&lane);
        assert!(!lane.conn.borrow().is_draining(), "it cannot say so");
        let allowed = 1..=2 * CLOSING_PACKETS_MAX;
        assert!(allowed.contains(&packets), "{packets} packets");
    });
}
