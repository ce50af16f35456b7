//! From a lane to the socket: packets gathered into GSO batches, pacing honoured.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::lane::Lane;
use crate::sys::udp::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};

/// A packet may leave this much before its time: the runtime's timer has steps of one millisecond.
const PACING_SLACK: Duration = Duration::from_millis(1);

/// Room behind a full batch for the packet that does not fit it: quiche may produce its largest one, a probe.
const SPARE_BYTES: usize = 16_384;

/// Bytes gathered for one send call, and where they go.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Vec<u8>,
    /// The batch to send is `..end`. A packet that did not fit it lies behind.
    end: usize,
    carried: Option<Packet>,
    segment: usize,
    to: Option<(SocketAddr, IpAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct Packet {
    length: usize,
    to: (SocketAddr, IpAddr),
}

/// One send call's worth.
#[derive(Debug)]
pub(super) struct Ready<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) segment: usize,
    pub(super) to: SocketAddr,
    /// The local address of the path, if it is a specific one.
    pub(super) from_ip: Option<IpAddr>,
}

impl Ready<'_> {
    pub(super) fn packets(&self) -> usize {
        self.bytes.len().div_ceil(self.segment.max(1))
    }
}

/// Whether a lane has more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// Everything that may be sent now is in the batch.
    All,
    /// The batch is full.
    More,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            buffer: vec![0; GSO_BYTES_MAX + 2 * SPARE_BYTES],
            end: 0,
            carried: None,
            segment: 0,
            to: None,
        }
    }

    /// Fills the batch from `lane`: packets of one size to one address; a shorter one ends it.
    pub(super) fn fill(&mut self, lane: &Lane, now: Instant, segments_max: usize) -> Filled {
        self.begin();
        let segments_max = segments_max.clamp(1, GSO_SEGMENTS_MAX);
        let mut conn = lane.conn.borrow_mut();
        lane.release_at.set(None);
        loop {
            let used = self.end;
            if used > 0
                && (!used.is_multiple_of(self.segment)
                    || used / self.segment >= segments_max
                    || used + self.segment > GSO_BYTES_MAX)
            {
                return Filled::More;
            }
            if self.carried.is_some() {
                return Filled::More;
            }
            if let Some(at) = conn
                .get_next_release_time()
                .and_then(|release| release.time(now))
                && at > now + PACING_SLACK
            {
                lane.release_at
                    .set(Some(at.checked_sub(PACING_SLACK).unwrap_or(at)));
                return Filled::All;
            }
            let Ok((length, info)) = conn.send(&mut self.buffer[self.end..]) else {
                // `Done`, or an error that has closed the connection, which `is_closed` tells.
                lane.queue_drained();
                return Filled::All;
            };
            lane.packet_sent(length);
            self.append(Packet {
                length,
                to: (info.to, info.from.ip()),
            });
        }
    }

    /// What is to be sent now.
    pub(super) fn ready(&self) -> Option<Ready<'_>> {
        let (to, from_ip) = self.to?;
        let bytes = &self.buffer[..self.end];
        (!bytes.is_empty()).then_some(Ready {
            bytes,
            segment: self.segment,
            to,
            from_ip: (!from_ip.is_unspecified()).then_some(from_ip),
        })
    }

    /// True if a packet waits for the next batch.
    pub(super) fn carries(&self) -> bool {
        self.carried.is_some()
    }

    /// Starts a batch, with the packet that did not fit the last one, if any.
    fn begin(&mut self) {
        let end = std::mem::take(&mut self.end);
        self.to = None;
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
            }
            Some(to) if to == packet.to && packet.length <= self.segment => {
                self.end += packet.length;
            }
            Some(_) => self.carried = Some(packet),
        }
    }
}
