//! One visitor at a time: bytes come back unchanged, whoever speaks first and however much there
//! is.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::visitor::{self, Ending};

#[test]
fn bytes_come_back_unchanged() {
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut random = Random::new(1);
    for length in [1, 2, 1_199, 1_200, 16_383, 65_536, 1_000_003] {
        visitor::echo(tunnel.traffic(), &random.bytes(length));
    }
    assert_eq!(service.accepted(), 7);
}

#[test]
fn one_connection_carries_many_small_exchanges() {
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    let mut random = Random::new(2);
    for _ in 0..1_000 {
        let length = random.between(1..=100);
        let bytes = random.bytes(length);
        stream.write_all(&bytes).expect("sent");
        assert_eq!(visitor::read_exact(&mut stream, bytes.len()), bytes);
    }
    visitor::finish(&stream);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
}

#[test]
fn large_streams_in_both_directions_at_once_arrive_complete() {
    const LENGTH: usize = 48 << 20;
    let service = TcpService::start(|mut stream| {
        let mut writer = stream.try_clone().expect("clone");
        let sender = std::thread::spawn(move || {
            visitor::send_random(&mut writer, 4, LENGTH).expect("the service may send");
            visitor::finish(&writer);
        });
        visitor::receive_random(&mut stream, 3, LENGTH);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
        sender.join().expect("the sender");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    let mut writer = stream.try_clone().expect("clone");
    let sender = std::thread::spawn(move || {
        visitor::send_random(&mut writer, 3, LENGTH).expect("the visitor may send");
        visitor::finish(&writer);
    });
    visitor::receive_random(&mut stream, 4, LENGTH);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    sender.join().expect("the sender");
    service.wait_until_done();
}

#[test]
fn a_service_that_speaks_first_is_heard() {
    let service = TcpService::start(|mut stream| {
        stream.write_all(b"220 welcome\r\n").expect("sent");
        crate::support::service::echo(stream);
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    assert_eq!(visitor::read_exact(&mut stream, 13), b"220 welcome\r\n");
    stream.write_all(b"HELO\r\n").expect("sent");
    assert_eq!(visitor::read_exact(&mut stream, 6), b"HELO\r\n");
}

#[test]
fn a_service_that_speaks_and_leaves_is_heard_to_the_end() {
    let service = TcpService::start(|mut stream| {
        visitor::send_random(&mut stream, 5, 300_000).expect("sent");
    });
    let tunnel = Tunnel::to(service.address);
    for _ in 0..50 {
        let mut stream = visitor::connect(tunnel.traffic());
        visitor::receive_random(&mut stream, 5, 300_000);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    }
}

#[test]
fn an_empty_connection_reaches_the_service_and_ends_cleanly() {
    let service = TcpService::start(|mut stream: TcpStream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("a clean end");
        assert_eq!(bytes, b"");
    });
    let tunnel = Tunnel::to(service.address);
    for _ in 0..20 {
        let mut stream = visitor::connect(tunnel.traffic());
        visitor::finish(&stream);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
    }
    assert_eq!(service.accepted(), 20);
}

#[test]
fn bytes_that_look_like_the_protocols_own_are_not_touched() {
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    for byte in [0x00, 0x01, 0x40, 0x80, 0xc0, 0xff] {
        visitor::echo(tunnel.traffic(), &[byte; 5_000]);
    }
}

#[test]
fn ipv6_works_like_ipv4() {
    let service = TcpService::echo();
    let server = ServerSetup {
        ipv6: true,
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&server, &ClientSetup::default(), service.address);
    visitor::echo(tunnel.traffic(), &Random::new(6).bytes(100_000));
}

#[test]
fn the_servers_name_may_be_its_ip_address() {
    let service = TcpService::echo();
    let client = ClientSetup {
        server_name: "127.0.0.1",
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&ServerSetup::default(), &client, service.address);
    visitor::echo(tunnel.traffic(), b"by address");
}
