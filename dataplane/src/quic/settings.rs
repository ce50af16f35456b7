//! From dp.toml's `[quic]` to a `quiche::Config`: windows, limits, congestion control, packet
//! sizes.

use std::net::SocketAddr;

use boring::ssl::{SelectCertError, SslContextBuilder};
use qmux_config::{CongestionControl, Quic};

use crate::sys::route;
use crate::sys::udp::GSO_BYTES_MAX;

/// The largest packet that is sent. Four of this size fill a GSO send ([`GSO_BYTES_MAX`]) exactly;
/// quiche's own limit of 16,383 would waste a quarter of it.
pub(crate) const PACKET_BYTES_MAX: usize = GSO_BYTES_MAX / 4;

/// Datagrams that may wait to be sent on a lane; they are counted and bounded in bytes as well (see
/// `lane::DATAGRAM_QUEUE_BYTES_MAX`).
const DATAGRAM_SEND_QUEUE: usize = 16_384;

/// Datagrams that one receive turn may bring before they are handed on; the queue is drained above
/// half of it. One packet of 16 KB carries at most 5,461 datagrams.
pub(crate) const DATAGRAM_RECEIVE_QUEUE: usize = 16_384;

/// What a lane's peer may send beyond what was read, over all streams: no bound at all, as no lane
/// ever carries this much.
///
/// QUIC counts what waits in a stream that nobody reads against its connection's window, and when
/// half of that window waits, quiche grants no more of it: with 64 visitors who stop reading, at 8
/// MiB each, a window of 1 GiB is closed for all the others, and for heartbeats. So streams are
/// bounded by their own windows, and their sum by `[limits] memory` ([`crate::core::memory`]),
/// which ends those that stall.
const LANE_WINDOW_BYTES: u64 = 1 << 60;

/// Connection ids that a peer may hold at once: one in use, spare ones for a change of address (RFC
/// 9000, 5.1.1).
const ACTIVE_CONNECTION_IDS: u64 = 4;

/// Packets in the first flight: RFC 9002 allows 10; behind a tunnel the path is usually known to
/// carry more, and hystart or BBR find the limit.
const INITIAL_WINDOW_PACKETS: usize = 32;

/// Share of lost packets in a round trip that BBR takes for a full path. quiche's 1.5 % is what
/// radio links lose while they are idle: where 3 % got lost at random, a third of the path was
/// used, and with 10 % some 70 % (`qmux-bench link`, 200 Mbit/s, 40 ms; single runs, 5 to 8 points
/// apart). 5 and 20 % could not be told from it.
const BBR_LOSS_MAX: f32 = 0.1;

const _: () = assert!(PACKET_BYTES_MAX <= 16_383 && PACKET_BYTES_MAX * 4 <= GSO_BYTES_MAX);

/// The most bytes in flight while BBR probes for more bandwidth, as a multiple of what the path
/// carries in a round trip: a full path, and a queue of half a round trip (quiche's 2.25: a queue
/// of more than a whole one). It must exceed [`BBR_FULL_PATH`], or a probe would never end. 1.3
/// keeps the queue shorter still, but where round trips vary by more than that, as on radio links,
/// it leaves the path empty in part.
const BBR_PROBE_WINDOW: f32 = 1.5;

/// What quiche takes for a full path, in the same measure (`full_bw_threshold`).
const BBR_FULL_PATH: f32 = 1.25;

/// A probe for more bandwidth ends after this many round trips in a row on a full path, or with
/// more loss than [`BBR_LOSS_MAX`].
///
/// Between two probes quiche lowers its estimate, and its window, in each round trip in which
/// anything was lost, to what arrived of it: with 3 % lost at random by 1.5 % each time, to half
/// within the two seconds to the next probe. During a probe it does not. A short probe (quiche: 2
/// round trips) leaves the path to that most of the time, a long one does not; with
/// [`BBR_PROBE_WINDOW`] it need not fill the queue. It is bounded because only its end shows that a
/// path has become slower without losing much, or its round trip longer: the time until then is 4 s
/// at 40 ms.
const BBR_PROBE_ROUNDS: usize = 100;

const _: () = assert!(BBR_PROBE_WINDOW > BBR_FULL_PATH);

/// Round trips without growth after which BBR takes a path for full when it starts (quiche: 3).
/// While a thousand flows are being opened, what they send may not grow for three, and not be the
/// path's limit either; a start that ends then leaves most of the path unused for some seconds.
/// With six, the first two seconds of 1,000 downloads over a link of 200 Mbit/s and 40 ms used 90 %
/// of it in each run, where a run in ten used less than 75 % (`qmux-bench link --profile
/// reference,loss-percent=0 --cases visitor --connections 1000 --warm-up 0 --seconds 2`). One
/// download's start is alike within what runs differ by, with losses of 1 % and behind a policer
/// too.
const BBR_START_ROUNDS: usize = 6;

/// What differs from quiche's parameters of BBR.
///
/// The two parameters of the probes raise what is used of a 200 Mbit/s link with 40 ms and 3 % lost
/// at random from 77 to 83 % (medians of 6 runs of 6 s by `qmux-bench link --profile
/// reference,loss-percent=3 --seconds 6 --repeats 6`, which differ by 9 %); with 1 %, behind a
/// policer and on radio links the difference is within the noise. By a simulation of the link
/// without loss, they halve the queue at its 99th percentile, and the lane shares the link with a
/// CUBIC flow about evenly, where it took four fifths.
///
/// Tried and not taken: with 5 % as [`BBR_LOSS_MAX`] 93 instead of 90 to 92 % are used behind the
/// policer, but with 3 % lost at random 63 instead of 87 %, with 5 % lost 16 instead of 79 %;
/// `probe_bw_probe_down_pacing_gain`, `use_bytes_delivered_for_inflight_hi`,
/// `enable_reno_coexistence`, `enable_overestimate_avoidance` and steeper probes give the policer a
/// point or two at most (builds with other values, `qmux-bench link --profile policer --cases
/// service --warm-up 3 --seconds 3`, and `reference,loss-percent=3`). Other ways to lower the
/// estimate on loss (`bw_lo_reduction_strategy`) lower it while a connection starts, too, where one
/// early loss stops its growth; pacing faster by the share that gets lost does not help, as the
/// window shrinks nevertheless; `probe_bw_cwnd_gain` and `disable_probe_down_early_exit` gain
/// nothing; gentler probes (`probe_bw_probe_up_pacing_gain` 1.1) do not notice that a small queue
/// is full. What is left of 1 % and 3 % is the look for the shortest round trip every 10 s: quiche
/// takes losses of that time, too, for a sign of a slower path, and keeps to it for two seconds.
fn bbr() -> quiche::BbrParams {
    quiche::BbrParams {
        loss_threshold: Some(BBR_LOSS_MAX),
        probe_bw_up_cwnd_gain: Some(BBR_PROBE_WINDOW),
        max_probe_up_queue_rounds: Some(BBR_PROBE_ROUNDS),
        startup_full_bw_rounds: Some(BBR_START_ROUNDS),
        ..quiche::BbrParams::default()
    }
}

/// The largest packet that may be sent, whatever the path.
pub(crate) fn packet_bytes_max(quic: &Quic) -> usize {
    usize::from(quic.max_udp_payload).min(PACKET_BYTES_MAX)
}

/// Bounds the search for the path's largest packet by what leaves this machine towards `peer` at
/// all.
///
/// quiche's search begins with the largest size, and quiche takes that for the size of its packets
/// meanwhile, in everything but the packets: the congestion window and its lower bound are up to 13
/// times too large for an Ethernet, for about 40 round trips. With the interface's MTU as the bound
/// the first probe mostly fits.
pub(crate) fn fit_to_route(config: &mut quiche::Config, packet_bytes_max: usize, peer: SocketAddr) {
    // Without a route nothing will be sent, so the size does not matter.
    let leaves = route::udp_payload_max(peer).unwrap_or(packet_bytes_max);
    config.set_max_send_udp_payload_size(
        packet_bytes_max
            .min(leaves)
            .max(quiche::MIN_CLIENT_INITIAL_LEN),
    );
}

/// Sets the packet size inside a TLS connection to the largest that QUIC takes, so that the cost
/// per packet is paid rarely. A lane that moves to UDP later searches for what fits there.
pub(crate) fn fit_to_tls(config: &mut quiche::Config, packet_bytes_max: usize) {
    config.set_max_send_udp_payload_size(packet_bytes_max.max(quiche::MIN_CLIENT_INITIAL_LEN));
}

/// The transport settings of one core, on the TLS context given.
///
/// # Errors
/// If the TLS context is refused by quiche.
pub(crate) fn transport(
    quic: &Quic,
    mut tls: SslContextBuilder,
) -> Result<quiche::Config, quiche::Error> {
    if quic.allow_0rtt {
        bind_early_data(quic, &mut tls);
    }
    let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)?;
    config.set_application_protos(&[qmux_proto::ALPN])?;
    config.set_cc_algorithm(match quic.congestion_control {
        CongestionControl::Bbr2 => quiche::CongestionControlAlgorithm::Bbr2Gcongestion,
        CongestionControl::Cubic => quiche::CongestionControlAlgorithm::CUBIC,
        CongestionControl::Reno => quiche::CongestionControlAlgorithm::Reno,
    });
    config.set_initial_congestion_window_packets(INITIAL_WINDOW_PACKETS);
    config.set_custom_bbr_params(bbr());
    config.enable_pacing(true);
    config.discover_pmtu(true);
    config.set_max_send_udp_payload_size(packet_bytes_max(quic));
    config.set_max_recv_udp_payload_size(1 << 16);
    config.set_initial_max_data(LANE_WINDOW_BYTES);
    config.set_max_connection_window(LANE_WINDOW_BYTES);
    config.set_initial_max_stream_data_bidi_local(quic.initial_stream_receive_window);
    config.set_initial_max_stream_data_bidi_remote(quic.initial_stream_receive_window);
    config.set_max_stream_window(quic.max_stream_receive_window);
    config.set_initial_max_streams_bidi(quic.max_incoming_streams);
    config.set_initial_max_streams_uni(0);
    config.enable_dgram(true, DATAGRAM_RECEIVE_QUEUE, DATAGRAM_SEND_QUEUE);
    config
        .set_max_idle_timeout(u64::try_from(quic.max_idle_timeout.as_millis()).unwrap_or(u64::MAX));
    config.set_active_connection_id_limit(ACTIVE_CONNECTION_IDS);
    config.set_disable_active_migration(false);
    config.grease(false);
    if quic.allow_0rtt {
        config.enable_early_data();
    }
    Ok(config)
}

/// Makes a server accept early data only under the limits under which its ticket was made. The
/// client applies those, and a server that has lowered its limits must not accept the early data
/// (RFC 9000, section 7.4.1). quiche ties early data to nothing.
fn bind_early_data(quic: &Quic, tls: &mut SslContextBuilder) {
    let context = format!(
        "qmux-dp/1 early data {} {} {}",
        LANE_WINDOW_BYTES, quic.initial_stream_receive_window, quic.max_incoming_streams,
    );
    tls.set_select_certificate_callback(move |mut hello| {
        let bound = crate::sys::tls::set_early_data_context(hello.ssl_mut(), context.as_bytes());
        bound.then_some(()).ok_or(SelectCertError::ERROR)
    });
}
