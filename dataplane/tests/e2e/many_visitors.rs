//! Many connections: at once, and one after the other.

use std::io::{Read as _, Write as _};
use std::sync::Barrier;
use std::thread;

use crate::support::random::Random;
use crate::support::service::TcpService;
use crate::support::subject;
use crate::support::tunnel::Tunnel;
use crate::support::visitor::{self, Ending};

/// Stack of a visitor's thread.
const STACK_BYTES: usize = 256 << 10;

#[test]
fn a_thousand_concurrent_visitors_echo() {
    let visitors = subject::scale("QMUX_E2E_CONCURRENT", 1_000);
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    let all_connected = Barrier::new(visitors);
    thread::scope(|scope| {
        for seed in 0..visitors {
            let (all_connected, address) = (&all_connected, tunnel.traffic());
            let visit = move || {
                let served = visitor::try_connect(address).and_then(|mut stream| {
                    stream.write_all(b"?")?;
                    stream.read_exact(&mut [0; 1])?;
                    Ok(stream)
                });
                // A visitor that fails must not keep the others waiting.
                all_connected.wait();
                let mut stream = served.expect("the first byte");
                let mut random = Random::new(seed as u64);
                for _ in 0..5 {
                    let length = random.between(1..=30_000);
                    let bytes = random.bytes(length);
                    // The bytes fit into the socket buffers, so one thread can send all before it
                    // reads.
                    stream.write_all(&bytes).expect("sent");
                    let echo = visitor::read_exact(&mut stream, bytes.len());
                    assert!(echo == bytes, "visitor {seed} got wrong bytes");
                }
                visitor::finish(&stream);
                let ending = visitor::read_to_end(&mut stream);
                assert_eq!(ending, Ending::Clean(Vec::new()));
            };
            let thread = thread::Builder::new().stack_size(STACK_BYTES);
            thread.spawn_scoped(scope, visit).expect("a thread");
        }
    });
    assert_eq!(service.accepted(), visitors);
}

#[test]
fn thousands_of_sequential_connections_do_not_fail_once() {
    let connections = subject::scale("QMUX_E2E_SEQUENTIAL", 5_000);
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    let mut random = Random::new(7);
    for _ in 0..connections {
        let length = random.between(1..=2_000);
        let bytes = random.bytes(length);
        let mut stream = visitor::connect(tunnel.traffic());
        stream.write_all(&bytes).expect("sent");
        visitor::finish(&stream);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(bytes));
    }
    assert_eq!(service.accepted(), connections);
}

#[test]
fn visitors_that_come_and_go_at_random_do_not_disturb_each_other() {
    let service = TcpService::echo();
    let tunnel = Tunnel::to(service.address);
    thread::scope(|scope| {
        for seed in 0..16 {
            let address = tunnel.traffic();
            scope.spawn(move || {
                let mut random = Random::new(100 + seed);
                for _ in 0..60 {
                    let length = random.between(0..=20_000);
                    let bytes = random.bytes(length);
                    let mut stream = visitor::connect(address);
                    match random.between(0..=3) {
                        0 => visitor::reset(stream),
                        1 => {
                            // The visitor leaves without having read all, so the service may see a
                            // reset.
                            let _late = stream.write_all(&bytes);
                        }
                        _ => {
                            stream.write_all(&bytes).expect("sent");
                            visitor::finish(&stream);
                            let ending = visitor::read_to_end(&mut stream);
                            assert!(ending == Ending::Clean(bytes), "seed {seed}");
                        }
                    }
                }
            });
        }
    });
}
