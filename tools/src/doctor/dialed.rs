//! A connection that the doctor has begun: the handshake, the registration, and what they end in.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use boring::ssl::SslRef;
use qmux_config::{LocalService, token_proof};
use qmux_proto::control::{
    AuthChallenge, AuthProof, Capabilities, Decoder, GoAway, GoAwayReason, INSTANCE_ID_BYTES,
    Message, Protocols, Register, RegisterOutcome, ServiceOffer, ServiceVerdict,
};
use qmux_proto::{FlowError, LaneError, PROTOCOL_VERSION};
use quiche::{Connection, RecvInfo, Shutdown};

use super::carrier::{Carrier, is_too_large, kind_of};
use super::connection::{Attempt, End, random};
use super::credentials::Noted;

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

/// A connection that is being established.
pub(super) struct Dialed<'a> {
    attempt: &'a Attempt<'a>,
    pub(super) connection: Connection,
    carrier: Carrier,
    pub(super) noted: Noted,
    decoder: Decoder,
    pub(super) was_answered: bool,
    has_registered: bool,
    proved: bool,
    unreachable: Option<ErrorKind>,
    /// How the TLS connection around it ended.
    tls_ended: Option<String>,
}

impl<'a> Dialed<'a> {
    /// A connection of which nothing has been sent yet.
    pub(super) fn new(
        attempt: &'a Attempt<'a>,
        connection: Connection,
        carrier: Carrier,
        noted: Noted,
    ) -> Dialed<'a> {
        Dialed {
            attempt,
            connection,
            carrier,
            noted,
            decoder: Decoder::new(),
            was_answered: false,
            has_registered: false,
            proved: false,
            unreachable: None,
            tls_ended: None,
        }
    }

    /// Sends and receives until the server has answered the registration, or there is no hope.
    pub(super) fn until_the_end(&mut self) -> End {
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
    pub(super) fn refused_service(&mut self) -> Option<(String, String)> {
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
    pub(super) fn size_of_the_path(&mut self) -> Option<usize> {
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
    pub(super) fn leave(&mut self) {
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
