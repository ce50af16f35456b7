//! What the scenarios share: a runtime, sockets, patience.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::time::{Duration, Instant};

use crate::sys::bind::raise_udp_buffers;
use crate::sys::udp::{Purpose, ReceiveBatch, UdpSocket};

/// How long a scenario waits for what must come; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn run<F: Future>(scenario: F) -> F::Output {
    monoio::RuntimeBuilder::<monoio::FusionDriver>::new()
        .enable_timer()
        .build()
        .expect("a runtime")
        .block_on(scenario)
}

pub(crate) fn std_socket() -> StdUdpSocket {
    let socket = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    raise_udp_buffers(&socket).expect("buffers");
    socket
}

pub(crate) fn adopt(socket: StdUdpSocket) -> UdpSocket {
    UdpSocket::adopt(socket, Purpose::Traffic).expect("a UDP socket")
}

pub(crate) fn socket() -> UdpSocket {
    adopt(std_socket())
}

/// Payload number `number` of `bytes` bytes: no two are alike, wherever they are cut.
pub(crate) fn payload(number: usize, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at ^ (at >> 8) ^ number.wrapping_mul(31)) as u8)
        .collect()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        crate::core::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Receives `count` datagrams: their payloads and who sent them.
pub(crate) async fn receive(socket: &UdpSocket, count: usize) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut batch = ReceiveBatch::new(Purpose::Traffic);
    let mut received = Vec::new();
    until(&format!("{count} datagrams"), || {
        while socket.try_receive(&mut batch).is_ok() {
            batch.for_each(|datagram| received.push((datagram.data.to_vec(), datagram.from)));
        }
        received.len() >= count
    })
    .await;
    assert_eq!(received.len(), count, "more than was sent");
    received
}

/// Asserts that both are the same, without printing megabytes.
pub(crate) fn assert_payloads(received: &[(Vec<u8>, SocketAddr)], sent: &[Vec<u8>]) {
    assert_eq!(received.len(), sent.len());
    for (number, ((received, _), sent)) in received.iter().zip(sent).enumerate() {
        assert_eq!(received.len(), sent.len(), "length of datagram {number}");
        assert!(received == sent, "content of datagram {number}");
    }
}
