//! What ends badly on one side ends badly on the other: a reset is never turned into a clean end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;

use rustix::process::Signal;

use crate::support::counters;
use crate::support::ports;
use crate::support::service::{self, TcpService};
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::visitor::{self, Ending};
use crate::support::wait::PATIENCE;

#[test]
fn a_visitors_reset_arrives_at_the_service_as_a_reset() {
    let (ended, endings) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        stream.write_all(b"go").expect("sent");
        ended
            .send(visitor::read_to_end(&mut stream))
            .expect("the test waits");
    });
    let tunnel = Tunnel::to(service.address);
    for _ in 0..20 {
        let mut stream = visitor::connect(tunnel.traffic());
        assert_eq!(visitor::read_exact(&mut stream, 2), b"go");
        visitor::reset(stream);
        let ending = endings.recv_timeout(PATIENCE).expect("the service notices");
        assert_eq!(ending, Ending::Reset(Vec::new()));
    }
}

#[test]
fn a_services_reset_arrives_at_the_visitor_as_a_reset() {
    let service = TcpService::start(|mut stream| {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).expect("a byte");
        visitor::reset(stream);
    });
    let tunnel = Tunnel::to(service.address);
    for _ in 0..20 {
        let mut stream = visitor::connect(tunnel.traffic());
        stream.write_all(b"x").expect("sent");
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Reset(Vec::new()));
    }
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_is_no_clean_end() {
    let service = TcpService::start(|mut stream| {
        visitor::send_random(&mut stream, 1, 1 << 20).expect("sent");
        // The reset must not come before the visitor has some of the transfer.
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).expect("a byte");
        visitor::reset(stream);
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::receive_random(&mut stream, 1, 1 << 16);
    stream.write_all(b"x").expect("sent");
    let ending = visitor::read_to_end(&mut stream);
    assert!(matches!(ending, Ending::Reset(_)), "it ended cleanly");
}

#[test]
fn a_reset_after_a_half_close_still_arrives() {
    let (ended, endings) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        stream.write_all(b"go").expect("sent");
        visitor::finish(&stream);
        ended
            .send(visitor::read_to_end(&mut stream))
            .expect("the test waits");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    assert_eq!(
        visitor::read_to_end(&mut stream),
        Ending::Clean(b"go".to_vec())
    );
    visitor::reset(stream);
    let ending = endings.recv_timeout(PATIENCE).expect("the service notices");
    assert_eq!(ending, Ending::Reset(Vec::new()));
}

#[test]
fn a_service_that_reset_makes_the_visitors_sends_fail() {
    let service = TcpService::start(visitor::reset);
    let tunnel = Tunnel::to(service.address);
    let error = match visitor::try_connect(tunnel.traffic()) {
        Ok(mut stream) => loop {
            if let Err(error) = stream.write_all(&[b'x'; 1 << 16]) {
                break error;
            }
        },
        // The reset was faster than the return from connect(2).
        Err(error) => error,
    };
    let kind = error.kind();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{error}"
    );
}

#[test]
fn resets_do_not_disturb_the_other_flows() {
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut steady = visitor::connect(tunnel.traffic());
    for _ in 0..100 {
        let mut stream = visitor::connect(tunnel.traffic());
        stream.write_all(&[b'x'; 50_000]).expect("sent");
        visitor::reset(stream);
        visitor::exchange(&mut steady, b"still there?");
    }
}

#[test]
fn a_service_that_is_down_resets_the_visitor_until_it_is_up() {
    let address = ports::free_address();
    let tunnel = Tunnel::to(address);
    for _ in 0..5 {
        let ending = visitor::ending_of(tunnel.traffic(), b"");
        assert_eq!(ending, Ending::Reset(Vec::new()));
    }
    if !subject::only_wire("what the client logs") {
        let refused = |line: &str| line.to_lowercase().contains("refused");
        let line = tunnel.client.wait_for_line("the dial was refused", refused);
        let named = line.contains(&address.to_string());
        assert!(named, "the log line does not name {address}: {line}");
    }

    let listener = TcpListener::bind(address).expect("still free");
    let service = TcpService::start_on(listener, service::echo);
    visitor::echo(tunnel.traffic(), b"now it is up");
    assert_eq!(service.accepted(), 1);
}

#[test]
fn a_connection_without_a_client_is_reset() {
    use crate::support::tunnel::{Server, ServerSetup, Site};
    let site = Site::new();
    let server = Server::start(&site, &ServerSetup::default());
    // The visitor is held for a moment or reset at once: never served, never ended cleanly.
    let ending = visitor::ending_of(server.traffic(), b"");
    assert_eq!(ending, Ending::Reset(Vec::new()));
}

#[test]
fn visitors_who_leave_in_the_middle_of_a_download_leave_nothing_behind() {
    const STREAMS: usize = 64;
    const VISITORS: usize = 4 * STREAMS;
    if subject::only_wire("streams that were given up") {
        return;
    }
    let service = TcpService::start(|mut stream| {
        // A visitor's request ends with its FIN.
        let _request = visitor::read_to_end(&mut stream);
        while stream.write_all(&[0; 4096]).is_ok() {}
    });
    let client = ClientSetup {
        quic: vec!["max_incoming_streams = 64"],
        ..ClientSetup::default()
    };
    let mut tunnel = Tunnel::with(&ServerSetup::default(), &client, service.address);
    for _ in 0..VISITORS {
        let mut stream = visitor::connect(tunnel.traffic());
        stream.write_all(b"?").expect("sent");
        visitor::finish(&stream);
        visitor::read_exact(&mut stream, 10_000);
        visitor::reset(stream);
    }
    // Whoever stops does not wait for what will never be acknowledged.
    tunnel.server.program.signal(Signal::TERM);
    assert_eq!(tunnel.server.program.wait_for_exit().code(), Some(0));
    let counters = counters::of(&tunnel.server.program);
    assert_eq!(counters::total(&counters, "lanes_cut_off"), 0);
}
