//! UDP payloads of every size come back unchanged, whatever they look like.

use std::net::SocketAddr;

use crate::support::random::Random;
use crate::support::service::UdpService;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::{http, ports, subject, wait};

/// Sizes around every boundary: none, a header's, QUIC's smallest packet, Ethernet's, the largest
/// QUIC packet, UDP's largest.
const SIZES: [usize; 17] = [
    0, 1, 2, 3, 100, 1_150, 1_199, 1_200, 1_472, 1_473, 8_192, 16_000, 16_383, 16_384, 40_000,
    65_506, 65_507,
];
/// Datagrams that may have to be sent again in one test, of dozens: a busy machine loses one now
/// and then.
const REPEATED_MAX: usize = 3;

fn assert_echoes(tunnel: &Tunnel, sizes: &[usize]) {
    let mut random = Random::new(1);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    for size in sizes {
        for _ in 0..3 {
            let bytes = random.bytes(*size);
            visitor.echo(&bytes);
        }
    }
    let repeated = visitor.repeated;
    assert!(repeated <= REPEATED_MAX, "{repeated} datagrams were lost");
}

#[test]
fn payloads_of_every_size_come_back() {
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    assert_echoes(&tunnel, &SIZES);
    assert_eq!(service.sources(), 1, "one visitor is one flow");
}

#[test]
fn every_size_also_passes_where_packets_are_small() {
    let service = UdpService::echo();
    let server = ServerSetup {
        quic: vec!["max_udp_payload = 1200"],
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        quic: vec!["max_udp_payload = 1200"],
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, service.address);
    assert_echoes(&tunnel, &SIZES);
}

#[test]
fn every_size_from_0_to_1600_comes_back() {
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut random = Random::new(2);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    for size in 0..=1_600 {
        visitor.echo(&random.bytes(size));
    }
    let repeated = visitor.repeated;
    assert!(repeated <= REPEATED_MAX, "{repeated} datagrams were lost");
}

#[test]
fn the_first_packet_of_a_flow_may_have_any_size() {
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut random = Random::new(3);
    // All stay until the end: the port of one that is gone may be given to the next, which then has
    // the same flow.
    let mut visitors: Vec<_> = SIZES
        .iter()
        .map(|_| UdpVisitor::new(tunnel.traffic()))
        .collect();
    for (visitor, size) in visitors.iter_mut().zip(SIZES) {
        visitor.echo(&random.bytes(size));
    }
    assert_eq!(service.sources(), SIZES.len());
}

#[test]
fn payloads_that_look_like_headers_come_back() {
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    for first in [0x00, 0x01, 0x02, 0x03, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff] {
        for third in [0x00, 0x40, 0x80, 0x81, 0x82, 0xff] {
            for size in [3, 4, 12, 60, 1_200] {
                let mut bytes = vec![first; size];
                bytes[2] = third;
                visitor.echo(&bytes);
            }
        }
    }
    let repeated = visitor.repeated;
    assert!(repeated <= REPEATED_MAX, "{repeated} datagrams were lost");
}

#[test]
fn a_burst_of_large_datagrams_is_not_mixed_up() {
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    visitor.echo(b"open the flow");
    let mut random = Random::new(4);
    for _ in 0..50 {
        // No more than fits into one socket buffer of default size.
        let burst: Vec<Vec<u8>> = (0..3)
            .map(|_| {
                let size = random.between(16_384..=65_507);
                random.bytes(size)
            })
            .collect();
        for bytes in &burst {
            visitor.send(bytes);
        }
        // Anything put together from two datagrams fails in here; order and loss are UDP's.
        let last = burst.last().expect("three");
        if !visitor.receive(last) {
            visitor.echo(last);
        }
    }
}

#[test]
fn without_fragmentation_small_datagrams_pass_and_large_ones_do_not() {
    let service = UdpService::echo();
    let server = ServerSetup {
        udp: vec!["enable_fragmentation = false"],
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        udp: vec!["enable_fragmentation = false"],
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, service.address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    visitor.echo(&[1; 1_000]);
    visitor.send(&[2; 65_507]);
    // Datagrams of a flow keep their order here, so whatever came of the large one would have come
    // by now.
    visitor.echo(&[3; 1_000]);
    // One that was repeated may have been lost before the service or behind it.
    let received = service.received();
    assert!(
        (2..=2 + visitor.repeated).contains(&received),
        "the large one passed: {received} came, {} repeated",
        visitor.repeated
    );
}

/// Small packets that come together ride together, both ways, and each is again one of its own.
#[test]
fn small_payloads_that_come_at_once_share_a_bundle() {
    if subject::only_wire("small_payloads_that_come_at_once_share_a_bundle") {
        return;
    }
    let service = UdpService::echo();
    let server = ServerSetup {
        admin: Some(ports::free_address()),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        admin: Some(ports::free_address()),
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, service.address);
    let mut random = Random::new(5);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    visitor.echo(b"the flow is there");
    let bundles_sent = |admin: Option<SocketAddr>| {
        let text = http::get(admin.expect("set"), "/metrics").body;
        http::metric(&text, "qmux_dp_udp_bundles_sent_total")
    };
    // How many come in one turn is the machine's affair, so until some have.
    wait::until_true("bundles both ways", || {
        let payloads: Vec<_> = (0..40).map(|more| random.bytes(20 + more)).collect();
        for payload in &payloads {
            visitor.send(payload);
        }
        // The echoes come in this order, unless one was lost on a busy machine.
        for payload in &payloads {
            if !visitor.receive(payload) {
                visitor.echo(payload);
            }
        }
        // The server has shown the client by one that it takes them.
        bundles_sent(server.admin) > 1.0 && bundles_sent(client.admin) > 0.0
    });
}
