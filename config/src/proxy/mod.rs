//! Proxies that TLS connections go through: which one, and the dialogue that opens a way through
//! it.
//!
//! There is no I/O in here: a dialogue says what to send, and takes what comes. qmux-dp and
//! `qmux-ctl doctor` go the same way by it, each with its own sockets.

mod environment;
mod http;
mod socks5;

use std::net::{IpAddr, SocketAddr};

use crate::transport::{Proxy, ProxyAddress, ProxyProtocolOut};

/// The most bytes that a proxy may send before the way is open; the headers of an error page are
/// shorter.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The destination of a way through a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
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
pub enum Step {
    /// Wait for more bytes.
    Wait,
    /// Send these bytes.
    Say(Vec<u8>),
    /// The way is open.
    Through,
}

/// The proxy for a server at `host`, if there is one.
///
/// # Errors
/// If the environment names something that is not a proxy.
pub fn of(proxy: &Proxy, host: &str, port: u16) -> Result<Option<ProxyAddress>, String> {
    match proxy {
        Proxy::None => Ok(None),
        Proxy::Fixed(proxy) => Ok(Some(proxy.clone())),
        Proxy::Environment => environment::proxy_for(host, port, |name| std::env::var(name).ok()),
    }
}

/// The dialogue with one proxy.
#[derive(Debug)]
pub struct Dialogue(Kind);

#[derive(Debug)]
enum Kind {
    Http,
    Socks5(socks5::Dialogue),
}

impl Dialogue {
    /// Begins the dialogue that opens a way to `place`; also returns what to send first.
    ///
    /// # Errors
    /// If the destination cannot be expressed in the proxy's protocol.
    pub fn begin(proxy: &ProxyAddress, place: &Place) -> Result<(Dialogue, Vec<u8>), String> {
        Ok(match proxy.protocol {
            ProxyProtocolOut::Http => (Dialogue(Kind::Http), http::request(proxy, place)),
            ProxyProtocolOut::Socks5 => {
                let dialogue = socks5::Dialogue::new(proxy, place)?;
                let greeting = dialogue.greeting();
                (Dialogue(Kind::Socks5(dialogue)), greeting)
            }
        })
    }

    /// Takes everything that the proxy has sent since this side sent something, as far as it came.
    /// It must be given after every byte, because TLS follows the proxy's last one.
    ///
    /// # Errors
    /// The proxy's refusal, in words.
    pub fn next(&mut self, said: &[u8]) -> Result<Step, String> {
        match &mut self.0 {
            Kind::Http => http::answer(said),
            Kind::Socks5(dialogue) => dialogue.next(said),
        }
    }
}
