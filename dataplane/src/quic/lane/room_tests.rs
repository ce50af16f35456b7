//! Scheduling of flows: counts, fairness, and a simulation of a lane with many flows.

use std::task::{Context, Waker};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use slab::Slab;

use super::*;

/// Bytes that one look at the queue may hand out.
const WINDOW_BYTES: usize = 4 * SHARE_BYTES;

/// Flows of the simulated lane.
const FLOWS_MAX: usize = 40;

fn flow(stream: u64) -> Rc<StreamWaiters> {
    Rc::new(StreamWaiters {
        stream,
        ..StreamWaiters::default()
    })
}

fn was_woken(flow: &StreamWaiters) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    flow.writable.poll(&mut cx).is_ready()
}

#[test]
fn as_many_flows_are_woken_as_there_is_room_for_however_many_wait() {
    for flows in [1, 100, 1_000] {
        let queue = RoomQueue::default();
        let all: Vec<_> = (0..flows).map(flow).collect();
        for flow in &all {
            queue.wait(flow);
            queue.wait(flow);
        }
        assert_eq!(queue.len(), all.len(), "each is queued once");
        let woken = queue.wake(2 * SHARE_BYTES, |_| Capacity::Bytes(1 << 20));
        assert_eq!(woken, flows.min(2));
        let told = all.iter().filter(|flow| was_woken(flow)).count();
        assert_eq!(told as u64, woken);
    }
}

#[test]
fn a_request_goes_before_downloads_that_have_had_their_share() {
    let queue = RoomQueue::default();
    let downloads: Vec<_> = (0..100).map(flow).collect();
    for download in &downloads {
        queue.took(download, SHARE_BYTES);
    }
    for download in &downloads {
        queue.wait(download);
    }
    let request = flow(1_000);
    assert!(queue.allowance(&request) > 0, "it need not even wait");
    queue.wait(&request);
    assert_eq!(queue.wake(1, |_| Capacity::Bytes(1 << 20)), 1);
    assert!(was_woken(&request));
    assert_eq!(queue.allowance(&downloads[0]), 0);
}

#[test]
fn a_flow_that_has_little_room_goes_on_with_its_turn_before_the_next_one() {
    let queue = RoomQueue::default();
    let (one, other) = (flow(1), flow(2));
    for flow in [&one, &other] {
        queue.took(flow, SHARE_BYTES);
        queue.wait(flow);
    }
    for _ in 0..4 {
        assert_eq!(queue.wake(1, |_| Capacity::Bytes(1)), 1);
        assert!(
            was_woken(&one) && !was_woken(&other),
            "its bytes travel together"
        );
        queue.took(&one, SHARE_BYTES / 4);
        queue.wait(&one);
    }
    assert_eq!(queue.wake(1, |_| Capacity::Bytes(1)), 1);
    assert!(was_woken(&other), "its share is used up");
}

#[test]
fn requests_do_not_keep_downloads_from_their_turn() {
    let queue = RoomQueue::default();
    let download = flow(0);
    queue.took(&download, SHARE_BYTES);
    queue.wait(&download);
    for stream in 1.. {
        let request = flow(stream);
        if queue.allowance(&request) == 0 {
            break;
        }
        let gone_first = stream as usize * SHARE_BYTES;
        assert!(gone_first <= JUMPED_BYTES_MAX, "they all go first");
        queue.took(&request, SHARE_BYTES);
    }
    queue.wait(&flow(10_000));
    assert_eq!(queue.wake(1, |_| Capacity::Bytes(1)), 1);
    assert!(was_woken(&download));
}

#[test]
fn a_flow_that_the_lane_has_no_room_for_keeps_its_place() {
    let queue = RoomQueue::default();
    let (one, two) = (flow(1), flow(2));
    queue.wait(&one);
    queue.wait(&two);
    assert_eq!(queue.wake(WINDOW_BYTES, |_| Capacity::LaneFull), 0);
    assert_eq!(queue.len(), 2);
    assert_eq!(queue.wake(1, |_| Capacity::Bytes(1)), 1);
    assert!(was_woken(&one) && !was_woken(&two));
}

#[test]
fn a_flow_whose_own_window_is_full_comes_back_when_quiche_reports_it() {
    let queue = RoomQueue::default();
    let (one, idle) = (flow(1), flow(2));
    queue.wait(&one);
    assert_eq!(queue.wake(WINDOW_BYTES, |_| Capacity::StreamFull), 0);
    assert_eq!(queue.len(), 0);
    assert!(queue.reported(&one), "it still waits");
    assert!(!queue.reported(&idle), "it does not");
    assert_eq!(queue.wake(1, |_| Capacity::Bytes(1)), 1);
    assert!(was_woken(&one) && !was_woken(&idle));
}

/// A lane in miniature: a congestion window, flows with windows of their own, acknowledgements.
struct World {
    rng: SmallRng,
    queue: RoomQueue,
    /// The flows by the number of their stream.
    flows: Slab<Sender>,
    room: usize,
    woken: u64,
    written: u64,
}

struct Sender {
    waiters: Rc<StreamWaiters>,
    /// Bytes that it has to send.
    backlog: usize,
    /// Bytes that its stream takes.
    window: usize,
    /// Whether its task waits for the event.
    asleep: bool,
    /// Whether quiche reports it once the window grows.
    armed: bool,
    /// Bytes that others had written when it began to wait.
    waiting_since: Option<u64>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            rng: SmallRng::seed_from_u64(seed),
            queue: RoomQueue::default(),
            flows: Slab::new(),
            room: 0,
            woken: 0,
            written: 0,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..10) {
            0 if self.flows.len() < FLOWS_MAX => self.open(),
            1 if self.rng.random_bool(0.2) => self.close(),
            2 => self.grow_window(),
            3 | 4 => self.send_more(),
            _ => self.acknowledge(),
        }
        self.turn();
    }

    /// One of the flows, if the place that was picked is not vacant.
    fn any(&mut self) -> Option<&mut Sender> {
        let at = self.rng.random_range(0..FLOWS_MAX);
        self.flows.get_mut(at)
    }

    fn open(&mut self) {
        let window = self.rng.random_range(1..(1 << 20));
        let sender = Sender {
            waiters: flow(self.flows.vacant_key() as u64),
            backlog: self.rng.random_range(0..(1 << 20)),
            window,
            asleep: false,
            armed: false,
            waiting_since: None,
        };
        self.flows.insert(sender);
    }

    fn close(&mut self) {
        if let Some(sender) = self.any() {
            sender.waiters.share.leave();
            let key = sender.waiters.stream as usize;
            self.flows.remove(key);
        }
    }

    fn grow_window(&mut self) {
        let more = self.rng.random_range(1..(1 << 20));
        let written = self.written;
        let Some(sender) = self.any() else { return };
        sender.window += more;
        if std::mem::take(&mut sender.armed) {
            sender.waiting_since = Some(written);
            let waiters = Rc::clone(&sender.waiters);
            self.queue.reported(&waiters);
        }
    }

    fn send_more(&mut self) {
        let more = self.rng.random_range(1..(1 << 20));
        if let Some(sender) = self.any() {
            sender.backlog += more;
        }
    }

    fn acknowledge(&mut self) {
        let more = self.rng.random_range(1..WINDOW_BYTES);
        self.room = (self.room + more).min(WINDOW_BYTES);
    }

    /// A turn of the core: wakes flows, lets them run, and repeats that while any was woken.
    fn turn(&mut self) {
        for _ in 0..100 {
            let flows = RefCell::new(std::mem::take(&mut self.flows));
            let room = self.room;
            let woken = self.queue.wake(room, |stream| {
                let mut flows = flows.borrow_mut();
                match flows.get_mut(stream as usize) {
                    None => Capacity::Bytes(1),
                    Some(sender) if sender.window == 0 => {
                        sender.armed = true;
                        Capacity::StreamFull
                    }
                    Some(sender) => Capacity::Bytes(sender.window.min(room)),
                }
            });
            self.flows = flows.into_inner();
            assert!(woken <= self.room as u64, "bounded by the room");
            self.woken += woken;
            let mut ran = false;
            for key in 0..FLOWS_MAX {
                ran |= self.run(key);
            }
            if woken == 0 && !ran {
                return;
            }
        }
        panic!("the turn does not end");
    }

    /// Runs the flow's task, if it does not sleep: it writes while it may.
    fn run(&mut self, key: usize) -> bool {
        let Some(sender) = self.flows.get_mut(key) else {
            return false;
        };
        if sender.asleep && !was_woken(&sender.waiters) {
            return false;
        }
        let mut ran = std::mem::take(&mut sender.asleep);
        sender.waiting_since = None;
        while sender.backlog > 0 {
            let may = self.room.min(self.queue.allowance(&sender.waiters));
            if may == 0 || sender.window == 0 {
                if may == 0 {
                    self.queue.wait(&sender.waiters);
                } else {
                    RoomQueue::waits_for_quiche(&sender.waiters);
                    sender.armed = true;
                }
                sender.asleep = true;
                sender.waiting_since = Some(self.written);
                break;
            }
            let bytes = may.min(sender.window).min(sender.backlog).min(128 << 10);
            sender.backlog -= bytes;
            sender.window -= bytes;
            self.room -= bytes;
            self.written += bytes as u64;
            self.queue.took(&sender.waiters, bytes);
            ran = true;
        }
        ran
    }

    fn check(&self) {
        // Each flow before it has its turn once.
        let most = (FLOWS_MAX + 8) * (JUMPED_BYTES_MAX + 2 * SHARE_BYTES);
        let senders = self.flows.iter().map(|(_, sender)| sender);
        for sender in senders.filter(|sender| sender.asleep) {
            assert!(sender.waiters.share.waits.get(), "it waits for something");
            let queued = sender.waiters.share.queued.get();
            assert!(queued || sender.armed, "nobody will ever wake it");
            if queued && let Some(since) = sender.waiting_since {
                let others = self.written - since;
                assert!(
                    others <= most as u64,
                    "{others} bytes passed while it waited for room"
                );
            }
        }
        assert!(self.room == 0 || self.queue.len() == 0, "room is left");
        let live = self.flows.len();
        assert!(self.queue.len() <= live + 400, "those who left pile up");
    }
}

#[test]
fn nobody_waits_for_ever_and_no_room_is_left_whatever_happens() {
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for step in 0..3_000 {
            let run = std::panic::AssertUnwindSafe(|| {
                world.step();
                world.check();
            });
            assert!(
                std::panic::catch_unwind(run).is_ok(),
                "seed {seed}, step {step}"
            );
        }
    }
}
