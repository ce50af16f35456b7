//! Each direction of a connection ends on its own, in every order.

use std::io::Write as _;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use crate::support::service::TcpService;
use crate::support::tunnel::Tunnel;
use crate::support::visitor::{self, Ending};
use crate::support::wait::PATIENCE;

/// A transfer, in bytes, that exceeds every buffer on the way.
const LARGE: usize = 32 << 20;
/// How long a direction that must stay open is watched.
const WATCH: Duration = Duration::from_millis(300);

#[test]
fn the_visitor_ends_first_and_still_receives() {
    let service = TcpService::start(|mut stream| {
        assert_eq!(
            visitor::read_to_end(&mut stream),
            Ending::Clean(b"question".to_vec())
        );
        stream
            .write_all(b"answer")
            .expect("the other direction is open");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    stream.write_all(b"question").expect("sent");
    visitor::finish(&stream);
    assert_eq!(
        visitor::read_to_end(&mut stream),
        Ending::Clean(b"answer".to_vec())
    );
}

#[test]
fn the_service_ends_first_and_still_receives() {
    let service = TcpService::start(|mut stream| {
        stream.write_all(b"answer").expect("sent");
        visitor::finish(&stream);
        assert_eq!(
            visitor::read_to_end(&mut stream),
            Ending::Clean(b"late question".to_vec())
        );
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    assert_eq!(
        visitor::read_to_end(&mut stream),
        Ending::Clean(b"answer".to_vec())
    );
    stream
        .write_all(b"late question")
        .expect("the other direction is open");
    visitor::finish(&stream);
    service.wait_until_done();
}

#[test]
fn both_end_at_the_same_moment() {
    let moment = Arc::new(Barrier::new(2));
    let service = TcpService::start({
        let moment = Arc::clone(&moment);
        move |mut stream| {
            stream.write_all(b"from the service").expect("sent");
            moment.wait();
            visitor::finish(&stream);
            assert_eq!(
                visitor::read_to_end(&mut stream),
                Ending::Clean(b"from the visitor".to_vec())
            );
        }
    });
    let tunnel = Tunnel::to(service.address);
    for _ in 0..50 {
        let mut stream = visitor::connect(tunnel.traffic());
        stream.write_all(b"from the visitor").expect("sent");
        moment.wait();
        visitor::finish(&stream);
        assert_eq!(
            visitor::read_to_end(&mut stream),
            Ending::Clean(b"from the service".to_vec())
        );
    }
    service.wait_until_done();
}

#[test]
fn much_data_follows_the_visitors_end() {
    let service = TcpService::start(|mut stream| {
        assert_eq!(
            visitor::read_to_end(&mut stream),
            Ending::Clean(b"GET".to_vec())
        );
        visitor::send_random(&mut stream, 1, LARGE).expect("the other direction is open");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    stream.write_all(b"GET").expect("sent");
    visitor::finish(&stream);
    visitor::receive_random(&mut stream, 1, LARGE);
    assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
}

#[test]
fn much_data_follows_the_services_end() {
    let (done, finished) = mpsc::channel();
    let service = TcpService::start(move |mut stream| {
        stream.write_all(b"READY").expect("sent");
        visitor::finish(&stream);
        visitor::receive_random(&mut stream, 2, LARGE);
        let ending = visitor::read_to_end(&mut stream);
        done.send(ending).expect("the test waits");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    assert_eq!(
        visitor::read_to_end(&mut stream),
        Ending::Clean(b"READY".to_vec())
    );
    visitor::send_random(&mut stream, 2, LARGE).expect("the other direction is open");
    visitor::finish(&stream);
    let ending = finished.recv().expect("the service has read it all");
    assert_eq!(ending, Ending::Clean(Vec::new()));
}

#[test]
fn a_fin_with_the_last_byte_loses_nothing() {
    let service = TcpService::start(|mut stream| {
        let Ending::Clean(bytes) = visitor::read_to_end(&mut stream) else {
            panic!("the visitor ended cleanly");
        };
        stream.write_all(&bytes).expect("sent");
    });
    let tunnel = Tunnel::to(service.address);
    for length in (0..200).chain([1_199, 1_200, 1_201, 65_535, 65_536, 65_537]) {
        let bytes = vec![b'x'; length];
        let mut stream = visitor::connect(tunnel.traffic());
        stream.write_all(&bytes).expect("sent");
        visitor::finish(&stream);
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(bytes));
    }
}

#[test]
fn the_end_of_one_direction_does_not_end_the_other() {
    let (watched, has_watched) = mpsc::channel::<()>();
    let has_watched = Mutex::new(has_watched);
    let service = TcpService::start(move |mut stream| {
        assert_eq!(visitor::read_to_end(&mut stream), Ending::Clean(Vec::new()));
        // The visitor first sees that nothing ends by itself.
        let has_watched = has_watched.lock().expect("one visitor");
        has_watched.recv_timeout(PATIENCE).expect("it watches");
        stream.write_all(b"still here").expect("sent");
    });
    let tunnel = Tunnel::to(service.address);
    let mut stream = visitor::connect(tunnel.traffic());
    visitor::finish(&stream);
    visitor::assert_nothing_to_read(&mut stream, WATCH);
    watched.send(()).expect("the service waits");
    assert_eq!(
        visitor::read_to_end(&mut stream),
        Ending::Clean(b"still here".to_vec())
    );
}
