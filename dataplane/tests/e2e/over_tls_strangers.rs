//! Strangers at the TCP port where lanes come over TLS: they cost little, and honest clients get in
//! beside them.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::tunnel::{ClientSetup, Server, ServerSetup, Site, start_client};
use crate::support::{counters, subject, visitor};

const WHY: &str = "only qmux-dp speaks TLS";

/// More strangers than a core has places for.
const STRANGERS: usize = 1_500;

/// Memory that the server may take for them, in bytes: some tens of kilobytes for each that has a
/// place.
const MEMORY_BYTES_MAX: u64 = 128 << 20;

/// Connects from another network than that of honest clients.
fn come_to(address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from = SocketAddr::from((Ipv4Addr::new(127, 0, 77, 1), 0));
    socket.bind(&from.into()).expect("an address of this host");
    socket.connect(&address.into()).ok()?;
    Some(socket.into())
}

/// The beginning of a TLS record with a ClientHello of 500 bytes that never comes whole.
const HALF_A_HELLO: [u8; 9] = [22, 3, 1, 1, 244, 1, 0, 1, 240];

#[test]
fn floods_of_every_kind_at_the_tls_port_leave_honest_lanes_unharmed() {
    if subject::only_wire(WHY) {
        return;
    }
    let site = Site::new();
    let mut server = Server::start(&site, &ServerSetup::default());
    let service = TcpService::echo();
    let over_tls = ClientSetup {
        server: vec!["transport = \"tls\""],
        ..ClientSetup::default()
    };
    let client = start_client(&site, &over_tls, server.quic(), service.address);
    let mut random = Random::new(6);
    let mut open = visitor::connect(server.traffic());
    visitor::exchange(&mut open, b"before the flood");
    let before = server.program.resident_bytes();
    let mut strangers = Vec::new();
    for number in 0..STRANGERS {
        let Some(mut stream) = come_to(server.quic()) else {
            continue;
        };
        // A stranger that was refused has been reset.
        let _said = match number % 4 {
            // Strangers are silent, slow, or noisy.
            0 => Ok(()),
            1 => stream.write_all(&HALF_A_HELLO),
            2 => stream.write_all(&random.bytes(1_000)),
            _ => stream.write_all(b"GET / HTTP/1.1\r\n\r\n"),
        };
        strangers.push(stream);
        if number % 100 == 0 {
            visitor::exchange(&mut open, &random.bytes(100));
        }
    }
    let grown = server.program.resident_bytes().saturating_sub(before);
    assert!(grown <= MEMORY_BYTES_MAX, "{grown} bytes for strangers");
    // An honest client comes in the midst of it.
    drop(client);
    let client = start_client(&site, &over_tls, server.quic(), service.address);
    visitor::echo(server.traffic(), &random.bytes(1_000_003));
    drop((client, strangers));
    server.program.signal(Signal::TERM);
    server.program.wait_for_exit();
    let counters = counters::of(&server.program);
    assert!(counters::total(&counters, "tls_accepted") >= STRANGERS as u64);
    assert!(counters::total(&counters, "tls_refused") > 0);
    assert!(counters::total(&counters, "tls_handshakes_failed") > 0);
}
