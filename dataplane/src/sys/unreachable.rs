//! The network's report that nobody listens at a peer (ICMP), as an error of an unconnected UDP
//! socket.
//!
//! A connected socket would get it without being asked, but it is bound to one local address, and a
//! client's lane must outlive a change of network.

use std::io;
use std::os::fd::BorrowedFd;

/// Turns these errors on or off. Turning them off drops those that wait (`IP_RECVERR` in ip(7),
/// `IPV6_RECVERR` in ipv6(7)).
pub(super) fn hear(socket: BorrowedFd<'_>, ipv4: bool, hear: bool) -> io::Result<()> {
    let (level, name) = if ipv4 {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    super::option::set_int(socket, level, name, libc::c_int::from(hear))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_port_without_a_listener_is_an_error_of_the_next_receive() {
        // The IPv4 address belongs to this test alone, so that no other test gets the port
        // meanwhile.
        for (place, any) in [("127.0.0.78:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")] {
            let any: SocketAddr = any.parse().expect("literal");
            let Ok(gone) = UdpSocket::bind(place) else {
                continue; // A machine without IPv6.
            };
            let nobody = gone.local_addr().expect("bound");
            drop(gone);
            let socket = UdpSocket::bind(any).expect("bind");
            hear(socket.as_fd(), any.is_ipv4(), true).expect("an option of Linux");
            socket.send_to(b"anybody?", nobody).expect("sent");
            let error = socket.recv(&mut [0; 16]).expect_err("nobody");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            // Errors that wait are dropped with the option.
            socket.send_to(b"anybody?", nobody).expect("sent");
            hear(socket.as_fd(), any.is_ipv4(), false).expect("an option of Linux");
        }
    }
}
