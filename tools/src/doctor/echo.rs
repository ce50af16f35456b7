//! Whether a host answers a packet of a given size: an echo request of ICMP (RFC 792, RFC 4443).
//!
//! It needs no rights where `net.ipv4.ping_group_range` includes the user (icmp(7)); root may
//! always send one.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::carrier::never_fragment;

/// Requests of one size that must fail before that size counts as one that does not pass.
const TRIES: u16 = 3;
/// How long each reply may take.
const PATIENCE: Duration = Duration::from_secs(1);

const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;
const REPLY_V4: u8 = 0;
const REPLY_V6: u8 = 129;
/// Bytes of an echo's header: as many as of UDP's.
const HEADER_BYTES: usize = 8;

/// Whether `ip` answers an echo whose packet is as long as one of UDP with `payload` bytes. `None`
/// if this user may not ask.
pub(super) fn is_answered(ip: IpAddr, payload: usize) -> Option<bool> {
    let (domain, protocol) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))
        .ok()?;
    let peer = SocketAddr::new(ip, 0);
    never_fragment(&socket, peer).ok()?;
    socket.connect(&peer.into()).ok()?;
    Some((0..TRIES).any(|sequence| asked(&socket, ip, sequence, payload).unwrap_or(false)))
}

fn asked(socket: &Socket, ip: IpAddr, sequence: u16, payload: usize) -> io::Result<bool> {
    let mark = std::process::id().to_be_bytes();
    let mut socket: &Socket = socket;
    socket.write_all(&request(ip, sequence, payload, mark))?;
    let began = Instant::now();
    let mut bytes = vec![0; 1 << 16];
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.read(&mut bytes)?;
        if is_reply(&bytes[..length], ip, mark) {
            return Ok(true);
        }
    }
}

/// The request. `mark` stands after the header, because a raw socket receives the replies to
/// everybody.
fn request(ip: IpAddr, sequence: u16, payload: usize, mark: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES + payload.max(mark.len())];
    packet[0] = if ip.is_ipv4() { REQUEST_V4 } else { REQUEST_V6 };
    packet[4..6].copy_from_slice(&mark[2..]);
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[HEADER_BYTES..HEADER_BYTES + mark.len()].copy_from_slice(&mark);
    // The kernel fills in the checksum of ICMPv6.
    if ip.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn is_reply(packet: &[u8], ip: IpAddr, mark: [u8; 4]) -> bool {
    // A raw socket of IPv4 shows the header of IP (version 4, and its length in words).
    let icmp = match packet.first() {
        Some(first) if ip.is_ipv4() && first >> 4 == 4 => {
            packet.get(usize::from(first & 0xf) * 4..).unwrap_or(&[])
        }
        _ => packet,
    };
    let reply = if ip.is_ipv4() { REPLY_V4 } else { REPLY_V6 };
    icmp.first() == Some(&reply)
        && icmp.get(HEADER_BYTES..HEADER_BYTES + mark.len()) == Some(mark.as_slice())
}

/// The checksum of the internet (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_nothing() {
        for payload in [4, 57, 1_200, 65_000] {
            let ip = "192.0.2.1".parse().expect("literal");
            assert_eq!(checksum(&request(ip, 7, payload, [1, 2, 3, 4])), 0);
        }
    }

    #[test]
    fn a_reply_is_known_by_its_mark_with_or_without_a_header_of_ip() {
        let ip = "192.0.2.1".parse().expect("literal");
        let mut reply = request(ip, 1, 100, [9; 4]);
        assert!(!is_reply(&reply, ip, [9; 4]), "a request");
        reply[0] = REPLY_V4;
        assert!(is_reply(&reply, ip, [9; 4]));
        assert!(!is_reply(&reply, ip, [8; 4]));
        let mut with_header = vec![0; 20];
        with_header[0] = 0x45;
        with_header.extend(&reply);
        assert!(is_reply(&with_header, ip, [9; 4]));
        assert!(!is_reply(&[], ip, [9; 4]));
    }
}
