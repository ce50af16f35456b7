//! `[quic]`: settings of the transport, the same for both roles.

use std::time::Duration;

use toml::Spanned;

use crate::section::Section;
use crate::units::{self, MILLISECOND, SECOND};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The smallest receive window: one packet of the largest size (16,383 bytes) must fit, or a sender
/// could never fill it.
pub(crate) const RECEIVE_WINDOW_BYTES_MIN: u64 = 16 * KIB;
/// The largest receive window: 10 Gbit/s over 800 ms; more is a mistake rather than a network.
pub(crate) const RECEIVE_WINDOW_BYTES_MAX: u64 = GIB;
/// The most streams that a peer may have open: a million idle flows are already more than the
/// sockets that one address has ports for.
pub(crate) const INCOMING_STREAMS_MAX: i64 = 1 << 20;
/// The smallest UDP payload that QUIC works with (RFC 9000, section 14).
const UDP_PAYLOAD_BYTES_MIN: i64 = 1200;
/// The largest UDP payload: the largest length that a two-byte varint holds. A jumbo frame (9,000
/// bytes) fits; only loopback carries more.
const UDP_PAYLOAD_BYTES_MAX: i64 = 16_383;

/// Number of keep-alive periods in an idle timeout where only one of the two is given: two lost
/// PINGs are no reason to give up.
const PINGS_PER_TIMEOUT: u32 = 3;

const _: () = assert!(RECEIVE_WINDOW_BYTES_MIN >= UDP_PAYLOAD_BYTES_MAX as u64);

/// The congestion controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// BBR version 2: follows the measured bandwidth, so that lossy paths stay fast.
    Bbr2,
    /// CUBIC (RFC 9438).
    Cubic,
    /// NewReno (RFC 9002, section 7).
    Reno,
}

/// Settings of every QUIC connection, the same for both roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quic {
    /// The congestion controller.
    pub congestion_control: CongestionControl,
    /// Bytes that a peer may send on a new stream before it is allowed more.
    pub initial_stream_receive_window: u64,
    /// Upper bound of a stream's window, in bytes, however fast it is read.
    pub max_stream_receive_window: u64,
    /// Bytes that a peer may send on a new connection, over all streams. The data plane has no such
    /// bound, because flows that nobody reads would use it up for all others; `[limits] memory`
    /// bounds them.
    pub initial_connection_receive_window: u64,
    /// Upper bound of a connection's window, in bytes; it has no effect, like the initial one.
    pub max_connection_receive_window: u64,
    /// Streams that a peer may have open at a time on one connection.
    pub max_incoming_streams: u64,
    /// A connection on which nothing was sent for this long sends a PING.
    pub keep_alive_period: Duration,
    /// A handshake that makes no progress for this long has failed.
    pub handshake_idle_timeout: Duration,
    /// A connection on which nothing arrives for this long is over.
    pub max_idle_timeout: Duration,
    /// Whether a client that comes back sends its registration with its first packet.
    pub allow_0rtt: bool,
    /// Upper bound of path MTU discovery, in bytes of UDP payload.
    pub max_udp_payload: u16,
    /// Whether a core may look out for the next message for a moment before it sleeps.
    pub busy_poll: bool,
}

impl Default for Quic {
    fn default() -> Self {
        Self {
            // Loss without congestion is common where tunnels are used, and BBR does not slow down
            // for it.
            congestion_control: CongestionControl::Bbr2,
            // 42 Mbit/s at 100 ms; it doubles with each round trip that uses it up.
            initial_stream_receive_window: 512 * KIB,
            // 640 Mbit/s at 100 ms for one flow.
            max_stream_receive_window: 8 * MIB,
            // 64 flows at their maximum. Where it is in use, flows whose receiver has stopped
            // reading keep their part of it, and the others stand still when that is half of it.
            initial_connection_receive_window: GIB,
            max_connection_receive_window: GIB,
            // Visitors at a time on one lane; QMux's library stops at 100 unless told otherwise.
            max_incoming_streams: 16_384,
            // NATs are known to forget UDP mappings after 30 s (RFC 4787, section 4.3); a third of
            // that survives two lost PINGs.
            keep_alive_period: Duration::from_secs(10),
            // Two retransmissions of the first flight at QUIC's initial RTT of 333 ms, and some
            // more (RFC 9002, section 6.2.2).
            handshake_idle_timeout: Duration::from_secs(5),
            // Three keep-alive periods.
            max_idle_timeout: Duration::from_secs(30),
            allow_0rtt: true,
            // Whatever the path carries, up to loopback and jumbo frames; path MTU discovery finds
            // it.
            max_udp_payload: 16_383,
            // It is done only while more gets through that way.
            busy_poll: true,
        }
    }
}

impl Quic {
    pub(crate) fn read(section: Section<'_>) -> Self {
        let defaults = Self::default();
        let choices = [
            ("bbr2", CongestionControl::Bbr2),
            ("cubic", CongestionControl::Cubic),
            ("reno", CongestionControl::Reno),
        ];
        let congestion_control = section
            .choice("congestion_control", &choices)
            .map(Spanned::into_inner);
        let (initial_stream_receive_window, max_stream_receive_window) = read_window(
            &section,
            (
                "initial_stream_receive_window",
                defaults.initial_stream_receive_window,
            ),
            (
                "max_stream_receive_window",
                defaults.max_stream_receive_window,
            ),
        );
        let (initial_connection_receive_window, max_connection_receive_window) = read_window(
            &section,
            (
                "initial_connection_receive_window",
                defaults.initial_connection_receive_window,
            ),
            (
                "max_connection_receive_window",
                defaults.max_connection_receive_window,
            ),
        );
        let max_incoming_streams = section
            .integer("max_incoming_streams", 1..=INCOMING_STREAMS_MAX)
            .and_then(|count| u64::try_from(count.into_inner()).ok());
        let (keep_alive_period, max_idle_timeout) = read_idle(&section, &defaults);
        let handshake_idle_timeout = section
            .duration("handshake_idle_timeout", MILLISECOND * 100..=SECOND * 300)
            .map(Spanned::into_inner);
        let allow_0rtt = section.boolean("allow_0rtt");
        let max_udp_payload = section
            .integer(
                "max_udp_payload",
                UDP_PAYLOAD_BYTES_MIN..=UDP_PAYLOAD_BYTES_MAX,
            )
            .and_then(|bytes| u16::try_from(bytes.into_inner()).ok());
        let busy_poll = section.boolean("busy_poll");
        section.finish();
        Self {
            congestion_control: congestion_control.unwrap_or(defaults.congestion_control),
            initial_stream_receive_window,
            max_stream_receive_window,
            initial_connection_receive_window,
            max_connection_receive_window,
            max_incoming_streams: max_incoming_streams.unwrap_or(defaults.max_incoming_streams),
            keep_alive_period,
            handshake_idle_timeout: handshake_idle_timeout
                .unwrap_or(defaults.handshake_idle_timeout),
            max_idle_timeout,
            allow_0rtt: allow_0rtt.unwrap_or(defaults.allow_0rtt),
            max_udp_payload: max_udp_payload.unwrap_or(defaults.max_udp_payload),
            busy_poll: busy_poll.unwrap_or(defaults.busy_poll),
        }
    }
}

/// Reads a window's initial and maximal size. If only one is given and lies beyond the default of
/// the other, the other follows it.
fn read_window(
    section: &Section<'_>,
    (initial_key, initial_default): (&'static str, u64),
    (max_key, max_default): (&'static str, u64),
) -> (u64, u64) {
    let range = RECEIVE_WINDOW_BYTES_MIN..=RECEIVE_WINDOW_BYTES_MAX;
    let initial = section.size(initial_key, range.clone());
    let max = section.size(max_key, range).map(Spanned::into_inner);
    let Some(initial) = initial else {
        let max = max.unwrap_or(max_default);
        return (initial_default.min(max), max);
    };
    let initial_bytes = *initial.get_ref();
    let max_bytes = max.unwrap_or(max_default.max(initial_bytes));
    if initial_bytes > max_bytes {
        let message = format!(
            "{} is above {max_key} ({}); it must be at most that, or {max_key} larger",
            units::format_size(initial_bytes),
            units::format_size(max_bytes),
        );
        section.problem_at(initial_key, &initial.span(), message);
    }
    (initial_bytes, max_bytes)
}

/// Reads the keep-alive period and the idle timeout. If only one is given and the default of the
/// other would not fit, the other follows it.
fn read_idle(section: &Section<'_>, defaults: &Quic) -> (Duration, Duration) {
    let period = section.duration("keep_alive_period", MILLISECOND * 100..=SECOND * 1_200);
    let timeout = section
        .duration("max_idle_timeout", MILLISECOND * 300..=SECOND * 3_600)
        .map(Spanned::into_inner);
    let Some(period) = period else {
        let timeout = timeout.unwrap_or(defaults.max_idle_timeout);
        return (
            defaults.keep_alive_period.min(timeout / PINGS_PER_TIMEOUT),
            timeout,
        );
    };
    let period_given = *period.get_ref();
    let timeout = timeout.unwrap_or(
        defaults
            .max_idle_timeout
            .max(period_given * PINGS_PER_TIMEOUT),
    );
    if period_given >= timeout {
        let message = format!(
            "{} is not below max_idle_timeout ({}): connections would end between two PINGs; it \
             must be shorter, a third is usual",
            units::format_duration(period_given),
            units::format_duration(timeout),
        );
        section.problem_at("keep_alive_period", &period.span(), message);
    }
    (period_given, timeout)
}
