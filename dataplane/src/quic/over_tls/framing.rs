//! Packets in a stream of bytes: each has its length in front, 2 bytes in network byte order.
//!
//! There is no I/O in here. A length that no packet can have ends the connection, because
//! everything after it would be read at the wrong places.

/// Bytes in front of a packet.
pub(super) const HEADER_BYTES: usize = 2;

/// The largest packet: the largest that QUIC takes (`PACKET_BYTES_MAX` of [`crate::quic::settings`]
/// is less).
pub(super) const PACKET_BYTES_MAX: usize = 16_384;

/// The smallest packet: a short header, its packet number and an authentication tag of 16 bytes are
/// more.
pub(super) const PACKET_BYTES_MIN: usize = 16;

const _: () = assert!(crate::quic::settings::PACKET_BYTES_MAX <= PACKET_BYTES_MAX);

/// The peer does not speak this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a packet of {length} bytes, which cannot be: they have {PACKET_BYTES_MIN} to {PACKET_BYTES_MAX}"
)]
pub(super) struct BadLength {
    length: usize,
}

/// Appends a packet to the bytes to be sent. One that is too large is left out; quiche makes none.
pub(super) fn append(packet: &[u8], to: &mut Vec<u8>) {
    if let Ok(length) = u16::try_from(packet.len())
        && packet.len() <= PACKET_BYTES_MAX
    {
        to.extend_from_slice(&length.to_be_bytes());
        to.extend_from_slice(packet);
    }
}

/// Calls `each` with every whole packet, in order, and returns how many bytes they took.
///
/// # Errors
/// If the bytes are not packets.
pub(super) fn split(
    mut bytes: &mut [u8],
    mut each: impl FnMut(&mut [u8]),
) -> Result<usize, BadLength> {
    let mut taken = 0;
    while let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() {
        let length = usize::from(u16::from_be_bytes(*header));
        if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&length) {
            return Err(BadLength { length });
        }
        let Some((packet, rest)) = rest.split_at_mut_checked(length) else {
            break;
        };
        each(packet);
        taken += HEADER_BYTES + length;
        bytes = rest;
    }
    Ok(taken)
}

/// The first packet, if it is whole.
pub(super) fn first(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    rest.get(..usize::from(u16::from_be_bytes(*header)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, RngExt as _, SeedableRng as _};

    #[test]
    fn packets_come_out_as_they_went_in_however_the_stream_is_cut() {
        let seed = rand::random();
        let mut random = StdRng::seed_from_u64(seed);
        let mut packets: Vec<Vec<u8>> = Vec::new();
        let mut stream = Vec::new();
        for _ in 0..300 {
            let mut packet = vec![0; random.random_range(PACKET_BYTES_MIN..=PACKET_BYTES_MAX)];
            random.fill_bytes(&mut packet);
            append(&packet, &mut stream);
            packets.push(packet);
        }
        let (mut come, mut waits) = (Vec::new(), Vec::new());
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.random_range(1..=rest.len().min(40_000)));
            waits.extend_from_slice(now);
            let taken = split(&mut waits, |packet| come.push(packet.to_vec())).expect("packets");
            waits.drain(..taken);
            rest = later;
        }
        assert!(waits.is_empty() && come == packets, "seed {seed}");
    }

    #[test]
    fn a_length_that_no_packet_has_is_refused_at_once() {
        for length in [0, PACKET_BYTES_MIN - 1, PACKET_BYTES_MAX + 1, 65_535] {
            let header = u16::try_from(length).expect("16 bits").to_be_bytes();
            let refused = split(&mut header.to_vec(), |_| panic!("no packet"));
            assert_eq!(refused, Err(BadLength { length }));
        }
    }
}
