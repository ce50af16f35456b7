//! One connection to a server, made in the way of a client, and how it ended.
//!
//! It blocks, on one socket, over UDP or inside TLS. It registers without capabilities under a name
//! of its own, and sends GoAway with the same packet where it can, so that no visitor is sent here.
//! A visitor that comes nevertheless is sent on to another client.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use boring::ssl::SslRef;
use boring::x509::{X509, X509VerifyError};
use qmux_config::explain::HANDSHAKE_UDP_PAYLOAD_BYTES;
use qmux_config::{Client, LocalService, Quic, ServerTarget, token_proof};
use qmux_proto::cid::CID_RANDOM_LEN;
use qmux_proto::control::{
    AuthChallenge, AuthProof, Capabilities, Decoder, GoAway, GoAwayReason, INSTANCE_ID_BYTES,
    Message, Protocols, RefuseReason, Register, RegisterOutcome, ServiceOffer, ServiceVerdict,
};
use qmux_proto::{ConnectionId, FlowError, LaneError, PROTOCOL_VERSION};
use quiche::{Config, Connection, RecvInfo, Shutdown};
use rustix::net::sockopt;

use super::credentials::{Credentials, Noted};
use super::over_tls::{Carrier as TlsCarrier, NoTls};

/// The first stream that a client opens.
const CONTROL_STREAM: u64 = 0;

/// The longest wait for a packet before the clock is looked at.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// How long to search for the path MTU once the lane is registered: some ten probes, each of a
/// round trip.
const SIZE_PATIENCE: Duration = Duration::from_secs(3);

/// How long a server may take to answer Register beyond the time of a handshake: it may wait for a
/// core that is busy.
const REGISTER_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of the headers of IP and UDP.
const HEADERS_V4_BYTES: usize = 20 + 8;
const HEADERS_V6_BYTES: usize = 40 + 8;

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
        let mut dialed = Dialed {
            attempt: self,
            connection,
            carrier,
            noted,
            decoder: Decoder::new(),
            was_answered: false,
            has_registered: false,
            proved: false,
            unreachable: None,
            tls_ended: None,
        };
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

/// What carries the packets of a connection.
enum Carrier {
    Udp(UdpSocket),
    Tls(TlsCarrier),
}

impl Carrier {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Carrier::Udp(socket) => socket.local_addr(),
            Carrier::Tls(tls) => tls.local_addr(),
        }
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self {
            Carrier::Udp(socket) => socket.send(packet).map(|_| ()),
            Carrier::Tls(tls) => tls.send(packet),
        }
    }

    /// Receives one packet, and waits for it no longer than this.
    fn receive(&mut self, wait: Duration) -> io::Result<Vec<u8>> {
        // Zero would mean for ever.
        let wait = wait.max(Duration::from_millis(1));
        match self {
            Carrier::Udp(socket) => {
                socket.set_read_timeout(Some(wait))?;
                let mut bytes = vec![0; 1 << 16];
                let length = socket.recv(&mut bytes)?;
                bytes.truncate(length);
                Ok(bytes)
            }
            Carrier::Tls(tls) => tls.receive(wait),
        }
    }
}

/// A connection that is being established.
struct Dialed<'a> {
    attempt: &'a Attempt<'a>,
    connection: Connection,
    carrier: Carrier,
    noted: Noted,
    decoder: Decoder,
    was_answered: bool,
    has_registered: bool,
    proved: bool,
    unreachable: Option<ErrorKind>,
    /// How the TLS connection around it ended.
    tls_ended: Option<String>,
}

impl Dialed<'_> {
    fn until_the_end(&mut self) -> End {
        let began = Instant::now();
        let handshake = self.attempt.quic.handshake_idle_timeout;
        loop {
            self.exchange();
            if let Some(kind) = self.unreachable {
                return End::Unreachable(kind);
            }
            if let Some(end) = self.closed() {
                return end;
            }
            if self.connection.is_established()
                && let Some(end) = self.registering()
            {
                return end;
            }
            if let Some(why) = self.tls_ended.take() {
                return End::NoTls(format!("the TLS connection has ended: {why}"));
            }
            let patience = match self.connection.is_established() {
                true => handshake + REGISTER_PATIENCE,
                false => handshake,
            };
            if began.elapsed() >= patience {
                return match self.connection.is_established() {
                    true => End::Unregistered,
                    false => End::Silence,
                };
            }
        }
    }

    /// Returns how the connection ended, if it has.
    fn closed(&mut self) -> Option<End> {
        if let Some(error) = self.connection.peer_error() {
            if !error.is_app {
                return Some(End::ClosedByPeer(error.error_code));
            }
            let code = LaneError::from_code(error.error_code);
            let reason = String::from_utf8_lossy(&error.reason);
            let reason = reason.escape_debug();
            return Some(End::Broken(format!(
                "the server closed it: {code} {reason}"
            )));
        }
        if let Some(error) = self.connection.local_error() {
            return Some(match self.noted.other() {
                Some(why) => End::BadServer(why),
                None => {
                    let why = qmux_config::explain::transport_error(error.error_code);
                    End::Broken(format!("this side closed it: {why}"))
                }
            });
        }
        if self.connection.is_timed_out() {
            return Some(End::Silence);
        }
        let is_over = self.connection.is_closed() || self.connection.is_draining();
        is_over.then(|| End::Broken("the server does not know the connection any more".into()))
    }

    /// Sends what is to be sent, and receives one packet if one comes soon.
    fn exchange(&mut self) {
        let mut packet = vec![0; 1 << 14];
        // `Done` means that there is nothing to send for now.
        while let Ok((length, _)) = self.connection.send(&mut packet) {
            if let Err(error) = self.carrier.send(&packet[..length]) {
                self.failed(&error);
            }
        }
        let wait = self.connection.timeout().unwrap_or(WAIT_MAX).min(WAIT_MAX);
        match self.carrier.receive(wait) {
            Ok(mut packet) => self.received(&mut packet),
            Err(error) => self.failed(&error),
        }
        if self.connection.timeout().is_some_and(|left| left.is_zero()) {
            self.connection.on_timeout();
        }
    }

    fn received(&mut self, packet: &mut [u8]) {
        let Ok(to) = self.carrier.local_addr() else {
            return;
        };
        let from = self.attempt.peer;
        // Packets that cannot be read are ignored, as QUIC requires.
        let _invalid = self.connection.recv(packet, RecvInfo { from, to });
        if self.connection.stats().recv > 0 {
            self.was_answered = true;
        }
        while self.connection.dgram_recv(&mut [0; 1]).is_ok() {}
        let opened: Vec<u64> = self.connection.readable().collect();
        for stream in opened {
            if stream != CONTROL_STREAM {
                let code = FlowError::Draining.code();
                let _gone = self
                    .connection
                    .stream_shutdown(stream, Shutdown::Read, code);
                let _gone = self
                    .connection
                    .stream_shutdown(stream, Shutdown::Write, code);
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
            // A packet that is too large is as good as lost, and smaller ones may pass.
            _ if is_too_large(error) => {}
            _ if matches!(self.carrier, Carrier::Tls(_)) => {
                self.tls_ended = Some(error.to_string());
            }
            _ if self.was_answered => {}
            _ => self.unreachable = Some(kind_of(error)),
        }
    }

    /// Registers; returns the end once the server has answered.
    fn registering(&mut self) -> Option<End> {
        if !self.has_registered {
            self.has_registered = true;
            self.register();
        }
        let mut bytes = [0; 1_024];
        while let Ok((length, _)) = self.connection.stream_recv(CONTROL_STREAM, &mut bytes) {
            if let Err(error) = self.decoder.feed(&bytes[..length]) {
                return Some(End::Broken(format!("the server's answer: {error}")));
            }
        }
        loop {
            match self.decoder.next() {
                Ok(Some(Message::RegisterAck(ack))) => {
                    return Some(self.answered(ack.outcome));
                }
                Ok(Some(Message::AuthChallenge(challenge))) => {
                    if let Some(end) = self.prove(&challenge) {
                        return Some(end);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => return Some(End::Broken(format!("the server's answer: {error}"))),
            }
        }
    }

    /// The server's answer about the services, which comes right after its answer to Register, from
    /// servers that send one.
    fn refused_service(&mut self) -> Option<(String, String)> {
        let mut bytes = [0; 1_024];
        while let Ok((length, _)) = self.connection.stream_recv(CONTROL_STREAM, &mut bytes) {
            self.decoder.feed(&bytes[..length]).ok()?;
        }
        while let Ok(Some(message)) = self.decoder.next() {
            let Message::ServiceAnswers(answers) = message else {
                continue;
            };
            let mut answers = answers.answers.into_iter();
            let refused = answers.find(|answer| answer.verdict != ServiceVerdict::Accepted);
            if let Some(answer) = refused {
                return Some((answer.name, answer.verdict.to_string()));
            }
        }
        None
    }

    fn answered(&mut self, outcome: RegisterOutcome) -> End {
        let proved = self.proved;
        match outcome {
            RegisterOutcome::Accepted => {
                if self.attempt.client.auth.token.is_some() && !proved {
                    self.say(&[GO_AWAY]);
                }
                End::Accepted { proved }
            }
            RegisterOutcome::Refused { reason, text } => End::Refused {
                reason,
                text: text.escape_debug().to_string(),
                proved,
            },
        }
    }

    fn register(&mut self) {
        let instance_id: [u8; INSTANCE_ID_BYTES] = random();
        let [first, second, ..] = instance_id;
        let register = Message::Register(Register {
            protocol_version: PROTOCOL_VERSION,
            client_id: format!("qmux-ctl-doctor-{first:02x}{second:02x}"),
            instance_id,
            lane_index: 0,
            lane_count: 1,
            capabilities: Capabilities::NAMED_SERVICES,
            services: self.attempt.client.services.iter().map(offer).collect(),
        });
        // A server that wants a token reads nothing else before its proof.
        if self.attempt.client.auth.token.is_some() {
            self.say(&[register]);
        } else {
            self.say(&[register, GO_AWAY]);
        }
    }

    fn prove(&mut self, challenge: &AuthChallenge) -> Option<End> {
        let Some(token) = &self.attempt.client.auth.token else {
            return Some(End::TokenWanted);
        };
        let ssl: &mut SslRef = self.connection.as_mut();
        match token_proof::prove(ssl, token, &challenge.nonce) {
            Ok(mac) => {
                self.proved = true;
                let proof = Message::AuthProof(AuthProof { mac: mac.to_vec() });
                self.say(&[proof, GO_AWAY]);
                None
            }
            Err(error) => Some(End::Broken(format!("no proof of the token: {error}"))),
        }
    }

    fn say(&mut self, messages: &[Message]) {
        let mut bytes = Vec::new();
        for message in messages {
            message.encode(&mut bytes);
        }
        // These are some hundred bytes on a fresh stream: there is room, unless the connection is
        // over.
        let _over = self.connection.stream_send(CONTROL_STREAM, &bytes, false);
    }

    /// Waits until quiche has found the largest packet that reaches the server.
    fn size_of_the_path(&mut self) -> Option<usize> {
        let began = Instant::now();
        while began.elapsed() < SIZE_PATIENCE && self.connection.pmtu().is_none() {
            self.exchange();
            if self.connection.is_closed() || self.connection.is_draining() {
                break;
            }
        }
        self.connection.pmtu()
    }

    /// Tells the server that the connection is over.
    fn leave(&mut self) {
        let _over = self.connection.close(true, LaneError::Shutdown.code(), b"");
        let mut packet = vec![0; 1 << 14];
        while let Ok((length, _)) = self.connection.send(&mut packet) {
            let _lost = self.carrier.send(&packet[..length]);
        }
    }
}

/// A service in the form in which a client offers it.
fn offer(service: &LocalService) -> ServiceOffer {
    ServiceOffer {
        name: service.name.clone(),
        protocols: Protocols {
            tcp: service.protocol.tcp(),
            udp: service.protocol.udp(),
        },
    }
}

/// Accepts no visitor from now on.
const GO_AWAY: Message = Message::GoAway(GoAway {
    reason: GoAwayReason::Replaced,
    drain_timeout_ms: 0,
});

/// A socket whose packets are never fragmented by IP, like those of a tunnel, and which gets the
/// network's ICMP errors about them.
fn socket(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    never_fragment(&socket, peer)?;
    socket.connect(peer)?;
    Ok(socket)
}

/// Makes the kernel refuse packets to `peer` that it would have to fragment.
pub(super) fn never_fragment(socket: impl std::os::fd::AsFd, peer: SocketAddr) -> io::Result<()> {
    use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
    match peer {
        SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(())
}

/// The largest UDP payload that leaves this host towards `peer` now.
pub(super) fn leaves(peer: SocketAddr) -> Option<usize> {
    payload_that_leaves(&socket(peer).ok()?, peer)
}

/// The payload that the interface carries, or less if a router has said so.
fn payload_that_leaves(socket: &UdpSocket, peer: SocketAddr) -> Option<usize> {
    let (mtu, headers) = match peer {
        SocketAddr::V4(_) => (sockopt::ip_mtu(socket).ok()?, HEADERS_V4_BYTES),
        SocketAddr::V6(_) => (sockopt::ipv6_mtu(socket).ok()?, HEADERS_V6_BYTES),
    };
    usize::try_from(mtu).ok()?.checked_sub(headers)
}

fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

/// The kind of an error, where a missing address family is a missing route.
fn kind_of(error: &io::Error) -> ErrorKind {
    if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) {
        return ErrorKind::NetworkUnreachable;
    }
    error.kind()
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // This fails only where the system has no randomness at all; and nothing here is a secret.
    let _same = boring::rand::rand_bytes(&mut bytes);
    bytes
}

const _: () = assert!(CID_RANDOM_LEN >= 8);
