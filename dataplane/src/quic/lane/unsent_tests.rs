//! How much flows may write: cases, and a model of a lane whose window is always full.

use super::*;

const PACKET: usize = 1_350;
const HEADERS: usize = 40;

/// What quiche would take, where nothing but the window limits the lane.
fn window(capacity: usize) -> Limits {
    Limits {
        capacity,
        datagrams_wait: false,
        is_paced: false,
    }
}

#[test]
fn what_waits_behind_a_full_window_leaves_the_less_room_in_it() {
    let unsent = Unsent::default();
    unsent.wrote(20_000);
    unsent.window_counted();
    unsent.packet_sent(PACKET, false);
    unsent.packet_sent(PACKET, false);
    unsent.stopped(Some(3_000), PACKET);
    let behind = unsent.waiting.get();
    assert!(behind > 20_000 - 2 * PACKET);
    unsent.window_counted();
    let most = BEHIND_WINDOW_BYTES_MAX;
    assert_eq!(unsent.room(window(0), 1), most - behind);
    assert_eq!(unsent.room(window(500), 1), most + 500 - behind);
    let many = unsent.room(window(behind), 1_000_000);
    assert_eq!(many, 0, "many flows leave nothing there");
}

#[test]
fn nothing_waits_where_the_window_had_more_to_give() {
    let unsent = Unsent::default();
    unsent.wrote(20_000);
    unsent.packet_sent(PACKET, false);
    unsent.stopped(Some(50_000), PACKET);
    assert_eq!(unsent.waiting.get(), 0);
    assert_eq!(unsent.room(window(1 << 30), 1), QUEUE_BYTES_MAX);
}

#[test]
fn without_a_window_the_queue_alone_bounds_what_waits() {
    let unsent = Unsent::default();
    unsent.wrote(QUEUE_BYTES_MAX - 10);
    assert_eq!(unsent.room(window(1 << 30), 1), 10);
    unsent.stopped(None, PACKET);
    assert_eq!(unsent.waiting.get(), 0);
}

#[test]
fn a_window_of_a_few_bytes_is_room_all_the_same() {
    let unsent = Unsent::default();
    unsent.stopped(Some(1_000), 16_000);
    for bytes in [8, 1_000, 5_400, 16_000] {
        assert!(unsent.room(window(bytes), 100) > bytes / 2, "{bytes}");
    }
}

#[test]
fn of_several_flows_little_waits_while_pacing_holds_packets_back() {
    let unsent = Unsent::default();
    let paced = Limits {
        is_paced: true,
        ..window(1 << 30)
    };
    assert_eq!(unsent.room(paced, 2), PACED_BYTES_MAX);
    assert_eq!(unsent.room(paced, 1), QUEUE_BYTES_MAX);
    unsent.wrote(PACED_BYTES_MAX - WAKE_AT_BYTES + 1);
    assert_eq!(unsent.after_flush(paced, 2), 0);
    unsent.packet_sent(PACKET, false);
    assert!(unsent.after_flush(paced, 2) >= WAKE_AT_BYTES);
}

#[test]
fn behind_a_flush_that_has_filled_the_window_nobody_is_woken_for_little() {
    let unsent = Unsent::default();
    unsent.wrote(20_000);
    (0..15).for_each(|_| unsent.packet_sent(PACKET, false));
    unsent.stopped(Some(500), PACKET);
    assert_eq!(unsent.after_flush(window(500), 1), 0);
    assert!(unsent.after_flush(window(WAKE_AT_BYTES), 1) > 0);
    // A window that is not full is no reason to wait: perhaps nothing is in flight.
    unsent.stopped(Some(50_000), PACKET);
    assert!(unsent.after_flush(window(500), 1) > 0);
}

/// quiche with a congestion window, as far as this module sees it.
struct Path {
    window: usize,
    in_flight: usize,
    /// Bytes of flows with much to write.
    queued: usize,
    /// Packets of a flow that writes [`SMALL`] bytes at a time.
    small: usize,
    capacity: usize,
    /// The size of packets of datagrams, if they always wait.
    datagrams: Option<usize>,
    /// Whether the next packet is of them, if there are any. They and streams are sent in turn.
    prefers_datagrams: bool,
    /// Whether the flow with small writes is next.
    small_is_next: bool,
    /// One packet in this many was lost, and its payload is sent again.
    repeats: Option<usize>,
    packets: usize,
}

/// A write of a flow that has little to say.
const SMALL: usize = 20;

impl Path {
    fn limits(&self) -> Limits {
        Limits {
            datagrams_wait: self.datagrams.is_some(),
            ..window(self.capacity)
        }
    }

    fn acknowledged(&mut self, unsent: &Unsent, bytes: usize) {
        self.in_flight -= bytes.min(self.in_flight);
        self.capacity = self.window - self.in_flight;
        unsent.window_counted();
    }

    fn write(&mut self, unsent: &Unsent, bytes: usize) {
        let taken = bytes.min(self.capacity);
        self.capacity -= taken;
        self.queued += taken;
        unsent.wrote(taken);
    }

    fn write_little(&mut self, unsent: &Unsent) {
        if self.capacity >= SMALL {
            self.capacity -= SMALL;
            self.small += 1;
            unsent.wrote(SMALL);
        }
    }

    /// Sends what the window lets through. Returns the bytes of streams.
    fn flush(&mut self, unsent: &Unsent) -> usize {
        let mut sent = 0;
        loop {
            let left = self.window - self.in_flight;
            let has_stream = self.queued + self.small > 0 && left > HEADERS;
            let datagram = self.datagrams.filter(|bytes| *bytes <= left);
            let datagram = datagram.filter(|_| self.prefers_datagrams || !has_stream);
            let bytes = if let Some(bytes) = datagram {
                bytes
            } else if has_stream && self.small > 0 && (self.small_is_next || self.queued == 0) {
                self.small -= 1;
                self.small_is_next = false;
                sent += SMALL;
                SMALL + HEADERS
            } else if has_stream {
                let payload = self.queued.min(left.min(PACKET) - HEADERS);
                self.queued -= payload;
                self.small_is_next = true;
                sent += payload;
                payload + HEADERS
            } else {
                self.prefers_datagrams = true;
                break;
            };
            self.prefers_datagrams = datagram.is_none();
            self.packets += 1;
            self.in_flight += bytes.min(left);
            unsent.packet_sent(bytes, datagram.is_some());
            let lost = self
                .repeats
                .is_some_and(|every| self.packets.is_multiple_of(every));
            if lost && datagram.is_none() {
                self.queued += bytes - HEADERS;
            }
        }
        unsent.stopped(Some(self.capacity), PACKET);
        sent
    }
}

/// What a lane did whose flows always have something to write.
#[derive(Debug)]
struct Run {
    /// The part of what acknowledgements freed that was used for streams.
    used: f64,
    /// Flushes per acknowledgement.
    flushes: f64,
    /// The most that waited behind a flush.
    waited: usize,
}

/// A lane with this many flows. Each acknowledgement frees `freed`.
fn run(flows: usize, freed: usize, datagrams: Option<usize>, repeats: Option<usize>) -> Run {
    const ROUNDS: usize = 5_000;
    let unsent = Unsent::default();
    let mut path = Path {
        window: 1_000_000,
        in_flight: 1_000_000,
        queued: 0,
        small: 0,
        capacity: 0,
        datagrams,
        prefers_datagrams: true,
        small_is_next: false,
        repeats,
        packets: 0,
    };
    let (mut used, mut flushes, mut waited) = (0, 0, 0);
    for round in 0..ROUNDS {
        path.acknowledged(&unsent, freed);
        if datagrams.is_some() {
            path.write_little(&unsent);
        }
        if let Some(room) = unsent.before_flush(path.limits(), flows) {
            path.write(&unsent, room);
        }
        loop {
            flushes += 1;
            used += path.flush(&unsent);
            let room = unsent.after_flush(path.limits(), flows).min(path.capacity);
            if room == 0 || flushes > 10 * ROUNDS {
                break;
            }
            path.write(&unsent, room);
        }
        if round > 2 * KNOWN_FOR as usize {
            waited = waited.max(path.queued + SMALL * path.small);
        }
    }
    Run {
        used: used as f64 / (ROUNDS * freed) as f64,
        flushes: f64::from(flushes as u32) / ROUNDS as f64,
        waited,
    }
}

#[test]
fn flows_of_a_full_lane_write_what_the_window_lets_through_and_no_more() {
    for flows in [2, 100, 5_000] {
        for freed in [2 * PACKET, 17 * PACKET + 300, 100 * PACKET] {
            let run = run(flows, freed, None, None);
            assert!(run.used > 0.94, "{flows}, {freed}: {run:?}");
            assert!(run.waited <= PACKET, "{flows}, {freed}: {run:?}");
            assert!(run.flushes < 1.2, "{flows}, {freed}: {run:?}");
        }
    }
}

#[test]
fn one_flow_of_a_full_lane_uses_it_with_one_flush() {
    for freed in [2 * PACKET, 17 * PACKET + 300, 100 * PACKET] {
        let run = run(1, freed, None, None);
        assert!(run.used > 0.94, "{freed}: {run:?}");
        assert!(run.flushes < 1.2, "{freed}: {run:?}");
    }
}

#[test]
fn what_is_repeated_after_losses_does_not_pile_up_unseen() {
    let run = run(100, 17 * PACKET + 300, None, Some(100));
    assert!(run.used > 0.94, "{run:?}");
    assert!(run.waited <= 8 * PACKET, "{run:?}");
    assert!(run.flushes < 1.3, "{run:?}");
}

#[test]
fn flows_beside_datagrams_that_keep_the_window_full_get_their_part_and_no_more() {
    for flows in [1, 2, 100, 5_000] {
        for freed in [PACKET, 2 * PACKET, 17 * PACKET + 300, 100 * PACKET] {
            for datagram in [100, 240, 1_034, 1_130, PACKET] {
                for repeats in [None, Some(100), Some(5)] {
                    let run = run(flows, freed, Some(datagram), repeats);
                    let case = format!("{flows}, {freed}, {datagram}, {repeats:?}: {run:?}");
                    // A packet of each in turn, of different sizes.
                    let part = PACKET as f64 / (PACKET + datagram) as f64;
                    // quiche begins each flush with datagrams: where there is room for few
                    // packets, they may get nearly all of it.
                    let few = freed < 2 * (datagram + PACKET);
                    assert!(run.used > 0.3 * part || few, "{case}");
                    assert!(run.flushes < 3.0, "{case}");
                    assert!(run.waited < QUEUE_BYTES_MAX + freed, "{case}");
                }
            }
        }
    }
}
