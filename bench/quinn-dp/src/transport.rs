//! quinn's transport settings: its own defaults, or those that make it comparable with qmux-dp.
//!
//! Both settings have what the protocol and dp.toml ask for: the limit of streams, no
//! unidirectional streams, datagrams (on by default), `keep_alive_period`, `max_idle_timeout`,
//! `handshake_idle_timeout`.
//!
//! `--tuned` adds:
//!
//! | what | quinn's default | tuned | why |
//! | --- | --- | --- | --- |
//! | stream window | 1.25 MB | `max_stream_receive_window` | quinn does not grow windows: it starts with the largest |
//! | connection window | none | `max_connection_receive_window` | as qmux-dp |
//! | send window | 10 MB | `max_stream_receive_window` | one flow can fill its window; more only overruns buffers |
//! | congestion control | cubic | `congestion_control` | as qmux-dp |
//! | initial congestion window | 14,720 bytes | 32 packets of 1,200 bytes; BBR has its own | as qmux-dp |
//! | packet size | up to 1,452 bytes | up to `max_udp_payload`, at most 16,373 | four fill a segmented send |
//! | black hole cool-down | 60 s | [`BLACK_HOLE_COOLDOWN`] | a burst of losses is no change of path here |
//! | datagram buffers | 1.25 MB, 1 MB | 8 MB, 4 MB | bursts of UDP wait rather than get lost |
//! | socket buffers | the system's | 4 MB | as qmux-dp |
//!
//! Two settings made no difference beyond the noise on loopback (1.2 to 1.4 CPU seconds per GB,
//! both ends): smaller send windows, and acknowledging every tenth packet (quinn's ACK_FREQUENCY).
//! Packets of 8,186 bytes cost about 5 % more CPU time than those of 16,373.
//!
//! quinn's BBR is version 1, which quinn calls experimental. It was seen to get stuck at 20 Mbit/s
//! on loopback, and otherwise to vary by a factor of three between runs; compare with
//! `congestion_control = "cubic"` on both programs.

use std::sync::Arc;
use std::time::Duration;

use qmux_config::{CongestionControl, Quic};
use quinn::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::gso_socket::SEND_BYTES_MAX;

/// The first flight in bytes: qmux-dp sends 32 packets of the smallest QUIC path.
const INITIAL_WINDOW_BYTES: u64 = 32 * 1_200;

/// The largest packet: four of them fill a segmented send.
const PACKET_BYTES_MAX: u16 = 16_373;

const _: () = assert!(PACKET_BYTES_MAX as usize * 4 <= SEND_BYTES_MAX);

/// How soon a larger packet is tried after a burst of losses, which quinn takes for a path that no
/// longer carries large packets. On a busy loopback such bursts come from full buffers; with
/// packets of 1,200 bytes a lane is three times slower.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(1);

/// Bytes of received datagrams that wait for the program, and of datagrams that wait to be sent.
const DATAGRAM_RECEIVE_BYTES: usize = 8 << 20;
const DATAGRAM_SEND_BYTES: usize = 4 << 20;

/// The buffers of a UDP socket, in each direction.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Streams that a client may open: the control stream.
const CONTROL_STREAMS: u32 = 1;

/// The settings of this process.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    quic: Quic,
    tuned: bool,
}

impl Settings {
    pub(crate) fn new(quic: &Quic, tuned: bool) -> Self {
        Self {
            quic: quic.clone(),
            tuned,
        }
    }

    /// Whether quinn's defaults are replaced.
    pub(crate) fn tuned(&self) -> bool {
        self.tuned
    }

    /// Whether quinn's BBR is in use.
    pub(crate) fn bbr(&self) -> bool {
        self.tuned && self.quic.congestion_control == CongestionControl::Bbr2
    }

    /// How long a handshake, and each step of a registration, may take.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.quic.handshake_idle_timeout
    }

    /// The largest packet that is sent and received.
    pub(crate) fn packet_bytes_max(&self) -> u16 {
        self.quic.max_udp_payload.min(PACKET_BYTES_MAX)
    }

    /// The buffers of a UDP socket in bytes; `None` for the system's default.
    pub(crate) fn socket_buffer_bytes(&self) -> Option<usize> {
        self.tuned.then_some(SOCKET_BUFFER_BYTES)
    }

    /// The settings of the server's connections, on which clients open only the control stream.
    pub(crate) fn server(&self) -> Arc<TransportConfig> {
        Arc::new(self.transport(VarInt::from_u32(CONTROL_STREAMS)))
    }

    /// The settings of the client's connections, on which the server opens a stream for each flow.
    pub(crate) fn client(&self) -> Arc<TransportConfig> {
        Arc::new(self.transport(varint(self.quic.max_incoming_streams)))
    }

    fn transport(&self, streams: VarInt) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let idle_timeout = IdleTimeout::try_from(self.quic.max_idle_timeout);
        transport
            .max_concurrent_bidi_streams(streams)
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .keep_alive_interval(Some(self.quic.keep_alive_period))
            // Config allows an hour at most, which always fits.
            .max_idle_timeout(idle_timeout.ok());
        if self.tuned {
            self.tune(&mut transport);
        }
        transport
    }

    fn tune(&self, transport: &mut TransportConfig) {
        transport
            .stream_receive_window(varint(self.quic.max_stream_receive_window))
            .receive_window(varint(self.quic.max_connection_receive_window))
            .send_window(self.quic.max_stream_receive_window)
            .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BYTES))
            .datagram_send_buffer_size(DATAGRAM_SEND_BYTES);

        let mut discovery = MtuDiscoveryConfig::default();
        discovery
            .upper_bound(self.packet_bytes_max())
            .black_hole_cooldown(BLACK_HOLE_COOLDOWN);
        transport.mtu_discovery_config(Some(discovery));

        match self.quic.congestion_control {
            CongestionControl::Bbr2 => {
                transport.congestion_controller_factory(Arc::new(BbrConfig::default()));
            }
            CongestionControl::Cubic => {
                let mut cubic = CubicConfig::default();
                cubic.initial_window(INITIAL_WINDOW_BYTES);
                transport.congestion_controller_factory(Arc::new(cubic));
            }
            CongestionControl::Reno => {
                let mut reno = NewRenoConfig::default();
                reno.initial_window(INITIAL_WINDOW_BYTES);
                transport.congestion_controller_factory(Arc::new(reno));
            }
        }
    }
}

fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}
