//! `[quic]`: the transport's settings, the same for both roles.

use std::time::Duration;

use toml::Spanned;

use crate::section::Section;
use crate::units::{self, MILLISECOND, SECOND};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Smallest receive window: one packet of the largest size (16,383 bytes) must fit, or a sender
/// could never fill it.
const RECEIVE_WINDOW_BYTES_MIN: u64 = 16 * KIB;
/// Largest receive window: 10 Gbit/s over 800 ms; more is a slip of the pen rather than a network.
const RECEIVE_WINDOW_BYTES_MAX: u64 = GIB;
/// Most streams that a peer may have open: a million idle flows are already more than the sockets
/// that one address has ports for.
const INCOMING_STREAMS_MAX: i64 = 1 << 20;
/// Smallest UDP payload that QUIC works with (RFC 9000, section 14).
const UDP_PAYLOAD_BYTES_MIN: i64 = 1200;
/// Largest UDP payload: the largest length that a two-byte varint holds. A jumbo frame (9,000
/// bytes) fits; only loopback carries more.
const UDP_PAYLOAD_BYTES_MAX: i64 = 16_383;

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
    /// Bytes that a peer may send on a new connection, over all streams.
    pub initial_connection_receive_window: u64,
    /// Upper bound of a connection's window, in bytes.
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
}

impl Default for Quic {
    fn default() -> Self {
        Self {
            // Loss that is no congestion is common where tunnels are used; BBR does not slow down
            // for it.
            congestion_control: CongestionControl::Bbr2,
            // 160 Mbit/s at 100 ms from the first byte, before any measurement.
            initial_stream_receive_window: 2 * MIB,
            // 1.3 Gbit/s at 100 ms for one flow.
            max_stream_receive_window: 16 * MIB,
            // Four fresh flows at once.
            initial_connection_receive_window: 8 * MIB,
            // 5 Gbit/s at 100 ms for one lane; also the most memory that one lane's peer can fill.
            max_connection_receive_window: 64 * MIB,
            // Visitors at a time on one lane; QMux's library stops at 100 unless told otherwise.
            max_incoming_streams: 16_384,
            // NATs are known to forget UDP mappings after 30 s (RFC 4787, section 4.3); a third of
            // that survives two lost PINGs.
            keep_alive_period: Duration::from_secs(10),
            // Two retransmissions of the first flight at QUIC's initial RTT of 333 ms and then
            // some (RFC 9002, section 6.2.2).
            handshake_idle_timeout: Duration::from_secs(5),
            // Three keep-alive periods.
            max_idle_timeout: Duration::from_secs(30),
            allow_0rtt: true,
            // Whatever the path carries, up to loopback and jumbo frames: discovery finds it.
            max_udp_payload: 16_383,
        }
    }
}

impl Quic {
    pub(crate) fn read(section: Section<'_>) -> Self {
        let defaults = Self::default();
        let window = |key| section.size(key, RECEIVE_WINDOW_BYTES_MIN..=RECEIVE_WINDOW_BYTES_MAX);
        let windows = [
            window("initial_stream_receive_window"),
            window("max_stream_receive_window"),
            window("initial_connection_receive_window"),
            window("max_connection_receive_window"),
        ];
        let choices = [
            ("bbr2", CongestionControl::Bbr2),
            ("cubic", CongestionControl::Cubic),
            ("reno", CongestionControl::Reno),
        ];
        let keep_alive_period =
            section.duration("keep_alive_period", MILLISECOND * 100..=SECOND * 3_600);
        let max_idle_timeout =
            section.duration("max_idle_timeout", MILLISECOND * 500..=SECOND * 3_600);
        let quic = Self {
            congestion_control: section
                .choice("congestion_control", &choices)
                .map_or(defaults.congestion_control, Spanned::into_inner),
            initial_stream_receive_window: or(&windows[0], defaults.initial_stream_receive_window),
            max_stream_receive_window: or(&windows[1], defaults.max_stream_receive_window),
            initial_connection_receive_window: or(
                &windows[2],
                defaults.initial_connection_receive_window,
            ),
            max_connection_receive_window: or(&windows[3], defaults.max_connection_receive_window),
            max_incoming_streams: section
                .integer("max_incoming_streams", 1..=INCOMING_STREAMS_MAX)
                .map_or(defaults.max_incoming_streams, |count| {
                    u64::try_from(count.into_inner()).unwrap_or(defaults.max_incoming_streams)
                }),
            keep_alive_period: or(&keep_alive_period, defaults.keep_alive_period),
            handshake_idle_timeout: section
                .duration("handshake_idle_timeout", MILLISECOND * 100..=SECOND * 300)
                .map_or(defaults.handshake_idle_timeout, Spanned::into_inner),
            max_idle_timeout: or(&max_idle_timeout, defaults.max_idle_timeout),
            allow_0rtt: section.boolean("allow_0rtt").unwrap_or(defaults.allow_0rtt),
            max_udp_payload: section
                .integer(
                    "max_udp_payload",
                    UDP_PAYLOAD_BYTES_MIN..=UDP_PAYLOAD_BYTES_MAX,
                )
                .map_or(defaults.max_udp_payload, |bytes| {
                    u16::try_from(bytes.into_inner()).unwrap_or(defaults.max_udp_payload)
                }),
        };
        quic.check_window(&section, "stream", &windows[0], &windows[1]);
        quic.check_window(&section, "connection", &windows[2], &windows[3]);
        quic.check_keep_alive(&section, &keep_alive_period, &max_idle_timeout);
        section.finish();
        quic
    }

    fn check_window(
        &self,
        section: &Section<'_>,
        of: &str,
        initial: &Option<Spanned<u64>>,
        max: &Option<Spanned<u64>>,
    ) {
        let (initial_bytes, max_bytes) = match of {
            "stream" => (
                self.initial_stream_receive_window,
                self.max_stream_receive_window,
            ),
            _ => (
                self.initial_connection_receive_window,
                self.max_connection_receive_window,
            ),
        };
        if initial_bytes <= max_bytes {
            return;
        }
        let (initial_key, max_key) = (
            format!("initial_{of}_receive_window"),
            format!("max_{of}_receive_window"),
        );
        let (shown_initial, shown_max) = (
            units::format_size(initial_bytes),
            units::format_size(max_bytes),
        );
        match (initial, max) {
            (Some(initial), _) => section.problem_at(
                &initial_key,
                &initial.span(),
                format!(
                    "{shown_initial} is above {max_key} ({shown_max}); it must be at most that, \
                     or {max_key} larger"
                ),
            ),
            (None, Some(max)) => section.problem_at(
                &max_key,
                &max.span(),
                format!(
                    "{shown_max} is below {initial_key} ({shown_initial} by default); it must be \
                     at least that, or {initial_key} smaller"
                ),
            ),
            (None, None) => unreachable!("the defaults are in order"),
        }
    }

    fn check_keep_alive(
        &self,
        section: &Section<'_>,
        keep_alive_period: &Option<Spanned<Duration>>,
        max_idle_timeout: &Option<Spanned<Duration>>,
    ) {
        if self.keep_alive_period < self.max_idle_timeout {
            return;
        }
        let keep_alive = units::format_duration(self.keep_alive_period);
        let idle = units::format_duration(self.max_idle_timeout);
        match (keep_alive_period, max_idle_timeout) {
            (Some(period), _) => section.problem_at(
                "keep_alive_period",
                &period.span(),
                format!(
                    "{keep_alive} is not below max_idle_timeout ({idle}): connections would end \
                     between two PINGs; it must be shorter, a third is usual"
                ),
            ),
            (None, Some(timeout)) => section.problem_at(
                "max_idle_timeout",
                &timeout.span(),
                format!(
                    "{idle} is not above keep_alive_period ({keep_alive} by default): connections \
                     would end between two PINGs; it must be longer, or keep_alive_period shorter"
                ),
            ),
            (None, None) => unreachable!("the defaults are in order"),
        }
    }
}

fn or<T: Copy>(found: &Option<Spanned<T>>, default: T) -> T {
    found.as_ref().map_or(default, |value| *value.get_ref())
}
