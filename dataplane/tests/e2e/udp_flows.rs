//! UDP flows: each visitor has its own, each ends in silence, and none gets another one's replies.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::random::Random;
use crate::support::service::UdpService;
use crate::support::subject;
use crate::support::tunnel::{ClientSetup, ServerSetup, Tunnel};
use crate::support::udp_visitor::UdpVisitor;
use crate::support::wait;

#[test]
fn two_hundred_visitors_get_their_own_replies() {
    const VISITORS: usize = 200;
    // How many a burst of new flows may cost is not for the protocol to say.
    let lost_max = if subject::only_wire("how many are lost") {
        VISITORS
    } else {
        VISITORS / 20
    };
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut visitors: Vec<UdpVisitor> = (0..VISITORS)
        .map(|_| UdpVisitor::new(tunnel.traffic()))
        .collect();
    let mut random = Random::new(1);
    for round in 0..5 {
        let payloads: Vec<Vec<u8>> = (0..VISITORS)
            .map(|_| {
                // All of them together fit into one socket buffer of default size.
                let size = random.between(16..=600);
                random.bytes(size)
            })
            .collect();
        // All at once, then each looks for its own: other bytes than its own fail in `receive`.
        for (visitor, payload) in visitors.iter_mut().zip(&payloads) {
            visitor.send(payload);
        }
        let mut lost = 0;
        for (visitor, payload) in visitors.iter_mut().zip(&payloads) {
            // Who waits for the first that is lost waits for all the others, too.
            let patience = Duration::from_millis(if lost == 0 { 4_000 } else { 50 });
            if !visitor.receive_within(patience, payload) {
                lost += 1;
                visitor.echo(payload);
            }
        }
        assert!(lost <= lost_max, "round {round}: {lost} lost");
    }
    assert_eq!(service.sources(), VISITORS, "each visitor has its own flow");
}

#[test]
fn a_flow_that_expired_opens_again() {
    let service = UdpService::echo();
    let expires_soon = vec!["session_timeout = \"1s\""];
    let server = ServerSetup {
        udp: expires_soon.clone(),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        udp: expires_soon,
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, service.address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    visitor.echo(b"first");
    assert_eq!(service.sources(), 1);
    wait::until_true("the flow expires and opens again", || {
        // Silence is what ends a flow, so it has to be kept.
        thread::sleep(Duration::from_secs(2));
        visitor.echo(b"again");
        service.sources() > 1
    });
}

#[test]
fn a_flow_in_use_does_not_expire() {
    // Far more than a busy machine takes for the pause between two datagrams.
    let service = UdpService::echo();
    let expires_soon = vec!["session_timeout = \"6s\""];
    let server = ServerSetup {
        udp: expires_soon.clone(),
        ..ServerSetup::default()
    };
    let client = ClientSetup {
        udp: expires_soon,
        ..ClientSetup::default()
    };
    let tunnel = Tunnel::with(&server, &client, service.address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        visitor.echo(b"still here");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(service.sources(), 1, "the flow was opened again");
}

#[test]
fn a_service_that_was_restarted_is_found_again() {
    let service = UdpService::echo();
    let address = service.address;
    let tunnel = Tunnel::to(address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    visitor.echo(b"before");
    drop(service);
    // Nobody is there: these are lost, and nothing worse.
    for _ in 0..10 {
        visitor.send(b"lost");
    }
    let socket = UdpSocket::bind(address).expect("still free");
    let _service = UdpService::echo_on(socket);
    wait::until_true("the service answers", || visitor.echo_works(b"after"));
    visitor.echo(b"and again");
}

#[test]
fn a_service_that_starts_late_is_found() {
    let address = crate::support::ports::free_address();
    let tunnel = Tunnel::to(address);
    let mut visitor = UdpVisitor::new(tunnel.traffic());
    for _ in 0..10 {
        visitor.send(b"lost");
    }
    let _service = UdpService::echo_on(UdpSocket::bind(address).expect("still free"));
    wait::until_true("the service answers", || visitor.echo_works(b"after"));
}

#[test]
fn visitors_come_and_go_by_the_hundred() {
    let service = UdpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut random = Random::new(5);
    for _ in 0..500 {
        UdpVisitor::new(tunnel.traffic()).echo(&random.bytes(64));
    }
    assert!(service.sources() >= 400, "flows share a socket");
}
