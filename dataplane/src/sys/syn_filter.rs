//! A filter that keeps new connections away from a listening socket, without closing it.
//!
//! Closing a listening socket resets everyone in its accept queue: visitors whose handshake is
//! complete and who have already sent their request. So a socket that is to be closed first gets a
//! classic BPF program that drops SYNs. Connections that had begun before come to the queue and are
//! accepted; then the socket is closed. A visitor whose SYN was dropped repeats it after a second
//! (RFC 6298, section 2.1) and is refused, so that a load balancer in front goes elsewhere.
//! Attaching the program needs no privilege.

use std::io;
use std::net::TcpListener;

use socket2::{SockFilter, SockRef};

// Opcodes of classic BPF, from linux/bpf_common.h.
const LOAD_BYTE_ABSOLUTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// The offset of the flags in a TCP header, which is where the program's view of a packet begins
/// (RFC 9293, section 3.1).
const TCP_FLAGS_OFFSET: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

const PASS: u32 = u32::MAX;
const DROP: u32 = 0;

const PROGRAM: [SockFilter; 5] = [
    SockFilter::new(LOAD_BYTE_ABSOLUTE, 0, 0, TCP_FLAGS_OFFSET),
    SockFilter::new(AND, 0, 0, SYN | ACK),
    SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
    SockFilter::new(RETURN, 0, 0, DROP),
    SockFilter::new(RETURN, 0, 0, PASS),
];

/// Keeps new connections from `listener`; those that have begun go on.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(crate) fn attach(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).attach_filter(&PROGRAM)
}

/// Lets new connections come to `listener` again; returns whether they were kept away.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(crate) fn detach(listener: &TcpListener) -> io::Result<bool> {
    match SockRef::from(listener).detach_filter() {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bind::tcp_reuseport;
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    /// A long time for a handshake on loopback, and shorter than the first repetition of a SYN.
    const NO_HANDSHAKE: Duration = Duration::from_millis(300);

    fn keeps_new_ones_away_and_lets_old_ones_in(listen: &str, dial: &str) {
        let listener = tcp_reuseport(listen.parse().expect("literal")).expect("bind");
        let port = listener.local_addr().expect("bound").port();
        let addr: SocketAddr = (dial.parse::<std::net::IpAddr>().expect("literal"), port).into();
        let mut early: Vec<_> = (0..20)
            .map(|_| TcpStream::connect(addr).expect("in the queue"))
            .collect();
        attach(&listener).expect("attach");
        let late = TcpStream::connect_timeout(&addr, NO_HANDSHAKE);
        assert_eq!(
            late.map_err(|error| error.kind()).err(),
            Some(ErrorKind::TimedOut)
        );
        for visitor in &mut early {
            visitor.write_all(b"hello").expect("data passes the filter");
            let (mut accepted, _) = listener.accept().expect("it was in the queue");
            accepted.set_nonblocking(false).expect("blocking");
            accepted.write_all(b"welcome").expect("sent");
            drop(accepted.shutdown(std::net::Shutdown::Write));
            let mut question = [0; 5];
            accepted.read_exact(&mut question).expect("received");
            let mut answer = String::new();
            visitor.read_to_string(&mut answer).expect("a clean end");
            assert_eq!((&question, answer.as_str()), (b"hello", "welcome"));
        }
        drop(listener);
        let after = TcpStream::connect(addr);
        assert_eq!(
            after.map_err(|error| error.kind()).err(),
            Some(ErrorKind::ConnectionRefused)
        );
    }

    #[test]
    fn over_ipv4_no_connection_begins_and_none_in_the_queue_is_lost() {
        keeps_new_ones_away_and_lets_old_ones_in("127.0.0.1:0", "127.0.0.1");
    }

    #[test]
    fn over_ipv6_no_connection_begins_and_none_in_the_queue_is_lost() {
        keeps_new_ones_away_and_lets_old_ones_in("[::1]:0", "::1");
    }

    #[test]
    fn a_socket_of_both_families_is_filtered_for_ipv4_too() {
        keeps_new_ones_away_and_lets_old_ones_in("[::]:0", "127.0.0.1");
    }

    #[test]
    fn new_ones_come_in_again_once_the_filter_is_taken_off_by_whoever_has_the_socket() {
        let listener = tcp_reuseport("127.0.0.1:0".parse().expect("literal")).expect("bind");
        let addr = listener.local_addr().expect("bound");
        let of_another = listener.try_clone().expect("a descriptor");
        assert!(!detach(&of_another).expect("there is none"));
        attach(&listener).expect("attach");
        assert!(detach(&of_another).expect("there is one"));
        TcpStream::connect(addr).expect("in the queue");
    }
}
