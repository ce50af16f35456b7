//! Proxies that TLS connections go through: which one, and the few words that open a way through it.
//!
//! The dialogues themselves ([`http`], [`socks5`]) know no sockets: they say what to send, and take what comes. Here is
//! the one place that reads and writes, with a bound on how much a proxy may say.

mod environment;
mod http;
mod socks5;

use std::io;
use std::net::{IpAddr, SocketAddr};

use qmux_config::{Proxy, ProxyAddress, ProxyProtocolOut};

use crate::sys::tcp::TcpSocket;

/// What a proxy may say in all before there is a way: the headers of a page that tells why not are less.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Where a way through a proxy leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// To an address.
    Address(SocketAddr),
    /// To a name, which the proxy resolves.
    Name(String, u16),
}

impl Place {
    /// The host as it stands in a URL.
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

/// What a dialogue does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// More must come.
    Wait,
    /// This is to be sent.
    Say(Vec<u8>),
    /// There is a way.
    Through,
}

/// The proxy for a server at `host`, if there is one.
///
/// # Errors
/// If the environment names one that is none.
pub(crate) fn of(proxy: &Proxy, host: &str, port: u16) -> Result<Option<ProxyAddress>, String> {
    match proxy {
        Proxy::None => Ok(None),
        Proxy::Fixed(proxy) => Ok(Some(proxy.clone())),
        Proxy::Environment => environment::proxy_for(host, port, |name| std::env::var(name).ok()),
    }
}

/// Opens a way to `place` through the proxy that `socket` is connected to.
///
/// # Errors
/// What the proxy says against it.
pub(super) async fn open(
    socket: &TcpSocket,
    proxy: &ProxyAddress,
    place: &Place,
) -> Result<(), String> {
    match proxy.protocol {
        ProxyProtocolOut::Http => {
            send(socket, &http::request(proxy, place)).await?;
            converse(socket, |said| http::answer(said)).await
        }
        ProxyProtocolOut::Socks5 => {
            let mut dialogue = socks5::Dialogue::new(proxy, place)?;
            send(socket, &dialogue.greeting()).await?;
            converse(socket, |said| dialogue.next(said)).await
        }
    }
}

/// Reads what the proxy says, byte by byte at its end: what comes after it is TLS. `next` is given all that came since
/// the last thing that was said.
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
