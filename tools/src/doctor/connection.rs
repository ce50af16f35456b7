//! One connection to a server, made in the way of a client, and how it ended.
//!
//! It blocks, on one socket, over UDP or inside TLS. It registers without capabilities under a name
//! of its own, and sends GoAway with the same packet where it can, so that no visitor is sent here.
//! A visitor that comes nevertheless is sent on to another client.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use boring::ssl::SslRef;
use boring::x509::{X509, X509VerifyError};
use qmux_config::explain::HANDSHAKE_UDP_PAYLOAD_BYTES;
use qmux_config::{Client, Quic, ServerTarget};
use qmux_proto::ConnectionId;
use qmux_proto::cid::CID_RANDOM_LEN;
use qmux_proto::control::RefuseReason;
use quiche::{Config, Connection};

use super::carrier::{Carrier, kind_of, payload_that_leaves, socket};
use super::credentials::Credentials;
use super::dialed::Dialed;
use super::over_tls::{Carrier as TlsCarrier, NoTls};

/// Windows of a connection on which almost nothing is received.
const WINDOW_BYTES: u64 = 1 << 16;
/// Streams that a server may open before it knows that this client takes none.
const STREAMS_MAX: u64 = 64;

/// What an attempt needs.
pub(super) struct Attempt<'a> {
    pub(super) client: &'a Client,
    pub(super) quic: &'a Quic,
    pub(super) server: &'a ServerTarget,
    pub(super) credentials: &'a Credentials,
    pub(super) peer: SocketAddr,
}

/// The result of an attempt.
pub(super) struct Seen {
    /// The address of the server.
    pub(super) peer: SocketAddr,
    /// Whether the connection was inside TLS.
    pub(super) over_tls: bool,
    /// Whether a packet of the connection came back.
    pub(super) was_answered: bool,
    /// How the connection ended.
    pub(super) end: End,
    /// The first service that the server does not let this client serve, and the reason.
    pub(super) refused_service: Option<(String, String)>,
    /// The largest UDP payload that leaves this host towards the server; `None` if it is not known.
    pub(super) leaves: Option<usize>,
    /// The largest UDP payload that was tried, if it was.
    pub(super) aimed: usize,
    /// The largest UDP payload that reaches the server, if that was found out.
    pub(super) carried: Option<usize>,
    /// The server's certificate.
    pub(super) server_cert: Option<X509>,
    /// Set if the server's certificate, or one above it, is not valid by this host's clock.
    pub(super) of_time: Option<X509VerifyError>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The system or the network reports that there is no route, or that nobody listens.
    Unreachable(ErrorKind),
    /// The handshake was not complete in time.
    Silence,
    /// The server's certificate is not acceptable, and not only for its time.
    BadServer(X509VerifyError),
    /// The server's QUIC stack closed the connection, perhaps with a TLS alert.
    ClosedByPeer(u64),
    /// TLS over TCP does not get through, in words.
    NoTls(String),
    /// The connection ended for another reason.
    Broken(String),
    /// The server asks for a token, and there is none.
    TokenWanted,
    /// The server refused the registration.
    Refused {
        reason: RefuseReason,
        text: String,
        /// Whether a token was proved.
        proved: bool,
    },
    /// The server did not answer the registration.
    Unregistered,
    /// The server accepted the registration.
    Accepted {
        /// Whether a token was proved.
        proved: bool,
    },
}

impl Attempt<'_> {
    /// Connects, registers, and leaves.
    ///
    /// # Errors
    /// If this program cannot do it at all.
    pub(super) fn run(&self) -> Result<Seen, String> {
        let mut seen = self.nothing_seen(false);
        let socket = match socket(self.peer) {
            Ok(socket) => socket,
            Err(error) => {
                seen.end = End::Unreachable(kind_of(&error));
                return Ok(seen);
            }
        };
        seen.leaves = payload_that_leaves(&socket, self.peer);
        let payload_max = usize::from(self.quic.max_udp_payload);
        seen.aimed = payload_max
            .min(seen.leaves.unwrap_or(payload_max))
            .max(HANDSHAKE_UDP_PAYLOAD_BYTES);
        self.follow(Carrier::Udp(socket), seen)
    }

    /// Connects along a TLS connection, registers, and leaves.
    ///
    /// # Errors
    /// If this program cannot do it at all.
    pub(super) fn run_inside(&self, tls: Result<TlsCarrier, NoTls>) -> Result<Seen, String> {
        let mut seen = self.nothing_seen(true);
        match tls {
            Ok(carrier) => {
                seen.of_time = carrier.of_time();
                self.follow(Carrier::Tls(carrier), seen)
            }
            Err(NoTls::Blocked(why)) => {
                seen.end = End::NoTls(why);
                Ok(seen)
            }
            Err(NoTls::BadServer {
                why,
                server_cert,
                of_time,
            }) => Ok(Seen {
                was_answered: true,
                end: End::BadServer(why),
                server_cert,
                of_time,
                ..seen
            }),
        }
    }

    fn nothing_seen(&self, over_tls: bool) -> Seen {
        Seen {
            peer: self.peer,
            over_tls,
            was_answered: false,
            end: End::Silence,
            refused_service: None,
            leaves: None,
            aimed: HANDSHAKE_UDP_PAYLOAD_BYTES,
            carried: None,
            server_cert: None,
            of_time: None,
        }
    }

    fn follow(&self, carrier: Carrier, mut seen: Seen) -> Result<Seen, String> {
        let (tls, noted) = self.credentials.context().map_err(|it| it.to_string())?;
        let connection = self
            .connection(&carrier, tls, seen.aimed)
            .map_err(|error| format!("a QUIC connection cannot be begun: {error}"))?;
        let mut dialed = Dialed::new(self, connection, carrier, noted);
        seen.end = dialed.until_the_end();
        if matches!(seen.end, End::Accepted { .. }) {
            if !seen.over_tls {
                seen.carried = dialed.size_of_the_path();
            }
            seen.refused_service = dialed.refused_service();
        }
        dialed.leave();
        seen.was_answered = dialed.was_answered;
        seen.of_time = seen.of_time.or(dialed.noted.of_time());
        let ssl: &mut SslRef = dialed.connection.as_mut();
        seen.server_cert = ssl.peer_certificate();
        Ok(seen)
    }

    fn connection(
        &self,
        carrier: &Carrier,
        tls: boring::ssl::SslContextBuilder,
        payload_max: usize,
    ) -> Result<Connection, quiche::Error> {
        let mut config = Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls)?;
        config.set_application_protos(&[qmux_proto::ALPN])?;
        config.discover_pmtu(matches!(carrier, Carrier::Udp(_)));
        config.set_max_send_udp_payload_size(payload_max);
        config.set_max_recv_udp_payload_size(1 << 16);
        config.set_initial_max_data(WINDOW_BYTES);
        config.set_initial_max_stream_data_bidi_local(WINDOW_BYTES);
        config.set_initial_max_stream_data_bidi_remote(WINDOW_BYTES);
        config.set_initial_max_streams_bidi(STREAMS_MAX);
        config.enable_dgram(true, 64, 64);
        let idle_ms = self.quic.max_idle_timeout.as_millis();
        config.set_max_idle_timeout(u64::try_from(idle_ms).unwrap_or(u64::MAX));
        config.grease(false);
        let local = carrier
            .local_addr()
            .map_err(|_| quiche::Error::InvalidState)?;
        let [scid, dcid] = [
            ConnectionId::new(0, random()),
            ConnectionId::new(0, random()),
        ];
        let name = self.server.server_name.as_str();
        let ip = name.parse::<IpAddr>().ok();
        let mut connection = quiche::connect_with_dcid(
            ip.is_none().then_some(name),
            &quiche::ConnectionId::from_ref(scid.as_bytes()),
            &quiche::ConnectionId::from_ref(dcid.as_bytes()),
            local,
            self.peer,
            &mut config,
        )?;
        if let Some(ip) = ip {
            let ssl: &mut SslRef = connection.as_mut();
            let expected = ssl.verify_param_mut().set_ip(ip);
            expected.map_err(|_| quiche::Error::TlsFail)?;
        }
        Ok(connection)
    }
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // This fails only where the system has no randomness at all; and nothing here is a secret.
    let _same = boring::rand::rand_bytes(&mut bytes);
    bytes
}

const _: () = assert!(CID_RANDOM_LEN >= 8);
