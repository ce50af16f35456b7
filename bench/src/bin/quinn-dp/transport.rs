//! quinn's transport settings: its own defaults, or those that make it comparable with qmux-dp.
//!
//! Both settings have what the protocol and dp.toml ask for: the limit of streams, no unidirectional streams, datagrams
//! (on by default), `keep_alive_period`, `max_idle_timeout`, `handshake_idle_timeout`.
//!
//! `--tuned` adds:
//!
//! | what | quinn's default | tuned | why |
//! | --- | --- | --- | --- |
//! | stream window | 1.25 MB | `max_stream_receive_window` | quinn does not grow windows: it starts with the largest |
//! | connection window | none | `max_connection_receive_window` | as qmux-dp |
//! | send window | 10 MB | [`SEND_WINDOW_BYTES`] | what is queued beyond what is in flight costs cache misses |
//! | congestion control | cubic | `congestion_control`; quinn's BBR is version 1 | as qmux-dp |
//! | initial congestion window | 14,720 bytes | 32 packets of 1,200 bytes | as qmux-dp |
//! | packet size | up to 1,452 bytes | up to `max_udp_payload`, at most 16,373 | four fill a segmented send |
//! | datagram buffers | 1.25 MB, 1 MB | 8 MB, 4 MB | bursts of UDP wait rather than get lost |
//! | socket buffers | the system's | 4 MB | as qmux-dp |
//! | acknowledgements | every other packet | every tenth, where the peer is quinn | each costs as much as a packet |

use std::sync::Arc;
use std::time::Duration;

use qmux_config::{CongestionControl, Quic};
use quinn::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::gso_socket::SEND_BYTES_MAX;

/// Bytes that may be sent or wait to be sent on one connection. quinn does not tell the two apart; this is the
/// bandwidth-delay product of 1.3 Gbit/s at 100 ms.
const SEND_WINDOW_BYTES: u64 = 16 << 20;

/// The first flight in bytes: qmux-dp sends 32 packets of the smallest QUIC path.
const INITIAL_WINDOW_BYTES: u64 = 32 * 1_200;

/// The largest packet: four of them fill a segmented send.
const PACKET_BYTES_MAX: u16 = 16_373;

const _: () = assert!(PACKET_BYTES_MAX as usize * 4 <= SEND_BYTES_MAX);

/// Bytes of datagrams that wait for the program, and that wait to be sent.
const DATAGRAM_RECEIVE_BYTES: usize = 8 << 20;
const DATAGRAM_SEND_BYTES: usize = 4 << 20;

/// The buffers of a QUIC socket, in each direction.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Packets between two acknowledgements, less one.
const ACK_ELICITING_THRESHOLD: u32 = 9;

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

    /// How long a handshake, and each step of a registration, may take.
    pub(crate) fn handshake_timeout(&self) -> Duration {
        self.quic.handshake_idle_timeout
    }

    /// The largest packet that is sent and received.
    pub(crate) fn packet_bytes_max(&self) -> u16 {
        self.quic.max_udp_payload.min(PACKET_BYTES_MAX)
    }

    /// The buffers of a QUIC socket in bytes; `None` for the system's default.
    pub(crate) fn socket_buffer_bytes(&self) -> Option<usize> {
        self.tuned.then_some(SOCKET_BUFFER_BYTES)
    }

    /// For the server, where clients open the control stream and nothing else.
    pub(crate) fn server(&self) -> Arc<TransportConfig> {
        Arc::new(self.transport(VarInt::from_u32(CONTROL_STREAMS)))
    }

    /// For the client, where the server opens a stream for each flow.
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
            .send_window(SEND_WINDOW_BYTES)
            .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BYTES))
            .datagram_send_buffer_size(DATAGRAM_SEND_BYTES);

        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.packet_bytes_max());
        transport.mtu_discovery_config(Some(discovery));

        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(ACK_ELICITING_THRESHOLD));
        transport.ack_frequency_config(Some(acks));

        match self.quic.congestion_control {
            CongestionControl::Bbr2 => {
                let mut bbr = BbrConfig::default();
                bbr.initial_window(INITIAL_WINDOW_BYTES);
                transport.congestion_controller_factory(Arc::new(bbr));
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
