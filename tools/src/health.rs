//! `qmux-ctl health`: asks a running program's admin endpoint whether it is well, for health
//! commands of containers without a shell.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use qmux_config::Config;

use crate::failure::Failure;
use crate::output;

/// How long the answer may take: the endpoint has a thread of its own.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read: a line for each core or reason.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config of the program that runs; it must have an [admin] section.
    #[arg(long, value_name = "dp.toml")]
    config: PathBuf,
    /// Ask whether it can serve (/readyz), not only whether it runs (/healthz).
    #[arg(long)]
    ready: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let shown = args.config.display();
    let config = Config::load(&args.config).map_err(|errors| Failure::Input(errors.to_string()))?;
    let Some(admin) = config.admin else {
        return Err(Failure::Input(format!(
            "{shown}: admin.listen is missing; it must be an address, as in \"127.0.0.1:9600\", \
             for the program to be asked there"
        )));
    };
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let address = reachable(admin.listen);
    let answer = asked(address, path).map_err(|error| {
        Failure::Internal(format!("no answer from http://{address}{path}: {error}"))
    })?;
    let body = answer
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body)
        .trim();
    if answer.split_whitespace().nth(1) == Some("200") {
        return output::to_stdout(&format!("{body}\n"));
    }
    Err(Failure::Internal(format!(
        "http://{address}{path} says: {body}"
    )))
}

/// Where to reach what listens there.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn asked(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
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
}
