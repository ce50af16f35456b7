//! From a lane to the socket: packets are gathered into GSO batches, and paced.

use std::time::{Duration, Instant};

use super::lane::{CONTROL_STREAM, Connection, Lane};
use super::roaming::Way;
use crate::sys::udp::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};

/// How long before its pacing time a packet may be sent, so that one call sends several. It bounds
/// a burst: at 200 Mbit/s, a millisecond is 17 packets of 1,472 bytes.
const PACING_BURST: Duration = Duration::from_millis(1);

/// How long before the pacing time of its next packet a lane gets its next turn. quiche's pacer
/// does not make up for lost time, so the turn must come before that time; half a burst is ten
/// times the lateness of a fine timer.
const PACING_REST: Duration = Duration::from_micros(500);

const _: () = assert!(PACING_REST.as_micros() < PACING_BURST.as_micros());

/// Number of batches that a full congestion window is made of, at least, unless it is smaller than
/// [`BATCH_BYTES_SURE`]. With one, sender and receiver work in turns: the one sends the window and
/// waits, the other reads it and acknowledges it. On a path whose round trips are mostly this work,
/// BBR takes the rate of that for the path's, and keeps such a window for good: of packets of 1,450
/// bytes, one lane in five carried 2.6 to 4 Gbit/s instead of 8.4 for as long as it lived
/// (`qmux-bench iperf --cases '=tcp ×1' --path veth:1500 --seconds 1 --repeats 20`; none of 36 with
/// two batches, and none of 20 with four).
const BATCHES_PER_WINDOW: usize = 2;

/// A batch may be this large whatever the window, so that small ones need not ask for it: where the
/// window is that small, the path is slow, and not its ends.
pub(super) const BATCH_BYTES_SURE: usize = GSO_BYTES_MAX / 4;

/// The most packets that are taken at a time from a connection that closes, until one says so.
///
/// Where a client closes before its handshake is confirmed, and a packet of the handshake must be
/// probed for, quiche makes acknowledgements in Handshake packets, one after another and without
/// end: a connection that closes sends no probe, so that the probe stays due, and what would end
/// it, an application's CONNECTION_CLOSE, quiche puts into 1-RTT packets alone. It then ends with
/// its idle timeout.
pub(super) const CLOSING_PACKETS_MAX: usize = 2;

/// The bit of a packet's first byte that says that its header is a long one.
const LONG_HEADER: u8 = 0x80;

/// Space in the buffer behind a full batch, for a packet that does not fit into the batch: quiche
/// may produce its largest packet, an MTU probe.
const SPARE_BYTES: usize = 16_384;

/// The most bytes of a batch by the congestion window of `conn`. The kernel's TCP, under TLS, sends
/// as it sees fit.
fn bytes_of_window(conn: &Connection, to: Way) -> usize {
    if to.tls.is_some() {
        return GSO_BYTES_MAX;
    }
    let path = conn.path_stats().find(|path| path.active);
    path.map_or(GSO_BYTES_MAX, |path| path.cwnd / BATCHES_PER_WINDOW)
}

/// The bytes for one send call, and their destination.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Vec<u8>,
    /// The batch to send is `..end` of the buffer. A packet that did not fit into it follows at
    /// `end`.
    end: usize,
    carried: Option<Packet>,
    segment: usize,
    to: Option<Way>,
    /// Whether the first packet must be sent alone.
    alone: bool,
    /// Whether no other packet may overtake the first one.
    keeps_place: bool,
    /// Whether the first packet was made after the second one.
    turned_round: bool,
    /// The key of the lane whose packets are kept here until the socket takes them.
    unsent_of: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    length: usize,
    to: Way,
    /// Whether the packet is a probe of the path's MTU. The kernel may refuse to send it, so no
    /// other packet may be in the same call.
    probe: bool,
    /// Whether no other packet may overtake it, nor it another one: datagrams keep their order, and
    /// behind the end of the connection nothing is read.
    keeps_place: bool,
}

/// The packets of one send call.
#[derive(Debug)]
pub(super) struct Ready<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) segment: usize,
    pub(super) way: Way,
    /// Whether the first packet was made after the second one.
    pub(super) turned_round: bool,
}

impl Ready<'_> {
    pub(super) fn packets(&self) -> usize {
        self.bytes.len().div_ceil(self.segment.max(1))
    }

    /// The packet with the highest number.
    pub(super) fn last_made(&self) -> &[u8] {
        let mut packets = self.bytes.chunks(self.segment.max(1));
        let last = match self.turned_round {
            true => packets.next(),
            false => packets.next_back(),
        };
        last.unwrap_or_default()
    }
}

/// Whether a lane has more to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// Everything that may be sent now is in the batch.
    All,
    /// The batch is full.
    More,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            buffer: vec![0; GSO_BYTES_MAX + 2 * SPARE_BYTES],
            end: 0,
            carried: None,
            segment: 0,
            to: None,
            alone: false,
            keeps_place: false,
            turned_round: false,
            unsent_of: None,
        }
    }
}

impl Batch {
    /// Fills the batch from `lane` with packets of one size to one address; a shorter packet ends
    /// it, and may have been made before the one that it follows.
    pub(super) fn fill(&mut self, lane: &Lane, segments_max: usize) -> Filled {
        self.begin();
        let now = Instant::now();
        let segments_max = segments_max.clamp(1, GSO_SEGMENTS_MAX);
        let to = lane.way();
        let mut conn = lane.conn.borrow_mut();
        lane.release_at.set(None);
        lane.closes.set(false);
        // TCP (under TLS) paces by itself, and says when it is full. A lane that hurries is not
        // paced either: after a time without any acknowledgement quiche's pacer may hold the next
        // packet back for seconds, and on a new path no packet is in flight before it.
        let unpaced = lane.hurries.take() || to.tls.is_some();
        let mut bytes_max = None;
        let mut closing_packets = 0;
        loop {
            let used = self.end;
            if used > 0
                && (self.alone
                    || !used.is_multiple_of(self.segment)
                    || used / self.segment >= segments_max
                    || used + self.segment > GSO_BYTES_MAX
                    || (used >= BATCH_BYTES_SURE
                        && used + self.segment
                            > *bytes_max.get_or_insert_with(|| bytes_of_window(&conn, to))))
            {
                return Filled::More;
            }
            if self.carried.is_some() {
                return Filled::More;
            }
            if closing_packets >= CLOSING_PACKETS_MAX {
                return Filled::All;
            }
            if !unpaced
                && let Some(at) = conn
                    .get_next_release_time()
                    .and_then(|release| release.time(now))
                && at > now + PACING_BURST
            {
                lane.release_at.set(at.checked_sub(PACING_REST));
                return Filled::All;
            }
            let Some(room) = lane.send_budget(self.buffer.len() - self.end) else {
                return Filled::All;
            };
            // This stands behind the two returns above: a lane that sends nothing, because of its
            // pacing or of the budget of its path, still has its acknowledgements to send.
            lane.acks_sent();
            let out = &mut self.buffer[self.end..self.end + room];
            let datagrams = conn.dgram_send_queue_len();
            let Ok((length, _addresses)) = conn.send(out) else {
                // The result is `Done`, or an error that has closed the connection, which
                // `is_closed` tells.
                let capacity = conn.stream_capacity(CONTROL_STREAM).ok();
                lane.unsent.stopped(capacity, lane.packet_bytes_max());
                return Filled::All;
            };
            let has_datagrams = conn.dgram_send_queue_len() < datagrams;
            lane.unsent.packet_sent(length, has_datagrams);
            let closes = conn.local_error().is_some();
            if closes && !conn.is_draining() {
                closing_packets += 1;
            }
            lane.spend(length);
            self.append(Packet {
                length,
                to,
                probe: length > lane.packet_bytes_max(),
                keeps_place: has_datagrams || closes,
            });
        }
    }

    /// The packets that are to be sent now, if any.
    pub(super) fn ready(&self) -> Option<Ready<'_>> {
        let way = self.to?;
        let bytes = &self.buffer[..self.end];
        (!bytes.is_empty()).then_some(Ready {
            bytes,
            segment: self.segment,
            way,
            turned_round: self.turned_round,
        })
    }

    /// Keeps the packets of this lane that are ready, because the socket had no room for them. The
    /// batch must not be filled again before they are sent.
    pub(super) fn keep_for(&mut self, lane: u64) {
        self.unsent_of = Some(lane);
    }

    /// Whether packets are kept.
    pub(super) fn is_kept(&self) -> bool {
        self.unsent_of.is_some()
    }

    /// Takes the key of the lane whose packets were kept and are to be sent now.
    pub(super) fn take_kept(&mut self) -> Option<u64> {
        self.unsent_of.take()
    }

    /// Whether a packet waits for the next batch.
    pub(super) fn carries(&self) -> bool {
        self.carried.is_some()
    }

    /// Starts a batch, with the packet that did not fit the last one, if there is one.
    fn begin(&mut self) {
        let end = std::mem::take(&mut self.end);
        self.to = None;
        (self.alone, self.turned_round) = (false, false);
        if let Some(packet) = self.carried.take() {
            self.buffer.copy_within(end..end + packet.length, 0);
            self.append(packet);
        }
    }

    fn append(&mut self, packet: Packet) {
        match self.to {
            None => {
                self.to = Some(packet.to);
                self.segment = packet.length;
                self.end += packet.length;
                self.alone = packet.probe;
                self.keeps_place = packet.keeps_place || self.buffer[0] & LONG_HEADER != 0;
            }
            Some(to) if to == packet.to && packet.length <= self.segment => {
                self.end += packet.length;
            }
            Some(to) if to == packet.to && self.may_turn_round(packet) => {
                let both = self.end + packet.length;
                self.buffer[..both].rotate_left(self.end);
                (self.segment, self.end, self.turned_round) = (packet.length, both, true);
            }
            Some(_) => self.carried = Some(packet),
        }
    }

    /// Whether a longer packet may leave before the one that was made first, so that both go with
    /// one call: an acknowledgement, or a stream's FIN, is mostly followed by something longer.
    /// QUIC's packets may come in any order, and one that is late by one packet is not taken for
    /// lost (RFC 9002, section 6.1.1). But 1-RTT packets mean nothing before those of the
    /// handshake, which have long headers (RFC 9000, section 17.2).
    fn may_turn_round(&self, packet: Packet) -> bool {
        self.end == self.segment
            && !(self.keeps_place || packet.keeps_place || packet.probe)
            && self.buffer[self.end] & LONG_HEADER == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: u8 = 0x40;
    const LONG: u8 = 0xc0;

    /// Batches of packets with these first bytes and lengths: for each batch the first bytes of its
    /// packets in the order of sending, with the length of the last one that was made.
    fn batches(packets: &[(u8, usize)]) -> Vec<(Vec<u8>, usize)> {
        batches_of(packets, false)
    }

    fn batches_of(packets: &[(u8, usize)], keeps_place: bool) -> Vec<(Vec<u8>, usize)> {
        let peer = "127.0.0.1:1".parse().expect("literal");
        let to = Way::over_udp(peer, None);
        let mut batch = Batch::default();
        let mut packets = packets.iter().copied();
        let mut all = Vec::new();
        loop {
            batch.begin();
            while !batch.carries() && batch.end.is_multiple_of(batch.segment.max(1)) {
                let Some((first, length)) = packets.next() else {
                    break;
                };
                let at = batch.end;
                batch.buffer[at..at + length].fill(first);
                batch.append(Packet {
                    length,
                    to,
                    probe: length > 1_000,
                    keeps_place,
                });
            }
            let Some(ready) = batch.ready() else {
                return all;
            };
            let order = ready.bytes.chunks(ready.segment).map(|packet| {
                assert!(packet.iter().all(|byte| *byte == packet[0]), "torn apart");
                packet[0]
            });
            all.push((order.collect(), ready.last_made().len()));
            batch.segment = 0;
        }
    }

    #[test]
    fn a_short_packet_goes_behind_the_longer_one_that_was_made_after_it() {
        assert_eq!(
            batches(&[(SHORT, 39), (SHORT + 1, 102)]),
            [(vec![SHORT + 1, SHORT], 102)]
        );
        // Both end the batch.
        assert_eq!(
            batches(&[(SHORT, 39), (SHORT + 1, 102), (SHORT + 2, 102)]),
            [(vec![SHORT + 1, SHORT], 102), (vec![SHORT + 2], 102)]
        );
        assert_eq!(
            batches(&[(SHORT, 102), (SHORT + 1, 102), (SHORT + 2, 39)]),
            [(vec![SHORT, SHORT + 1, SHORT + 2], 39)]
        );
        // One that was carried, and packets that grow.
        assert_eq!(
            batches(&[(LONG, 39), (SHORT, 50), (SHORT + 1, 102)]),
            [(vec![LONG], 39), (vec![SHORT + 1, SHORT], 102)]
        );
        assert_eq!(
            batches(&[(SHORT, 39), (SHORT + 1, 50), (SHORT + 2, 60)]),
            [(vec![SHORT + 1, SHORT], 50), (vec![SHORT + 2], 60)]
        );
    }

    #[test]
    fn packets_of_the_handshake_probes_and_what_keeps_its_place_stay_where_they_are() {
        let in_order = |packets: &[(u8, usize)], keeps_place| {
            let expected = packets.iter().map(|it| (vec![it.0], it.1));
            let expected: Vec<_> = expected.collect();
            assert_eq!(batches_of(packets, keeps_place), expected);
        };
        in_order(&[(LONG, 39), (SHORT, 102)], false);
        in_order(&[(SHORT, 39), (LONG, 102)], false);
        in_order(&[(SHORT, 39), (SHORT + 1, 1_001)], false);
        in_order(&[(SHORT, 600), (SHORT + 1, 900)], true);
    }
}
