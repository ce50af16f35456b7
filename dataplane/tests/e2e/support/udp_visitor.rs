//! UDP visitors: each has one socket; what is lost is sent again, a few times.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::SockRef;

/// UDP may lose datagrams on a machine that is short of CPUs. A tunnel that loses this many in a
/// row is broken.
const ATTEMPTS_MAX: usize = 8;
/// Wait for a reply before the datagram is sent again.
const REPLY_PATIENCE: Duration = Duration::from_secs(4);
/// The largest datagrams must fit several times.
const BUFFER_BYTES: usize = 4 << 20;

/// A UDP socket that talks to an echo service.
pub(crate) struct UdpVisitor {
    socket: UdpSocket,
    /// Payloads sent so far: a late echo of one of them is no error, any other bytes are.
    sent: Vec<Vec<u8>>,
    /// Datagrams that had to be sent again.
    pub(crate) repeated: usize,
}

impl UdpVisitor {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let any = if address.is_ipv4() {
            "127.0.0.1"
        } else {
            "::1"
        };
        Self::coming_from(any.parse().expect("literal"), address)
    }

    /// A visitor from this address of the host.
    pub(crate) fn coming_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = UdpSocket::bind((source, 0)).expect("a free port");
        let sizes = SockRef::from(&socket);
        sizes.set_recv_buffer_size(BUFFER_BYTES).expect("size");
        sizes.set_send_buffer_size(BUFFER_BYTES).expect("size");
        socket.connect(address).expect("an address");
        Self {
            socket,
            sent: Vec::new(),
            repeated: 0,
        }
    }

    /// The address that it sends from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    /// Sends without waiting for the echo.
    pub(crate) fn send(&mut self, payload: &[u8]) {
        self.sent.push(payload.to_owned());
        self.transmit(payload);
    }

    /// Sends `payload` and waits for its echo; panics if other bytes come back than this visitor
    /// ever sent.
    pub(crate) fn echo(&mut self, payload: &[u8]) {
        self.send(payload);
        for attempt in 0..ATTEMPTS_MAX {
            if attempt > 0 {
                self.repeated += 1;
                self.transmit(payload);
            }
            if self.receive(payload) {
                return;
            }
        }
        panic!(
            "no echo of {} bytes after {ATTEMPTS_MAX} attempts",
            payload.len()
        );
    }

    /// Makes one attempt, for polling; returns whether the echo came.
    pub(crate) fn echo_works(&mut self, payload: &[u8]) -> bool {
        self.send(payload);
        self.receive(payload)
    }

    /// Waits for the echo of `payload`, passing over late echoes of earlier ones.
    pub(crate) fn receive(&self, payload: &[u8]) -> bool {
        self.receive_within(REPLY_PATIENCE, payload)
    }

    /// Waits like [`Self::receive`], with less patience, because others have been waited for.
    pub(crate) fn receive_within(&self, patience: Duration, payload: &[u8]) -> bool {
        let timeout = self.socket.set_read_timeout(Some(patience));
        timeout.expect("timeout");
        let mut bytes = vec![0; 1 << 16];
        loop {
            match self.socket.recv(&mut bytes) {
                Ok(length) if bytes[..length] == *payload => return true,
                Ok(length) => assert!(
                    self.sent.iter().any(|sent| *sent == bytes[..length]),
                    "{length} bytes came that this visitor never sent, waiting for {}",
                    payload.len()
                ),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => return false,
                // Nobody listens there for the moment.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn transmit(&self, payload: &[u8]) {
        match self.socket.send(payload) {
            Ok(sent) => assert_eq!(sent, payload.len()),
            // The answer to an earlier datagram.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => panic!("{} bytes: {error}", payload.len()),
        }
    }
}
