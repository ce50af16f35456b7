//! HAProxy in front of the tunnel, in TCP mode.

use std::io::Write as _;

use crate::support::peers;
use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::tunnel::{ServerSetup, Tunnel};
use crate::support::visitor::{self, Ending};

#[test]
fn visitors_of_haproxy_are_served() {
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    let haproxy = peers::haproxy(&tunnel.site, tunnel.traffic());
    let mut random = Random::new(1);
    for length in [1, 100, 10_000, 3_000_000] {
        visitor::echo(haproxy.address, &random.bytes(length));
    }
    let mut visitors: Vec<_> = (0..100)
        .map(|_| visitor::connect(haproxy.address))
        .collect();
    for stream in &mut visitors {
        visitor::exchange(stream, &random.bytes(2_000));
    }
}

#[test]
fn a_half_close_passes_haproxy_and_the_tunnel() {
    let service = TcpService::start(|mut stream| {
        assert_eq!(
            visitor::read_to_end(&mut stream),
            Ending::Clean(b"question".to_vec())
        );
        stream.write_all(b"answer").expect("sent");
    });
    let setup = ServerSetup {
        listeners: vec!["tcp"],
        ..ServerSetup::default()
    };
    let tunnel = Tunnel::with(&setup, &Default::default(), service.address);
    let haproxy = peers::haproxy(&tunnel.site, tunnel.traffic());
    let mut stream = visitor::connect(haproxy.address);
    stream.write_all(b"question").expect("sent");
    visitor::finish(&stream);
    assert_eq!(
        visitor::read_to_end(&mut stream),
        Ending::Clean(b"answer".to_vec())
    );
}
