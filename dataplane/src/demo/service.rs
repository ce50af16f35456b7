//! The demo's service: echoes TCP and UDP, and answers a browser with a page. It uses plain
//! threads, because it is not part of the tunnel.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>qmux-dp</title>\
    <h1>It works</h1><p>This page came through a QUIC tunnel: your browser spoke to the server's traffic address, \
    the service behind the client answered.\n";

/// Bytes echoed at once.
const ECHO_BYTES: usize = 128 << 10;

/// Number of ports that are tried: one that is free for TCP may be taken for UDP.
const PORTS_TRIED_MAX: usize = 32;

/// A port of loopback that is free for TCP and UDP.
fn bind() -> io::Result<(TcpListener, UdpSocket)> {
    let both = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let socket = UdpSocket::bind(listener.local_addr()?)?;
        Ok((listener, socket))
    };
    let mut bound = both();
    for _ in 1..PORTS_TRIED_MAX {
        if bound.is_ok() {
            break;
        }
        bound = both();
    }
    bound
}

/// Starts the service on a free port of loopback, the same for TCP and UDP.
pub(super) fn start() -> io::Result<SocketAddr> {
    let (listener, socket) = bind()?;
    let addr = listener.local_addr()?;
    thread::Builder::new()
        .name("demo-udp".into())
        .spawn(move || echo_udp(&socket))?;
    thread::Builder::new()
        .name("demo-tcp".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let started = thread::Builder::new()
                    .name("demo-flow".into())
                    .spawn(move || {
                        // A visitor that goes away ends its thread; there is nobody to tell.
                        let _gone = serve(stream);
                    });
                if let Err(error) = started {
                    tracing::warn!(%error, "demo service: no thread for a visitor");
                }
            }
        })?;
    Ok(addr)
}

fn echo_udp(socket: &UdpSocket) {
    let mut datagram = vec![0; 1 << 16];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _gone = socket.send_to(&datagram[..length], from);
        }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; ECHO_BYTES];
    let mut read = stream.read(&mut bytes)?;
    if bytes[..read].starts_with(b"GET ") || bytes[..read].starts_with(b"HEAD ") {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PAGE}",
            PAGE.len()
        )?;
        return stream.shutdown(Shutdown::Write);
    }
    while read > 0 {
        stream.write_all(&bytes[..read])?;
        read = stream.read(&mut bytes)?;
    }
    stream.shutdown(Shutdown::Write)
}
