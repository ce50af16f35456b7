//! The threads that carry packets from one device to the other, one for each direction.
//!
//! A thread sleeps until a packet comes or one is due. The two directions share nothing. The only
//! lock of a direction guards its statistics, which another thread may ask for.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::thread::{gettid, set_current_timer_slack};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tun_rs::{GROTable, SyncDevice};

use super::error::LinkError;
use super::faults::Faults;
use super::frame::{FRAME_OFFSET, Frame, FramePool, PACKET_BYTES_MAX};
use super::network::Side;
use super::profile::Profile;
use super::scheduler::Scheduler;
use super::stats::Tally;

/// The router works in steps of a twentieth of the delay, within these bounds. Packets that are due
/// within a step leave together with the one that is due now, and a device that has just been
/// emptied is left alone for a step, as network cards do with their interrupts. Waking up for each
/// packet would take a whole processor at a gigabit per second, and wake-ups themselves are some
/// tens of microseconds late.
const STEP_MIN: Duration = Duration::from_micros(20);
const STEP_MAX: Duration = Duration::from_micros(100);
const STEPS_PER_DELAY: u32 = 20;

/// How many packets are written together at most, so that reading is never far behind.
const WRITE_PACKETS_MAX: usize = 128;

/// How many reads follow each other at most, so that a flood does not keep due packets waiting. A
/// read is one packet or one piece of up to 64 KiB.
const READS_PER_TURN_MAX: usize = 16;

/// The most packets that one piece from the kernel is cut into: 64 KiB of TCP are 53 at the
/// smallest MTU, and UDP has at most 128 segments (`UDP_MAX_SEGMENTS`).
const SEGMENTS_MAX: usize = 256;

/// The lowest realtime priority. With it the router runs before the programs whose packets it
/// carries: a link that waits until they leave it a processor is slower than its profile says. A
/// nice value would not do, because it does not reach beyond the session where the kernel groups
/// processes by session (sched(7), autogroup).
const REALTIME_PRIORITY: u8 = 1;

/// The pause after a read from a device has failed.
const FAILURE_PAUSE: Duration = Duration::from_millis(1);

/// One direction of the link.
pub(super) struct Direction {
    pub(super) name: &'static str,
    pub(super) side: Side,
    pub(super) profile: Profile,
    pub(super) from: Arc<SyncDevice>,
    pub(super) to: Arc<SyncDevice>,
    pub(super) seed: u64,
    pub(super) faults: Arc<Faults>,
}

/// The running threads of both directions.
#[derive(Debug)]
pub(super) struct Router {
    threads: Vec<RouterThread>,
    stop: Arc<OwnedFd>,
}

#[derive(Debug)]
struct RouterThread {
    handle: Option<JoinHandle<()>>,
    tally: Arc<Mutex<Tally>>,
    /// `/proc/…/schedstat` of the thread, whose first number is its processor time in nanoseconds.
    schedstat: String,
}

impl Router {
    /// Starts one thread for each direction.
    pub(super) fn start(directions: [Direction; 2]) -> Result<Self, LinkError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| LinkError::system("make an event descriptor")(error.into()))?;
        let mut router = Self {
            threads: Vec::new(),
            stop: Arc::new(stop),
        };
        let started = Instant::now();
        for direction in directions {
            let thread = start_thread(direction, started, Arc::clone(&router.stop))?;
            router.threads.push(thread);
        }
        Ok(router)
    }

    /// The statistics of a direction.
    pub(super) fn tally(&self, direction: usize) -> MutexGuard<'_, Tally> {
        lock(&self.threads[direction].tally)
    }

    /// The processor time that a direction has taken.
    pub(super) fn cpu(&self, direction: usize) -> Duration {
        let nanos = fs::read_to_string(&self.threads[direction].schedstat)
            .ok()
            .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
            .unwrap_or_default();
        Duration::from_nanos(nanos)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // The counter of an event descriptor cannot overflow by one write, and nothing else can
        // fail.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                // A panic of the thread has been printed already.
                let _ = handle.join();
            }
        }
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_thread(
    direction: Direction,
    started: Instant,
    stop: Arc<OwnedFd>,
) -> Result<RouterThread, LinkError> {
    let tally = Arc::new(Mutex::new(Tally::new()));
    let carrier = Carrier::new(direction, started, Arc::clone(&tally))?;
    let (tell_path, path) = std::sync::mpsc::sync_channel(1);
    let handle = thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            let tid = gettid();
            // Realtime priority and the timer's slack only make the link more precise. Without them
            // it works, and its measured lateness shows what is missing.
            let _ = become_realtime();
            let _ = set_current_timer_slack(NonZeroU64::new(1));
            let path = format!("/proc/self/task/{}/schedstat", tid.as_raw_nonzero());
            let _ = tell_path.send(path);
            carrier.run(&stop);
        })
        .map_err(LinkError::system("start a thread"))?;
    Ok(RouterThread {
        handle: Some(handle),
        tally,
        schedstat: path.recv().unwrap_or_default(),
    })
}

fn become_realtime() -> Result<(), thread_priority::Error> {
    let priority = REALTIME_PRIORITY
        .try_into()
        .map_err(|_| thread_priority::Error::Priority("realtime priorities are 1 to 99"))?;
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(priority),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin),
    )
}

/// The state of one thread.
struct Carrier {
    side: Side,
    faults: Arc<Faults>,
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    started: Instant,
    step: Duration,
    scheduler: Scheduler<Frame>,
    rng: StdRng,
    tally: Arc<Mutex<Tally>>,
    failed_packets: u64,
    /// The buffer that the kernel's pieces are read into, and the packets that they are cut into.
    piece: Vec<u8>,
    segments: Vec<Frame>,
    segment_bytes: Vec<usize>,
    /// The packets that leave together, with the table that merges them into pieces again.
    leaving: Vec<Frame>,
    merge: GROTable,
    pool: FramePool,
}

/// The state of a device after it was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    /// There was nothing to read.
    Silent,
    /// There were packets, and all of them have been read.
    Emptied,
    /// There may be more packets.
    Busy,
    /// A read failed.
    Failed,
}

impl Carrier {
    fn new(
        direction: Direction,
        started: Instant,
        tally: Arc<Mutex<Tally>>,
    ) -> Result<Self, LinkError> {
        let mtu = direction.profile.interface_mtu();
        let step = (direction.profile.delay / STEPS_PER_DELAY).clamp(STEP_MIN, STEP_MAX);
        let scheduler = Scheduler::new(direction.profile).map_err(|source| LinkError::Profile {
            direction: direction.name,
            source,
        })?;
        let mut pool = FramePool::new(usize::from(mtu));
        Ok(Self {
            side: direction.side,
            faults: direction.faults,
            from: direction.from,
            to: direction.to,
            started,
            step,
            scheduler,
            rng: StdRng::seed_from_u64(direction.seed),
            tally,
            failed_packets: 0,
            piece: vec![0; FRAME_OFFSET + PACKET_BYTES_MAX],
            segments: (0..SEGMENTS_MAX).map(|_| pool.take()).collect(),
            segment_bytes: vec![0; SEGMENTS_MAX],
            leaving: Vec::with_capacity(WRITE_PACKETS_MAX),
            merge: GROTable::default(),
            pool,
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Carries packets until somebody writes to `stop`.
    fn run(mut self, stop: &OwnedFd) {
        loop {
            let is_up_to_date = self.release_due();
            let device = self.read();
            self.publish();
            let pause = match device {
                Device::Busy => Some(Duration::ZERO),
                _ if !is_up_to_date => Some(Duration::ZERO),
                Device::Failed => Some(FAILURE_PAUSE),
                Device::Emptied => Some(self.time_to_next().unwrap_or(self.step).min(self.step)),
                Device::Silent => self.time_to_next(),
            };
            if self.wait(stop, device, pause) {
                return;
            }
        }
    }

    fn time_to_next(&self) -> Option<Duration> {
        let next = self.scheduler.next_departure()?;
        Some(next.saturating_sub(self.now()))
    }

    /// Waits until somebody writes to `stop`, until `pause` is over, or, if the device was silent,
    /// until a packet comes. Returns whether the thread must stop.
    fn wait(&self, stop: &OwnedFd, device: Device, pause: Option<Duration>) -> bool {
        let timeout = pause.map(|pause| Timespec {
            // A pause ends with a departure, which is at most some tens of seconds away.
            tv_sec: pause.as_secs().cast_signed(),
            tv_nsec: i64::from(pause.subsec_nanos()),
        });
        let mut descriptors = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN),
        ];
        let count = if device == Device::Silent { 2 } else { 1 };
        // A signal that interrupts the wait only makes it shorter.
        let _ = poll(&mut descriptors[..count], timeout.as_ref());
        !descriptors[0].revents().is_empty()
    }

    /// Reads the packets that the sending side has sent, and puts them on the link.
    fn read(&mut self) -> Device {
        let mut left = Device::Silent;
        for _ in 0..READS_PER_TURN_MAX {
            let received = self.from.recv_multiple(
                &mut self.piece,
                &mut self.segments,
                &mut self.segment_bytes,
                FRAME_OFFSET,
            );
            match received {
                Ok(packets) => self.offer(packets),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return left,
                Err(_) => {
                    self.failed_packets += 1;
                    return Device::Failed;
                }
            }
            left = Device::Emptied;
        }
        Device::Busy
    }

    fn offer(&mut self, packets: usize) {
        let now = self.now();
        for (segment, bytes) in self.segments[..packets].iter_mut().zip(&self.segment_bytes) {
            let mut frame = std::mem::replace(segment, self.pool.take());
            frame.set_packet_bytes(*bytes);
            let packet = &mut frame.as_mut()[FRAME_OFFSET..];
            if !self.faults.let_pass(packet, self.side, &mut self.rng) {
                self.pool.put(frame);
                continue;
            }
            if let Err(dropped) = self.scheduler.offer(now, *bytes, frame, &mut self.rng) {
                self.pool.put(dropped.packet);
            }
        }
    }

    /// Writes packets that are due. Returns whether no other packet is due.
    fn release_due(&mut self) -> bool {
        let now = self.now();
        let tally = Arc::clone(&self.tally);
        let mut tally = lock(&tally);
        while self.leaving.len() < WRITE_PACKETS_MAX {
            let Some(next) = self.scheduler.take_due(now + self.step) else {
                break;
            };
            tally.record_lateness(now.saturating_sub(next.due));
            self.leaving.push(next.packet);
            if next.reordered {
                // A reordered packet is written before the next one is added: merging joins
                // consecutive packets of a stream, and so would undo the reordering.
                self.write();
            }
        }
        let is_up_to_date = self.leaving.len() < WRITE_PACKETS_MAX;
        drop(tally);
        self.write();
        is_up_to_date
    }

    fn write(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let written = self
            .to
            .send_multiple(&mut self.merge, &mut self.leaving, FRAME_OFFSET);
        if written.is_err() {
            self.failed_packets += 1;
        }
        for frame in self.leaving.drain(..) {
            self.pool.put(frame);
        }
    }

    fn publish(&self) {
        let mut tally = lock(&self.tally);
        tally.counters = self.scheduler.counters();
        tally.failed_packets = self.failed_packets;
    }
}
