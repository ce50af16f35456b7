//! Proxies that TLS connections go through: which one, and the dialogue that opens a tunnel through
//! it.
//!
//! The dialogues themselves ([`http`], [`socks5`]) know no sockets: they say what to send, and take
//! what comes. Only this module reads and writes, with a bound on how much a proxy may say.

mod environment;
mod http;
mod socks5;

use std::io;
use std::net::{IpAddr, SocketAddr};

use qmux_config::{Proxy, ProxyAddress, ProxyProtocolOut};

use crate::sys::tcp::TcpSocket;

/// The most bytes that a proxy may send before the tunnel is open; the headers of an error page are
/// shorter.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The destination of a tunnel through a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// An address.
    Address(SocketAddr),
    /// A name, which the proxy resolves, and a port.
    Name(String, u16),
}

impl Place {
    /// The host as it is written in a URL.
    fn host(&self) -> String {
        match self {
            Place::Name(name, _) => name.clone(),
            Place::Address(address) => match address.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
        }
    }

    fn port(&self) -> u16 {
        match self {
            Place::Name(_, port) => *port,
            Place::Address(address) => address.port(),
        }
    }
}

/// The next step of a dialogue.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Wait for more bytes.
    Wait,
    /// Send these bytes.
    Say(Vec<u8>),
    /// The tunnel is open.
    Through,
}

/// The proxy for a server at `host`, if there is one.
///
/// # Errors
/// If the environment names something that is not a proxy.
pub(crate) fn of(proxy: &Proxy, host: &str, port: u16) -> Result<Option<ProxyAddress>, String> {
    match proxy {
        Proxy::None => Ok(None),
        Proxy::Fixed(proxy) => Ok(Some(proxy.clone())),
        Proxy::Environment => environment::proxy_for(host, port, |name| std::env::var(name).ok()),
    }
}

/// Opens a tunnel to `place` through the proxy that `socket` is connected to.
///
/// # Errors
/// The proxy's refusal, in words.
pub(super) async fn open(
    socket: &TcpSocket,
    proxy: &ProxyAddress,
    place: &Place,
) -> Result<(), String> {
    match proxy.protocol {
        ProxyProtocolOut::Http => {
            send(socket, &http::request(proxy, place)).await?;
            converse(socket, http::answer).await
        }
        ProxyProtocolOut::Socks5 => {
            let mut dialogue = socks5::Dialogue::new(proxy, place)?;
            send(socket, &dialogue.greeting()).await?;
            converse(socket, |said| dialogue.next(said)).await
        }
    }
}

/// Runs a dialogue. What the proxy sends is read byte by byte towards its end, because TLS follows
/// it. `next` is given everything that came since this side sent something.
async fn converse(
    socket: &TcpSocket,
    mut next: impl FnMut(&[u8]) -> Result<Step, String>,
) -> Result<(), String> {
    let mut said = Vec::new();
    let mut in_all = 0;
    loop {
        let mut byte = [0; 1];
        match socket.try_read(&mut byte) {
            Ok(0) => return Err("it closed the connection without an answer".into()),
            Ok(_) => said.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await.map_err(|error| error.to_string())?;
                continue;
            }
            Err(error) => return Err(error.to_string()),
        }
        in_all += 1;
        match next(&said)? {
            Step::Wait => {}
            Step::Through => return Ok(()),
            Step::Say(words) => {
                said.clear();
                send(socket, &words).await?;
            }
        }
        if in_all >= ANSWER_BYTES_MAX {
            return Err(format!(
                "it answers with more than {ANSWER_BYTES_MAX} bytes, so it is no such proxy"
            ));
        }
    }
}

async fn send(socket: &TcpSocket, mut words: &[u8]) -> Result<(), String> {
    while !words.is_empty() {
        match socket.try_write(words) {
            Ok(count) => words = &words[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable().await.map_err(|error| error.to_string())?;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
