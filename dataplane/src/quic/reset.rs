//! Stateless resets (RFC 9000 section 10.3), and the connection ids that get one: by these a
//! restarted server tells a client that its lane is gone. Without them the client would wait until
//! its probes have failed.
//!
//! A reset ends a lane, so only the lane's own server may be made to send it (section 21.11).
//! Otherwise anybody who has seen the connection id of a living lane could show it to another
//! server with the same key, and pass the answer on. So tokens are bound to the place of a lane,
//! and so are connection ids, which contain a tag by which a server recognises its own. The key is
//! made of
//!
//! - the server's private key file and the machine's boot id, which survive a restart of the
//!   process, so that the new process answers for connection ids of the old one, on any core;
//! - the port of the listener, and the local address that the packet came to. These differ between
//!   the listeners of a process, and between replicas that share a key file, behind one public
//!   address or several.
//!
//! So another listener of the same process, and a replica with the same key file on another machine
//! or under another local address, do not recognise such a packet and say nothing. The process that
//! comes after this one at the same address answers at once. After a reboot, and from a replica
//! that gets this one's packets by NAT or a balancer, there is no reset, and the client finds out
//! by probes that stay unanswered. Two processes in containers of one machine that have the same
//! local address and port, in networks that do not know each other, are not told apart.

use std::net::IpAddr;

use boring::hash::hmac_sha256;
use qmux_config::FileOrText;
use qmux_proto::CID_LEN;
use qmux_proto::cid::{CID_RANDOM_LEN, ConnectionId};

/// Separates this use of the private key's bytes from any other.
const LABEL: &[u8] = b"qmux-dp/2 stateless reset key";

/// The boot id: drawn by the kernel when the machine starts, and the same in all its containers.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The smallest packet that can be a stateless reset (RFC 9000 section 10.3).
const RESET_BYTES_MIN: usize = 21;

/// The largest stateless reset that is sent: enough to look like a packet with a short header.
const RESET_BYTES_MAX: usize = 42;

const TOKEN_BYTES: usize = 16;

/// Number of bytes at the end of a connection id that authenticate it: one in four billion foreign
/// ids passes for ours.
const TAG_BYTES: usize = 4;

/// Number of random bytes of a connection id, after the byte of the core.
const DRAWN_BYTES: usize = CID_RANDOM_LEN - TAG_BYTES;

/// The purpose of a MAC.
#[derive(Clone, Copy)]
enum Use {
    Tag = 1,
    Token = 2,
}

/// The answer to a packet of no known lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A stateless reset.
    Reset(Vec<u8>),
    /// No answer: the connection id was not issued here.
    Foreign,
    /// No answer: the packet is so small that the answer would not be smaller, and two endpoints
    /// could answer each other for ever.
    TooSmall,
}

/// Makes connection ids, recognises them, and derives their reset tokens.
#[derive(Clone)]
pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    /// The key of the listener with this port, of the server with this private key file.
    ///
    /// # Errors
    /// With a text if the file cannot be read.
    pub(crate) fn from_key(key: &FileOrText, port: u16) -> Result<ResetKey, String> {
        let secret = key.read_pem().map_err(|error| format!("{key} {error}"))?;
        // Without a boot id, machines are told apart by their addresses alone.
        let machine = std::fs::read(BOOT_ID_FILE).unwrap_or_default();
        ResetKey::of(&secret, &machine, port)
    }

    fn of(secret: &[u8], machine: &[u8], port: u16) -> Result<ResetKey, String> {
        let context = [LABEL, &port.to_be_bytes(), machine].concat();
        hmac_sha256(secret, &context)
            .map(ResetKey)
            .map_err(|error| error.to_string())
    }

    /// A connection id for a lane of `core` whose client sends to `local`.
    pub(super) fn issue(&self, core: u8, local: IpAddr) -> ConnectionId {
        let mut rest: [u8; CID_RANDOM_LEN] = rand::random();
        let drawn = ConnectionId::new(core, rest);
        rest[DRAWN_BYTES..].copy_from_slice(&self.tag(drawn.as_bytes(), local));
        ConnectionId::new(core, rest)
    }

    /// Whether `id` was issued here, by this process or one before it, for a lane whose client
    /// sends to `local`.
    pub(super) fn issued(&self, id: &[u8; CID_LEN], local: IpAddr) -> bool {
        boring::memcmp::eq(&self.tag(id, local), &id[CID_LEN - TAG_BYTES..])
    }

    /// The reset token of a connection id that was issued for a lane whose client sends to `local`.
    pub(super) fn token(&self, id: &[u8; CID_LEN], local: IpAddr) -> u128 {
        let mac = self.mac(Use::Token, id, local);
        mac.first_chunk::<TOKEN_BYTES>()
            .map_or(0, |token| u128::from_be_bytes(*token))
    }

    /// The answer to a short header packet of an unknown connection that came to `local`.
    pub(super) fn answer(&self, packet: &[u8], local: IpAddr) -> Answer {
        let id = packet
            .get(1..)
            .and_then(|rest| rest.first_chunk::<CID_LEN>());
        let Some(id) = id.filter(|id| self.issued(id, local)) else {
            return Answer::Foreign;
        };
        let length = (packet.len() - 1).min(RESET_BYTES_MAX);
        if length < RESET_BYTES_MIN {
            return Answer::TooSmall;
        }
        let mut answer = vec![0; length];
        rand::fill(&mut answer[..length - TOKEN_BYTES]);
        answer[0] = (answer[0] & 0x3f) | 0x40;
        answer[length - TOKEN_BYTES..].copy_from_slice(&self.token(id, local).to_be_bytes());
        Answer::Reset(answer)
    }

    fn tag(&self, id: &[u8; CID_LEN], local: IpAddr) -> [u8; TAG_BYTES] {
        let mac = self.mac(Use::Tag, &id[..CID_LEN - TAG_BYTES], local);
        *mac.first_chunk().unwrap_or(&[0; TAG_BYTES])
    }

    fn mac(&self, what: Use, id: &[u8], local: IpAddr) -> [u8; 32] {
        let local = match local.to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut input = [0; 1 + 16 + CID_LEN];
        input[0] = what as u8;
        input[1..17].copy_from_slice(&local.octets());
        input[17..17 + id.len()].copy_from_slice(id);
        // HMAC fails only for want of memory; then a random MAC merely cannot be recognised.
        hmac_sha256(&self.0, &input).unwrap_or_else(|_| rand::random())
    }
}

impl std::fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn packet(id: ConnectionId) -> [u8; 1_200] {
        let mut packet = [0x41u8; 1_200];
        packet[1..=CID_LEN].copy_from_slice(id.as_bytes());
        packet
    }

    #[test]
    fn an_answer_ends_in_the_token_of_the_id_and_is_smaller_than_the_packet() {
        let (key, here) = (ResetKey([7; 32]), ip("192.0.2.1"));
        let id = key.issue(3, here);
        assert_eq!(id.core(), 3);
        for length in [22, 30, 43, 1_200] {
            let Answer::Reset(answer) = key.answer(&packet(id)[..length], here) else {
                panic!("no answer to {length} bytes");
            };
            assert!(answer.len() < length && answer.len() >= RESET_BYTES_MIN);
            assert_eq!(answer[0] & 0xc0, 0x40, "looks like a short header");
            assert_eq!(
                answer[answer.len() - 16..],
                key.token(id.as_bytes(), here).to_be_bytes()
            );
        }
        assert_eq!(key.answer(&packet(id)[..21], here), Answer::TooSmall);
        assert_eq!(key.answer(&packet(id)[..5], here), Answer::Foreign);
        let other = key.issue(3, here);
        assert_ne!(
            key.token(id.as_bytes(), here),
            key.token(other.as_bytes(), here)
        );
    }

    #[test]
    fn nobody_answers_for_a_lane_that_lives_elsewhere() {
        let key = |secret: &[u8], machine: &[u8], port| {
            ResetKey::of(secret, machine, port).expect("memory")
        };
        let (ours, here) = (key(b"secret", b"machine", 443), ip("10.0.0.5"));
        let packet = packet(ours.issue(0, here));
        // A second listener, a replica on another machine, one with another key, and one with
        // another address.
        for (other, local) in [
            (key(b"secret", b"machine", 444), here),
            (key(b"secret", b"another", 443), here),
            (key(b"another", b"machine", 443), here),
            (key(b"secret", b"machine", 443), ip("10.0.0.6")),
        ] {
            assert_eq!(other.answer(&packet, local), Answer::Foreign);
        }
        // This is the process after this one. How the kernel writes its own address does not
        // matter.
        let next = key(b"secret", b"machine", 443);
        for local in [here, ip("::ffff:10.0.0.5")] {
            assert!(matches!(next.answer(&packet, local), Answer::Reset(_)));
        }
        // This packet is noise.
        let mut noise = packet;
        noise[3] ^= 1;
        assert_eq!(ours.answer(&noise, here), Answer::Foreign);
    }
}
