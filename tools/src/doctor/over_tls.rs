//! TLS over TCP, as a client uses it where UDP does not pass: the way there, directly or through a
//! proxy, and the QUIC packets inside.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use boring::ssl::{HandshakeError, Ssl, SslStream};
use boring::x509::{X509, X509VerifyError};
use qmux_config::ServerTarget;
use qmux_config::proxy::{ANSWER_BYTES_MAX, Dialogue, Place, Step};
use qmux_config::{ProxyAddress, explain};
use qmux_proto::ALPN_OVER_TLS;

use super::credentials::{Credentials, Noted};

/// How long TCP may take to connect; then the whole dialogue with a proxy, and then the whole
/// handshake. Whoever sends a byte now and then gets no longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes in front of a packet: its length.
const LENGTH_BYTES: usize = 2;

/// Why there is no TLS connection.
#[derive(Debug)]
pub(super) enum NoTls {
    /// It does not get through, in words.
    Blocked(String),
    /// The server's certificate is not acceptable, and not only for its time.
    BadServer {
        why: X509VerifyError,
        server_cert: Option<X509>,
        of_time: Option<X509VerifyError>,
    },
}

impl NoTls {
    fn by(why: impl std::fmt::Display) -> NoTls {
        NoTls::Blocked(why.to_string())
    }
}

/// A TLS connection to a server of qmux-dp.
pub(super) struct Carrier {
    stream: SslStream<Timed>,
    noted: Noted,
    /// What has been received and is no whole packet yet.
    received: Vec<u8>,
}

impl Carrier {
    /// Opens one to `peer`, or to `place` through a proxy.
    ///
    /// # Errors
    /// The reason why there is none.
    pub(super) fn open(
        server: &ServerTarget,
        credentials: &Credentials,
        peer: SocketAddr,
        through: Option<(&ProxyAddress, &Place)>,
    ) -> Result<Carrier, NoTls> {
        let mut stream = match through {
            None => connect(peer).map_err(NoTls::by)?,
            Some((proxy, place)) => connect_through(proxy, place)
                .map_err(|why| NoTls::Blocked(format!("the proxy {proxy}: {why}")))?,
        };
        let (mut context, noted) = credentials.context().map_err(NoTls::by)?;
        let mut protocols = vec![u8::try_from(ALPN_OVER_TLS.len()).unwrap_or(0)];
        protocols.extend_from_slice(ALPN_OVER_TLS);
        context.set_alpn_protos(&protocols).map_err(NoTls::by)?;
        let mut ssl = Ssl::new(&context.build()).map_err(NoTls::by)?;
        let name = server.server_name.as_str();
        let expected = match name.parse() {
            Ok(ip) => ssl.param_mut().set_ip(ip),
            Err(_) => ssl
                .set_hostname(name)
                .and_then(|()| ssl.param_mut().set_host(name)),
        };
        expected.map_err(NoTls::by)?;
        stream.must_end_within(PATIENCE);
        let stream = ssl.connect(stream).map_err(|error| failed(error, &noted))?;
        if stream.ssl().selected_alpn_protocol() != Some(ALPN_OVER_TLS) {
            let why = "a TLS server answers there that is no server of qmux-dp";
            return Err(NoTls::by(why));
        }
        Ok(Carrier {
            stream,
            noted,
            received: Vec::new(),
        })
    }

    /// The error that the server's certificate has expired or is not valid yet.
    pub(super) fn of_time(&self) -> Option<X509VerifyError> {
        self.noted.of_time()
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.get_ref().stream.local_addr()
    }

    pub(super) fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(packet);
        self.stream.get_mut().must_end_within(PATIENCE);
        self.stream.write_all(&bytes)
    }

    /// Receives one packet, and waits for it no longer than this.
    pub(super) fn receive(&mut self, wait: Duration) -> io::Result<Vec<u8>> {
        if let Some(packet) = self.first_packet() {
            return Ok(packet);
        }
        self.stream.get_mut().must_end_within(wait);
        let mut bytes = [0; 1 << 14];
        let length = self.stream.read(&mut bytes)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&bytes[..length]);
        self.first_packet()
            .ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    fn first_packet(&mut self) -> Option<Vec<u8>> {
        let length = self.received.first_chunk::<LENGTH_BYTES>()?;
        let end = LENGTH_BYTES + usize::from(u16::from_be_bytes(*length));
        let packet = self.received.get(LENGTH_BYTES..end)?.to_vec();
        self.received.drain(..end);
        Some(packet)
    }
}

/// A connection on which everything has to be done by a time.
#[derive(Debug)]
struct Timed {
    stream: TcpStream,
    until: Instant,
}

impl Timed {
    /// Sets the time by which what is done from now on must have been done.
    fn must_end_within(&mut self, patience: Duration) {
        self.until = Instant::now() + patience;
    }

    /// The time that is left, for one operation.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(ErrorKind::WouldBlock.into()),
            false => Ok(Some(left)),
        }
    }
}

impl io::Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl io::Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn failed(error: HandshakeError<Timed>, noted: &Noted) -> NoTls {
    match (error, noted.other()) {
        (HandshakeError::Failure(stream), Some(why)) => NoTls::BadServer {
            why,
            server_cert: stream.ssl().peer_certificate(),
            of_time: noted.of_time(),
        },
        (HandshakeError::WouldBlock(_), _) => NoTls::by("the handshake stalls"),
        (error, _) => NoTls::by(error),
    }
}

fn connect(peer: SocketAddr) -> io::Result<Timed> {
    let stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
    stream.set_nodelay(true)?;
    Ok(Timed {
        stream,
        until: Instant::now() + PATIENCE,
    })
}

/// Connects to a proxy, and opens a way to `place` through it.
fn connect_through(proxy: &ProxyAddress, place: &Place) -> Result<Timed, String> {
    let addresses = (proxy.host.as_str(), proxy.port).to_socket_addrs();
    let unresolved = |error: io::Error| {
        explain::unresolved(
            &proxy.host,
            &error.to_string(),
            "proxy in [[client.servers]]",
        )
    };
    let mut last = "its name has no address".to_owned();
    for address in addresses.map_err(unresolved)? {
        match connect(address) {
            Ok(mut stream) => {
                converse(&mut stream, proxy, place)?;
                return Ok(stream);
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Runs the dialogue. What the proxy sends is read byte by byte, because TLS follows it.
fn converse(stream: &mut Timed, proxy: &ProxyAddress, place: &Place) -> Result<(), String> {
    let (mut dialogue, greeting) = Dialogue::begin(proxy, place)?;
    let text = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("no way within {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    };
    stream.write_all(&greeting).map_err(text)?;
    let mut said = Vec::new();
    for _ in 0..ANSWER_BYTES_MAX {
        let mut byte = [0; 1];
        if stream.read(&mut byte).map_err(text)? == 0 {
            return Err("it closed the connection without an answer".into());
        }
        said.push(byte[0]);
        match dialogue.next(&said)? {
            Step::Wait => {}
            Step::Through => return Ok(()),
            Step::Say(words) => {
                said.clear();
                stream.write_all(&words).map_err(text)?;
            }
        }
    }
    Err(format!(
        "it answers with more than {ANSWER_BYTES_MAX} bytes, so it is no such proxy"
    ))
}
