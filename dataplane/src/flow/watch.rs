//! The TCP flows of one core, and what each of them waits for.
//!
//! A flow registers here when it begins and leaves when it ends, in whatever way. In between this
//! table serves three purposes:
//!
//! - **Looks.** Some things that end a flow wake nobody: a reset of a socket that is not read at
//!   that moment, a STOP_SENDING or RESET_STREAM that quiche does not report because the stream
//!   counts as readable or writable already, the passing of time. So one task of the core
//!   ([`sweep`]) has every flow look around once a second, where there are thousands every four
//!   seconds, and idle flows, which nearly everything wakes, less often. This costs less than a
//!   timer in each flow, and no wait has to name everything that can end it.
//! - **Stalls.** A flow whose socket takes nothing, although bytes wait for it, is in a list, the
//!   one that has stalled longest first. It is ended when it has been there for `stall_timeout`, or
//!   earlier if memory is short ([`TcpFlows::end_most_stalled`]).
//! - **Idle timeouts.** A flow that has one is ended when no byte was moved for that time in either
//!   direction. The table counts that itself, so that idle flows need not be woken for it.
//!
//! The end that has the socket judges a stall, because the other end sees only that its stream has
//! no room. A stall is measured in looks and not by a clock, because time in which this process
//! itself stood still (SIGSTOP, a suspended machine, a busy core) is nobody's fault; idle time is
//! measured in the same way. Moving bytes costs a flow no more here than a note that it did, except
//! when its socket becomes full and when it takes something again.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use qmux_proto::FlowError;
use slab::Slab;

use crate::core::counters::CoreCounters;
use crate::core::event::yield_now;
use crate::core::memory::Stalling;

/// The distance of two rounds.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// An idle flow looks only in every round with this distance. 10,000 idle flows are 625 looks a
/// second.
const IDLE_ROUNDS: usize = 16;

/// On a core with more flows than this each looks less often, so that about as many do in a round;
/// those whose sockets stall look in every round, because their time is measured in looks.
const FLOWS_PER_ROUND: usize = 1_024;

/// The longest distance of two looks of a flow that is not idle, in rounds.
const ROUNDS_MAX: usize = 4;

/// The most time that is counted between two looks: more has passed only if this process stood
/// still.
const LOOK_COUNTS_MAX: Duration = Duration::from_secs(2);

/// Flows that are told to look before the core's other tasks get a turn.
const LOOKS_PER_TURN: usize = 256;

/// What one direction of a flow waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Waits {
    /// Nothing: it moves bytes, or the flow is still being opened.
    #[default]
    Moving,
    /// The socket: bytes of it, or room in it.
    Socket,
    /// The stream: bytes of it, or room in it.
    Stream,
    /// More of its visitor's bandwidth.
    Bandwidth,
    /// This direction has ended.
    Over,
}

impl Waits {
    /// Whether it waits for something and would not hear of the stream meanwhile.
    pub(crate) fn is_apart_from_the_stream(self) -> bool {
        matches!(self, Waits::Socket | Waits::Bandwidth)
    }
}

/// How long a flow's socket has taken nothing. There is no clock in here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Stall {
    /// Time that passed between looks.
    lasted: Duration,
    /// Bytes in the socket that its peer had not taken at the last look; `None` before the first.
    untaken_bytes: Option<u32>,
}

impl Stall {
    /// Makes a look, `step` after the last one. Returns true if the peer has taken something since,
    /// however little; then the time begins anew. Room in the socket shows that only when a good
    /// part of its buffer is free.
    fn look(&mut self, step: Duration, untaken_bytes: u32) -> bool {
        let before = self.untaken_bytes.replace(untaken_bytes);
        let progress = before.is_some_and(|before| untaken_bytes < before);
        if progress {
            self.lasted = Duration::ZERO;
        } else if before.is_some() {
            // The time before the first look is not counted, because nobody knows how much of it
            // there was.
            self.lasted += step;
        }
        progress
    }

    fn is_over(&self, timeout: Duration) -> bool {
        !timeout.is_zero() && self.lasted >= timeout
    }
}

/// The state of a flow that the table and the flow's own task share.
#[derive(Default)]
struct FlowState {
    /// What the direction from the socket to the stream waits for.
    inward: Cell<Waits>,
    /// What the direction from the stream to the socket waits for.
    outward: Cell<Waits>,
    /// The key of the flow's lane, and its stream there.
    carried_by: Cell<(u64, u64)>,
    stall: Cell<Option<Stall>>,
    /// Time since the flow's last look, if it is to look again.
    look: Cell<Option<Duration>>,
    /// How long the flow may move nothing; zero means for ever.
    idle_timeout: Cell<Duration>,
    /// How long the flow has moved nothing, as far as rounds of the sweep tell.
    silent_for: Cell<Duration>,
    /// Whether the flow has moved something since the last round.
    moved: Cell<bool>,
    /// The group by which its owner refers to it and to others.
    group: Cell<Option<u64>>,
    /// Set once the flow has been told to end.
    told: Cell<Option<FlowError>>,
    waker: RefCell<Option<Waker>>,
}

impl FlowState {
    /// Whether everything that can happen to the flow wakes it, except in rare cases.
    fn is_idle(&self) -> bool {
        self.inward.get() == Waits::Socket && self.outward.get() == Waits::Stream
    }

    /// The distance of its looks in rounds, if the core has so many flows.
    fn rounds(&self, flows: usize) -> usize {
        if self.is_idle() {
            IDLE_ROUNDS
        } else if self.stall.get().is_some() {
            1
        } else {
            flows.div_ceil(FLOWS_PER_ROUND).min(ROUNDS_MAX)
        }
    }

    fn look(&self, step: Duration) {
        let earlier = self.look.get().unwrap_or_default();
        self.look.set(Some(earlier + step));
        self.wake();
    }

    /// Makes a round of the sweep, `step` after the last one. Returns true if the flow has moved
    /// nothing for too long.
    fn has_been_silent(&self, step: Duration) -> bool {
        let timeout = self.idle_timeout.get();
        if timeout.is_zero() || self.told.get().is_some() {
            return false;
        }
        // The time counts from the first round after the flow's last byte, so it is never too
        // early.
        let silent_for = match self.moved.replace(false) {
            true => Duration::ZERO,
            false => self.silent_for.get() + step,
        };
        self.silent_for.set(silent_for);
        silent_for >= timeout
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            crate::core::busy_poll::woken();
            waker.wake_by_ref();
        }
    }
}

/// One flow in the table, with its neighbours in the list of those that stall.
struct Entry {
    state: Rc<FlowState>,
    before: Option<usize>,
    after: Option<usize>,
}

/// The flows by key, and the list of those that stall. It knows no clock and wakes nobody.
#[derive(Default)]
struct Table {
    entries: Slab<Entry>,
    /// The flow that has stalled longest.
    first: Option<usize>,
    last: Option<usize>,
    stalled: usize,
}

impl Table {
    fn begin_stall(&mut self, key: usize) {
        let last = self.last.replace(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.before = last;
            entry.after = None;
            entry.state.stall.set(Some(Stall::default()));
            self.stalled += 1;
        }
        match last {
            Some(last) => self.entries[last].after = Some(key),
            None => self.first = Some(key),
        }
    }

    fn end_stall(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if entry.state.stall.take().is_none() {
            return;
        }
        let (before, after) = (entry.before.take(), entry.after.take());
        self.stalled -= 1;
        match before {
            Some(before) => self.entries[before].after = after,
            None => self.first = after,
        }
        match after {
            Some(after) => self.entries[after].before = before,
            None => self.last = before,
        }
    }

    /// Makes a look of a stalled flow. Returns true if its time is over.
    fn look(&mut self, key: usize, step: Duration, untaken_bytes: u32, timeout: Duration) -> bool {
        let state = &self.entries[key].state;
        let Some(mut stall) = state.stall.get() else {
            return false;
        };
        let progress = stall.look(step, untaken_bytes);
        state.stall.set(Some(stall));
        if progress {
            // The flow goes behind those that stall already.
            self.end_stall(key);
            self.begin_stall(key);
            self.entries[key].state.stall.set(Some(stall));
        }
        stall.is_over(timeout)
    }

    fn remove(&mut self, key: usize) {
        self.end_stall(key);
        self.entries.remove(key);
    }
}

/// A flow that was told to end because it stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndedFlow {
    /// The key of the flow's lane.
    pub(crate) lane: u64,
    /// The flow's stream there.
    pub(crate) stream: u64,
}

/// The TCP flows of one core.
pub(crate) struct TcpFlows {
    table: RefCell<Table>,
    counters: Arc<CoreCounters>,
}

impl TcpFlows {
    /// A table without any flow.
    pub(crate) fn new(counters: Arc<CoreCounters>) -> Rc<TcpFlows> {
        Rc::new(TcpFlows {
            table: RefCell::default(),
            counters,
        })
    }

    /// Registers a flow of the calling task. If `stall_timeout` is zero it may stall for ever.
    pub(crate) fn register(self: &Rc<Self>, stall_timeout: Duration) -> FlowWatch {
        let state = Rc::<FlowState>::default();
        let key = self.table.borrow_mut().entries.insert(Entry {
            state: Rc::clone(&state),
            before: None,
            after: None,
        });
        FlowWatch {
            flows: Rc::clone(self),
            state,
            key,
            stall_timeout,
        }
    }

    /// Number of flows whose sockets take nothing although bytes wait for them.
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever wants to know"))]
    pub(crate) fn stalled(&self) -> usize {
        self.table.borrow().stalled
    }

    /// How long the flow at the head of the list has stalled, as far as looks tell.
    pub(crate) fn longest_stall(&self) -> Option<Duration> {
        let table = self.table.borrow();
        let stall = table.entries.get(table.first?)?.state.stall.get()?;
        Some(stall.lasted)
    }

    /// Tells the flow that has stalled longest to end, because memory is short; `reason` is what
    /// its far end is told. It has left the list when this returns, and gives up its memory when
    /// its task runs. `None` if no flow stalls.
    pub(crate) fn end_most_stalled(&self, reason: FlowError) -> Option<EndedFlow> {
        let state = {
            let mut table = self.table.borrow_mut();
            let key = table.first?;
            table.end_stall(key);
            Rc::clone(&table.entries[key].state)
        };
        state.told.set(Some(reason));
        state.wake();
        self.counters.tcp_flows_ended_for_memory.increment();
        let (lane, stream) = state.carried_by.get();
        Some(EndedFlow { lane, stream })
    }

    /// Tells all flows of a group to end; `reason` is what their far ends are told. Returns how
    /// many there were.
    pub(crate) fn end_all_of(&self, group: u64, reason: FlowError) -> usize {
        let table = self.table.borrow();
        let states = table.entries.iter().map(|(_, entry)| &entry.state);
        let mut ended = 0;
        for state in states.filter(|state| state.group.get() == Some(group)) {
            if state.told.get().is_none() {
                state.told.set(Some(reason));
                ended += 1;
            }
            state.wake();
        }
        self.counters.tcp_flows_ended_drained.add(ended as u64);
        ended
    }

    /// Tells flows to look, from key `from` on, in round `round`; `step` is the time since the last
    /// one. Returns where to go on, or `None` at the end of the table.
    fn tell_to_look(&self, round: usize, from: usize, step: Duration) -> Option<usize> {
        let table = self.table.borrow();
        let to = from + LOOKS_PER_TURN;
        for key in from..to {
            let Some(entry) = table.entries.get(key) else {
                continue;
            };
            if entry.state.has_been_silent(step) {
                entry.state.told.set(Some(FlowError::Expired));
                entry.state.wake();
                self.counters.tcp_flows_idle.increment();
            }
            let rounds = entry.state.rounds(table.entries.len());
            if key % rounds == round % rounds {
                entry.state.look(step);
            }
        }
        // The table never shrinks, but a stretch of vacant places costs next to nothing.
        (to < table.entries.capacity()).then_some(to)
    }
}

impl Stalling for TcpFlows {
    fn longest_stall(&self) -> Option<Duration> {
        TcpFlows::longest_stall(self)
    }

    fn end_most_stalled(&self, reason: FlowError) -> bool {
        TcpFlows::end_most_stalled(self, reason).is_some()
    }
}

impl fmt::Debug for TcpFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.borrow();
        let (flows, stalled) = (table.entries.len(), table.stalled);
        write!(f, "TcpFlows({flows}, of which {stalled} stall)")
    }
}

/// Makes the flows of a core look around, for as long as the core runs.
pub(crate) async fn sweep(flows: Rc<TcpFlows>) {
    let mut last = Instant::now();
    for round in 0.. {
        crate::core::time::sleep(LOOK_INTERVAL).await;
        let now = Instant::now();
        let step = now.saturating_duration_since(last).min(LOOK_COUNTS_MAX);
        last = now;
        let mut next = flows.tell_to_look(round, 0, step);
        while let Some(from) = next {
            yield_now().await;
            next = flows.tell_to_look(round, from, step);
        }
    }
}

/// A flow's own place in the table, which it leaves when this is dropped. For one task.
pub(crate) struct FlowWatch {
    flows: Rc<TcpFlows>,
    state: Rc<FlowState>,
    key: usize,
    stall_timeout: Duration,
}

impl FlowWatch {
    /// Sets how long the flow may move nothing before it ends; zero means for ever.
    pub(crate) fn with_idle_timeout(self, timeout: Duration) -> FlowWatch {
        self.state.idle_timeout.set(timeout);
        self.state.moved.set(true);
        self
    }

    /// Notes that the flow has moved at least one byte, in whichever direction.
    pub(crate) fn has_moved(&self) {
        self.state.moved.set(true);
    }

    /// Adds the flow to this group.
    pub(crate) fn belongs_to(&self, group: u64) {
        self.state.group.set(Some(group));
    }

    /// Notes which stream carries the flow.
    pub(crate) fn rides(&self, lane: u64, stream: u64) {
        self.state.carried_by.set((lane, stream));
    }

    /// Must be called at each turn of the flow's task: from now on a look or an end wakes the task.
    pub(crate) fn attend(&self, cx: &mut Context<'_>) {
        let mut waker = self.state.waker.borrow_mut();
        match waker.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// The reason why the flow must end, if it has been told to.
    pub(crate) fn told(&self) -> Option<FlowError> {
        self.state.told.get()
    }

    /// The time since the flow last looked around, if it is to do so now.
    pub(crate) fn take_look(&self) -> Option<Duration> {
        self.state.look.take()
    }

    /// What the direction from the socket to the stream waits for.
    pub(crate) fn inward(&self) -> &Cell<Waits> {
        &self.state.inward
    }

    /// What the direction from the stream to the socket waits for.
    pub(crate) fn outward(&self) -> &Cell<Waits> {
        &self.state.outward
    }

    /// Notes that the socket took none of the bytes that wait for it.
    pub(crate) fn socket_is_full(&self) {
        if self.state.stall.get().is_none() && self.state.told.get().is_none() {
            self.flows.table.borrow_mut().begin_stall(self.key);
        }
    }

    /// Notes that the socket took some.
    pub(crate) fn socket_took(&self) {
        if self.state.stall.get().is_some() {
            self.flows.table.borrow_mut().end_stall(self.key);
        }
    }

    /// Whether bytes wait for the socket and it takes none.
    pub(crate) fn is_stalled(&self) -> bool {
        self.state.stall.get().is_some()
    }

    /// Makes a look while the flow is stalled, `step` after the last one. The socket's peer has not
    /// taken `untaken_bytes` of what the socket has. Returns true if the flow has stalled for too
    /// long.
    pub(crate) fn has_stalled(&self, step: Duration, untaken_bytes: u32) -> bool {
        let mut table = self.flows.table.borrow_mut();
        table.look(self.key, step, untaken_bytes, self.stall_timeout)
    }
}

impl Drop for FlowWatch {
    fn drop(&mut self) {
        self.flows.table.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
