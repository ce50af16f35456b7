//! The admin endpoint of a running program, asked over TCP or a Unix socket: one request, one
//! answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qmux_config::{Admin, AdminListen};

use crate::failure::Failure;

/// How long the answer may take: the endpoint has a thread of its own.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read: the status of thousands of services has some MB.
const ANSWER_BYTES_MAX: u64 = 32 << 20;

/// The most header lines of an answer: the endpoint sends five.
const HEADERS_MAX: usize = 64;

/// The program to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Asked {
    /// The address of the process's admin endpoint, as in dp.toml: "127.0.0.1:9600" or
    /// "unix:/run/qmux-dp/admin.sock".
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// The config of the process, which names its admin endpoint.
    #[arg(long, value_name = "dp.toml", required_unless_present = "admin")]
    config: Option<PathBuf>,
}

impl Asked {
    /// The endpoint to ask.
    ///
    /// # Errors
    /// If neither the address nor the config names it.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Failure> {
        match (&self.admin, &self.config) {
            (Some(text), _) => {
                let listen = AdminListen::parse(text, Path::new(""));
                let listen = listen.map_err(|why| Failure::Input(format!("--admin: {why}")))?;
                Ok(Endpoint::of(listen))
            }
            (None, Some(config)) => Endpoint::of_config(config),
            (None, None) => Err(Failure::Input(
                "say which program: --config with its dp.toml, or --admin with the address of its \
                 admin endpoint"
                    .into(),
            )),
        }
    }
}

/// The address of an admin endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint(AdminListen);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            AdminListen::Tcp(address) => write!(f, "http://{address}"),
            unix @ AdminListen::Unix(_) => unix.fmt(f),
        }
    }
}

/// An answer of the endpoint.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status code; 200 if all is well.
    pub(crate) status: u16,
    /// The text.
    pub(crate) body: String,
}

impl Endpoint {
    fn of(listen: AdminListen) -> Endpoint {
        Endpoint(match listen {
            AdminListen::Tcp(address) => AdminListen::Tcp(reachable(address)),
            unix @ AdminListen::Unix(_) => unix,
        })
    }

    /// The endpoint of the program with this config.
    ///
    /// # Errors
    /// If the config cannot be read, or has no endpoint. Whatever else is wrong with it does not
    /// matter: the program may run with what it was before.
    pub(crate) fn of_config(path: &Path) -> Result<Endpoint, Failure> {
        let listen = Admin::listen_of(path);
        let Some(listen) = listen.map_err(|errors| Failure::Input(errors.to_string()))? else {
            return Err(Failure::Input(format!(
                "{}: admin.listen is missing; it must be an address, as in \"127.0.0.1:9600\", for \
                 the program to be asked there",
                path.display()
            )));
        };
        Ok(Endpoint::of(listen))
    }

    /// Reads `path`.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask("GET", path, PATIENCE)
    }

    /// Sends an order to `path`.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) fn post(&self, path: &str) -> Result<Answer, Failure> {
        self.ask("POST", path, PATIENCE)
    }

    /// Sends an order to `path` that may take this long.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) fn post_for(&self, path: &str, patience: Duration) -> Result<Answer, Failure> {
        self.ask("POST", path, patience)
    }

    fn ask(&self, method: &str, path: &str, patience: Duration) -> Result<Answer, Failure> {
        let answer = match &self.0 {
            AdminListen::Tcp(address) => {
                TcpStream::connect_timeout(address, PATIENCE).and_then(|stream| {
                    stream.set_read_timeout(Some(patience))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    exchange(stream, method, path, &address.to_string())
                })
            }
            AdminListen::Unix(socket) => UnixStream::connect(socket).and_then(|stream| {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                exchange(stream, method, path, "localhost")
            }),
        };
        answer.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                    "; nobody listens there: does the program run, with this [admin] section?"
                }
                io::ErrorKind::PermissionDenied => "; only its owner may use the socket",
                _ => "",
            };
            Failure::Internal(format!("no answer from {self}{path}: {error}{hint}"))
        })
    }
}

/// The address at which a program that listens there can be reached.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Sends a request and reads the answer up to the end of the connection, which `Connection: close`
/// makes the end of the answer.
fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    host: &str,
) -> io::Result<Answer> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(bytes).map_err(io::Error::other)?;
    let (httparse::Status::Complete(length), Some(status)) = (parsed, head.code) else {
        return Err(io::Error::other("the answer is cut off"));
    };
    let body = bytes.get(length..).unwrap_or_default();
    Ok(Answer {
        status,
        body: String::from_utf8_lossy(body).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_interfaces_is_reached_on_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("192.0.2.1:1", "192.0.2.1:1"),
        ] {
            let listen = listen.parse().expect("literal");
            assert_eq!(reachable(listen).to_string(), reached);
        }
    }

    #[test]
    fn an_answer_is_its_code_and_its_text() {
        let answer = parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\ndraining\n");
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (503, "draining\n"));
        assert!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n").is_err());
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_err());
    }
}
