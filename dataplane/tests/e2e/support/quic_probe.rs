//! A bare QUIC client that shows a server any certificate, or none: the real client refuses bad
//! ones of its own before it dials, so it cannot show what the server does about them.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use boring::hash::hmac_sha512;
use boring::ssl::SslRef;
use qmux_proto::LaneError;
use qmux_proto::control::{
    AuthChallenge, AuthProof, Capabilities, Decoder, GoAway, Message, Register, RegisterOutcome,
    ServiceAnswer, ServiceOffer,
};
use quiche::{Config, CongestionControlAlgorithm, Connection, PROTOCOL_VERSION, RecvInfo};

use super::certs::{Identity, SERVER_NAME};
use super::random::Random;
use super::wait::PATIENCE;

/// Application protocol of the tunnel.
const ALPN: &[u8] = b"qmux-dp/1";
/// Version of the tunnel's protocol.
const PROTOCOL: u64 = qmux_proto::PROTOCOL_VERSION;
/// The first stream that a client opens.
const CONTROL_STREAM: u64 = 0;
/// QUIC packets of this client, in bytes.
const PACKET_BYTES_MAX: usize = 1350;
/// CRYPTO_ERROR codes: 0x0100 plus the TLS alert (RFC 9001, section 4.8).
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x0100..=0x01ff;

/// What the proof of a token is made of (docs/protocol.md).
const EXPORTER_LABEL: &str = "EXPORTER-qmux-dp-token";
const PROOF_LABEL: &[u8] = b"qmux-dp/1 token proof";
const EXPORTED_BYTES: usize = 64;

/// The verdict of a server on a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server closed the connection with this TLS alert (RFC 8446, section 6).
    Refused(u8),
    /// The server completed the handshake.
    Admitted,
}

/// Completes a handshake with `server`, showing `identity`.
pub(crate) fn shake_hands(dir: &Path, server: SocketAddr, identity: Option<&Identity>) -> Verdict {
    let mut probe = Probe::dial(server, &mut config(dir, identity));
    probe.until("the server admits or refuses this client", |connection| {
        if let Some(error) = connection.peer_error() {
            assert!(
                !error.is_app && CRYPTO_ERRORS.contains(&error.error_code),
                "the server closed the connection for another reason than TLS: {error:?}"
            );
            let alert = error.error_code & 0xff;
            return Some(Verdict::Refused(u8::try_from(alert).expect("one byte")));
        }
        // A ticket comes only after the server has checked the client's certificate; that the
        // handshake is complete on this side says nothing (RFC 8446, section 4.6.1).
        connection.session().is_some().then_some(Verdict::Admitted)
    })
}

/// A connection and its socket.
pub(crate) struct Probe {
    connection: Connection,
    socket: UdpSocket,
    local: SocketAddr,
}

impl Probe {
    /// Begins a connection.
    pub(crate) fn dial(server: SocketAddr, config: &mut Config) -> Self {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a free port");
        let local = socket.local_addr().expect("bound");
        let mut id = [0; 16];
        Random::new(u64::from(local.port())).fill(&mut id);
        let id = quiche::ConnectionId::from_ref(&id);
        let connection = quiche::connect(Some(SERVER_NAME), &id, local, server, config)
            .expect("a valid configuration");
        Self {
            connection,
            socket,
            local,
        }
    }

    /// Goes on until `done` gives a value.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Connection) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            send(&mut self.connection, &self.socket);
            receive(&mut self.connection, &self.socket, self.local);
            if let Some(value) = done(&mut self.connection) {
                send(&mut self.connection, &self.socket);
                return value;
            }
        }
        panic!("waited {PATIENCE:?} for this: {what}");
    }

    /// Registers the lane under the name of a client; returns the server's answer. The client is of
    /// a version that knows no named services.
    pub(crate) fn register(&mut self, client_id: &str, instance: u8) -> RegisterOutcome {
        let capabilities = Capabilities::default();
        let request = request(client_id, instance, capabilities, Vec::new());
        self.ask(&request, |message| match message {
            Message::RegisterAck(ack) => Some(ack.outcome),
            _ => None,
        })
    }

    /// Offers some services; returns the answer about each, or why the client is refused.
    pub(crate) fn offer(
        &mut self,
        client_id: &str,
        instance: u8,
        services: &[&str],
    ) -> Result<Vec<ServiceAnswer>, RegisterOutcome> {
        let services = services.iter().map(|name| ServiceOffer::new(*name));
        let capabilities = Capabilities::NAMED_SERVICES;
        let request = request(client_id, instance, capabilities, services.collect());
        self.ask(&request, |message| match message {
            Message::RegisterAck(ack) if ack.outcome == RegisterOutcome::Accepted => None,
            Message::RegisterAck(ack) => Some(Err(ack.outcome)),
            Message::ServiceAnswers(answers) => Some(Ok(answers.answers)),
            _ => None,
        })
    }

    /// Waits until the server tells the lane to go.
    pub(crate) fn told_to_go(&mut self) -> GoAway {
        self.hear(|message| match message {
            Message::GoAway(away) => Some(away),
            _ => None,
        })
    }

    /// Waits until the server closes the lane; returns its reason.
    pub(crate) fn closed(&mut self) -> LaneError {
        self.until("the server closes the lane", |connection| {
            let error = connection.peer_error()?;
            assert!(error.is_app, "{error:?}");
            Some(LaneError::from_code(error.error_code))
        })
    }

    /// Whether the server answers on the lane.
    pub(crate) fn is_open(&mut self) -> bool {
        let before = self.connection.stats().recv;
        let asked = self.connection.send_ack_eliciting();
        asked.expect("an open connection");
        self.until("an answer or the end", |connection| {
            let answered = connection.stats().recv > before;
            (answered || connection.peer_error().is_some()).then_some(())
        });
        self.connection.peer_error().is_none()
    }

    /// Registers the lane at a server with tokens; returns the server's challenge.
    pub(crate) fn challenge(&mut self, client_id: &str, instance: u8) -> AuthChallenge {
        let capabilities = Capabilities::default();
        let request = request(client_id, instance, capabilities, Vec::new());
        self.ask(&request, |message| match message {
            Message::AuthChallenge(challenge) => Some(challenge),
            _ => None,
        })
    }

    /// The proof of a token for a challenge.
    pub(crate) fn proof(&mut self, token: &str, challenge: &AuthChallenge) -> Vec<u8> {
        let ssl: &mut SslRef = self.connection.as_mut();
        let mut exported = [0; EXPORTED_BYTES];
        let complete = ssl.export_keying_material(&mut exported, EXPORTER_LABEL, None);
        complete.expect("the handshake is complete");
        let input = [PROOF_LABEL, &challenge.nonce, &exported].concat();
        let mac = hmac_sha512(token.as_bytes(), &input);
        mac.expect("a hash").to_vec()
    }

    /// Answers a challenge; returns the server's answer to the registration.
    pub(crate) fn answer(&mut self, mac: Vec<u8>) -> RegisterOutcome {
        let proof = Message::AuthProof(AuthProof { mac });
        self.ask(&proof, |message| match message {
            Message::RegisterAck(ack) => Some(ack.outcome),
            _ => None,
        })
    }

    /// Answers a challenge, and waits for nothing.
    pub(crate) fn send_answer(&mut self, mac: Vec<u8>) {
        self.say(&Message::AuthProof(AuthProof { mac }));
        send(&mut self.connection, &self.socket);
    }

    /// The session of this connection, with which another one can begin.
    pub(crate) fn session(&mut self) -> Vec<u8> {
        self.until("a ticket", |connection| {
            connection.session().map(<[u8]>::to_vec)
        })
    }

    /// What a client that comes back with this session sends first: its registration is in it, as
    /// early data. Nothing has been sent yet.
    pub(crate) fn first_flight(
        &mut self,
        session: &[u8],
        client_id: &str,
        instance: u8,
    ) -> Vec<Vec<u8>> {
        self.connection.set_session(session).expect("a session");
        let mut flight = packets(&mut self.connection);
        assert!(self.connection.is_in_early_data(), "it allows early data");
        let capabilities = Capabilities::default();
        let request = request(client_id, instance, capabilities, Vec::new());
        self.say(&request);
        flight.extend(packets(&mut self.connection));
        flight
    }

    /// Sends a first flight, and goes on to the server's answer.
    pub(crate) fn go_on(&mut self, flight: &[Vec<u8>], server: SocketAddr) -> RegisterOutcome {
        for packet in flight {
            self.socket.send_to(packet, server).expect("sent");
        }
        self.hear(|message| match message {
            Message::RegisterAck(ack) => Some(ack.outcome),
            _ => None,
        })
    }

    /// Sends a message when the handshake is complete, and reads others until `answer` takes one.
    fn ask<T>(&mut self, request: &Message, answer: impl FnMut(Message) -> Option<T>) -> T {
        self.until("the end of the handshake", |connection| {
            connection.is_established().then_some(())
        });
        self.say(request);
        self.hear(answer)
    }

    fn say(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let taken = self.connection.stream_send(CONTROL_STREAM, &bytes, false);
        assert_eq!(taken, Ok(bytes.len()));
    }

    /// Reads messages until `answer` takes one.
    fn hear<T>(&mut self, mut answer: impl FnMut(Message) -> Option<T>) -> T {
        let mut decoder = Decoder::new();
        self.until("an answer on the control stream", |connection| {
            let mut read = [0; 1_024];
            while let Ok((length, _)) = connection.stream_recv(CONTROL_STREAM, &mut read) {
                decoder.feed(&read[..length]).expect("well-formed");
            }
            while let Some(message) = decoder.next().expect("well-formed") {
                if let Some(answer) = answer(message) {
                    return Some(answer);
                }
            }
            None
        })
    }

    /// A packet with a short header as anybody can make it who has seen one of this connection's.
    pub(crate) fn forged_packet(&self) -> Vec<u8> {
        let id = self.connection.destination_id();
        [&[0x41], id.as_ref(), &[0x5a; 60]].concat()
    }
}

fn request(
    client_id: &str,
    instance: u8,
    capabilities: Capabilities,
    services: Vec<ServiceOffer>,
) -> Message {
    Message::Register(Register {
        protocol_version: PROTOCOL,
        client_id: client_id.into(),
        instance_id: [instance; 16],
        lane_index: 0,
        lane_count: 1,
        capabilities,
        services,
    })
}

/// A configuration with this certificate, or none.
pub(crate) fn config(dir: &Path, identity: Option<&Identity>) -> Config {
    let mut config = Config::new(PROTOCOL_VERSION).expect("a supported version");
    config.set_application_protos(&[ALPN]).expect("a protocol");
    config.verify_peer(false);
    if let Some(identity) = identity {
        identity.write(dir, "probe");
        let path = |ending: &str| -> PathBuf { dir.join(format!("probe.{ending}")) };
        let (cert, key) = (path("crt"), path("key"));
        let cert = config.load_cert_chain_from_pem_file(cert.to_str().expect("UTF-8"));
        cert.expect("a certificate");
        let key = config.load_priv_key_from_pem_file(key.to_str().expect("UTF-8"));
        key.expect("a key");
    }
    config.set_max_idle_timeout(300_000);
    config.set_initial_max_data(1 << 20);
    config.set_initial_max_streams_bidi(16);
    config.set_initial_max_stream_data_bidi_local(1 << 16);
    config.set_initial_max_stream_data_bidi_remote(1 << 16);
    config.set_cc_algorithm(CongestionControlAlgorithm::Reno);
    config
}

/// The packets that the connection has to send now.
fn packets(connection: &mut Connection) -> Vec<Vec<u8>> {
    let mut packet = [0; PACKET_BYTES_MAX];
    // `Done` means that there is nothing to send for now.
    let next = || {
        connection
            .send(&mut packet)
            .ok()
            .map(|(length, _)| packet[..length].to_vec())
    };
    std::iter::from_fn(next).collect()
}

fn send(connection: &mut Connection, socket: &UdpSocket) {
    let mut packet = [0; PACKET_BYTES_MAX];
    // `Done` means that there is nothing to send for now.
    while let Ok((length, info)) = connection.send(&mut packet) {
        // Nobody there yet is a loss like any other.
        let _lost = socket.send_to(&packet[..length], info.to);
    }
}

fn receive(connection: &mut Connection, socket: &UdpSocket, local: SocketAddr) {
    let longest = Duration::from_millis(100);
    let timeout = connection.timeout().unwrap_or(longest).min(longest);
    let timeout = timeout.max(Duration::from_millis(1));
    socket.set_read_timeout(Some(timeout)).expect("timeout");
    let mut bytes = [0; 1 << 16];
    match socket.recv_from(&mut bytes) {
        Ok((length, from)) => {
            let info = RecvInfo { from, to: local };
            // Packets that cannot be read are ignored, as QUIC requires.
            let _invalid = connection.recv(&mut bytes[..length], info);
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => panic!("{error}"),
    }
    connection.on_timeout();
}
