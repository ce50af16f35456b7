//! What goes wrong in a network beside delay and random loss, to be switched on and off while
//! packets pass.
//!
//! A black hole, loss for a while, packets that arrive with a wrong bit, and a NAT that forgets its
//! mappings. The router's two threads look at atomics that a test sets; none of it takes part in a
//! [`Profile`](super::Profile), which never changes.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rand::{Rng, RngExt};

use super::network::Side;

/// Probabilities are kept in millionths.
const MILLION: u32 = 1_000_000;

/// Bits of a port that a NAT of ours changes: those below leave a port in its block of 16,384, so
/// that none becomes a privileged one or zero.
const NAT_PORT_BITS: u16 = 0x3fff;

/// Length of a UDP header, in bytes (RFC 768).
const UDP_HEADER_BYTES: usize = 8;

/// Protocol numbers of IPv4.
const ICMP: u8 = 1;
const UDP: u8 = 17;

/// Faults of one link; both directions share them.
#[derive(Debug, Default)]
pub struct Faults {
    hole: AtomicBool,
    loss: AtomicU32,
    corrupt: AtomicU32,
    /// What the NAT in front of the right side does to its UDP ports; 0: there is none.
    nat: AtomicU16,
    swallowed: AtomicU64,
    corrupted: AtomicU64,
}

impl Faults {
    /// Whether every packet is dropped silently.
    pub fn set_black_hole(&self, on: bool) {
        self.hole.store(on, Ordering::Relaxed);
    }

    /// The probability that a packet gets lost, in addition to the loss of the profile.
    pub fn set_loss(&self, p: f64) {
        self.loss.store(millionths(p), Ordering::Relaxed);
    }

    /// The probability that a UDP packet arrives with one wrong bit, and with a checksum that does
    /// not show it: otherwise the receiving kernel would drop the packet.
    pub fn set_corruption(&self, p: f64) {
        self.corrupt.store(millionths(p), Ordering::Relaxed);
    }

    /// Gives the right side's UDP sockets other public ports, as a NAT does that has forgotten its
    /// mappings. What is still sent to the old ones does not arrive, and nobody says so.
    pub fn rebind(&self) {
        let next = (self.nat.load(Ordering::Relaxed) + 0x0d3b) & NAT_PORT_BITS;
        self.nat.store(next.max(1), Ordering::Relaxed);
    }

    /// Packets that disappeared in the hole, by loss or behind an old mapping.
    pub fn swallowed_packets(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }

    /// Packets that arrived with a wrong bit.
    pub fn corrupted_packets(&self) -> u64 {
        self.corrupted.load(Ordering::Relaxed)
    }

    /// Does to an IP packet from `side` what is switched on. Returns false if it disappears.
    pub(super) fn let_pass(&self, packet: &mut [u8], side: Side, rng: &mut impl Rng) -> bool {
        let passes = !self.hole.load(Ordering::Relaxed)
            && !draw(&self.loss, rng)
            && self.translate(packet, side);
        if !passes {
            self.swallowed.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if draw(&self.corrupt, rng) && corrupt(packet, rng) {
            self.corrupted.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn translate(&self, packet: &mut [u8], side: Side) -> bool {
        let key = self.nat.load(Ordering::Relaxed);
        if key == 0 {
            return true;
        }
        if protocol(packet) == Some(ICMP) && matches!(side, Side::Right) {
            // Of a host behind the NAT about a port that the NAT would not have mapped to it.
            return false;
        }
        let Some(datagram) = udp(packet) else {
            return true;
        };
        let at = match side {
            Side::Right => 0,
            Side::Left => 2,
        };
        let port = u16::from_be_bytes([datagram[at], datagram[at + 1]]);
        set_word(datagram, at, port ^ key);
        true
    }
}

fn millionths(p: f64) -> u32 {
    (p.clamp(0.0, 1.0) * f64::from(MILLION)) as u32
}

/// Draws only if it matters, so that a link without faults takes the same decisions as ever.
fn draw(share: &AtomicU32, rng: &mut impl Rng) -> bool {
    let share = share.load(Ordering::Relaxed);
    share > 0 && rng.random_ratio(share, MILLION)
}

/// Turns one bit of a UDP packet's payload. Returns false if it has none.
fn corrupt(packet: &mut [u8], rng: &mut impl Rng) -> bool {
    let Some(datagram) = udp(packet) else {
        return false;
    };
    if datagram.len() <= UDP_HEADER_BYTES {
        return false;
    }
    let at = rng.random_range(UDP_HEADER_BYTES..datagram.len());
    let bit = rng.random_range(0..8);
    let start = at & !1;
    let word = word(datagram, start);
    let flipped = if at == start {
        1 << (8 + bit)
    } else {
        1 << bit
    };
    set_word(datagram, start, word ^ flipped);
    true
}

fn protocol(packet: &[u8]) -> Option<u8> {
    (packet.first()? >> 4 == 4).then(|| packet.get(9).copied())?
}

/// The UDP header and payload of an IPv4 packet that is no fragment.
fn udp(packet: &mut [u8]) -> Option<&mut [u8]> {
    if protocol(packet) != Some(UDP) {
        return None;
    }
    let header = usize::from(packet[0] & 0xf) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    let datagram = packet.get_mut(header..)?;
    (fragment == 0 && datagram.len() >= UDP_HEADER_BYTES).then_some(datagram)
}

/// A word of a datagram; behind an odd last byte stands a zero, as in the checksum (RFC 768).
fn word(datagram: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([datagram[at], datagram.get(at + 1).copied().unwrap_or(0)])
}

/// Writes a word and keeps the checksum right (RFC 1624, equation 3).
fn set_word(datagram: &mut [u8], at: usize, new: u16) {
    const CHECKSUM: usize = 6;
    let old = word(datagram, at);
    let bytes = new.to_be_bytes();
    datagram[at] = bytes[0];
    if let Some(second) = datagram.get_mut(at + 1) {
        *second = bytes[1];
    }
    let checksum = word(datagram, CHECKSUM);
    if checksum == 0 {
        return; // There is none.
    }
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !(sum as u16);
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    datagram[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const PAYLOAD_AT: usize = 20 + UDP_HEADER_BYTES;

    /// An IPv4 packet with a UDP datagram in it.
    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; PAYLOAD_AT];
        packet[0] = 0x45;
        packet[9] = UDP;
        packet[12..16].copy_from_slice(&[10, 99, 0, 2]);
        packet[16..20].copy_from_slice(&[10, 99, 0, 1]);
        packet[20..22].copy_from_slice(&40_000_u16.to_be_bytes());
        packet[22..24].copy_from_slice(&443_u16.to_be_bytes());
        packet.extend_from_slice(payload);
        let length = u16::try_from(packet.len() - 20).expect("short");
        packet[24..26].copy_from_slice(&length.to_be_bytes());
        let checksum = !sum(&packet);
        packet[26..28].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// The one's complement sum over the pseudo header and the datagram: 0xffff if the checksum is
    /// right.
    fn sum(packet: &[u8]) -> u16 {
        let datagram = &packet[20..];
        let length = u32::try_from(datagram.len()).expect("short");
        let mut sum = u32::from(UDP) + length;
        for at in (12..20).step_by(2) {
            sum += u32::from(word(packet, at));
        }
        for at in (0..datagram.len()).step_by(2) {
            sum += u32::from(word(datagram, at));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).expect("folded")
    }

    #[test]
    fn a_wrong_bit_is_one_bit_and_the_checksum_does_not_show_it() {
        let mut rng = StdRng::seed_from_u64(7);
        for length in 1..200 {
            let before = packet(&vec![0xa5; length]);
            let mut after = before.clone();
            assert!(corrupt(&mut after, &mut rng));
            assert_eq!(sum(&after), 0xffff, "length {length}");
            let bits = |packet: &[u8]| -> Vec<u8> { packet[PAYLOAD_AT..].to_vec() };
            let turned: u32 = bits(&before)
                .iter()
                .zip(bits(&after))
                .map(|(before, after)| (before ^ after).count_ones())
                .sum();
            assert_eq!(turned, 1, "length {length}");
        }
        assert!(!corrupt(&mut packet(&[]), &mut rng), "nothing to turn");
    }

    #[test]
    fn a_nat_that_rebinds_changes_the_port_both_ways_and_swallows_complaints() {
        let faults = Faults::default();
        let mut rng = StdRng::seed_from_u64(7);
        let original = packet(b"hello");
        let mut out = original.clone();
        assert!(faults.let_pass(&mut out, Side::Right, &mut rng));
        assert_eq!(out, original, "no NAT yet");
        let mut ports = std::collections::HashSet::new();
        for _ in 0..100 {
            faults.rebind();
            let mut out = original.clone();
            assert!(faults.let_pass(&mut out, Side::Right, &mut rng));
            assert_eq!(sum(&out), 0xffff);
            let port = u16::from_be_bytes([out[20], out[21]]);
            assert!(port >= 1_024);
            ports.insert(port);
            // The answer: to the port that the packet came from.
            let mut answer = out.clone();
            answer.swap(20, 22);
            answer.swap(21, 23);
            assert!(faults.let_pass(&mut answer, Side::Left, &mut rng));
            assert_eq!(u16::from_be_bytes([answer[22], answer[23]]), 40_000);
        }
        assert!(ports.len() > 90, "{}", ports.len());
        let mut icmp = original;
        icmp[9] = ICMP;
        assert!(!faults.let_pass(&mut icmp.clone(), Side::Right, &mut rng));
        assert!(faults.let_pass(&mut icmp, Side::Left, &mut rng));
    }

    #[test]
    fn a_black_hole_takes_everything_and_loss_its_share() {
        let faults = Faults::default();
        let mut rng = StdRng::seed_from_u64(7);
        faults.set_black_hole(true);
        assert!(!faults.let_pass(&mut packet(b"x"), Side::Left, &mut rng));
        faults.set_black_hole(false);
        faults.set_loss(0.3);
        let lost = (0..10_000)
            .filter(|_| !faults.let_pass(&mut packet(b"x"), Side::Left, &mut rng))
            .count();
        assert!((2_700..3_300).contains(&lost), "{lost}");
        assert_eq!(faults.swallowed_packets(), 1 + lost as u64);
    }
}
