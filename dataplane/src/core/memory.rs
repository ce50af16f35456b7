//! The memory limit: when the memory of the process comes near it, flows that stall are ended.
//!
//! Bytes that nobody takes are what grows without bound: each stalled flow keeps a window of up to
//! 8 MiB full. Above three quarters of the limit the flow that has stalled longest is ended, then
//! the next, until there is less. Flows that move are left alone as long as any flow stalls. Just
//! below the limit a flow counts as stalled if its socket takes nothing at that moment. At the
//! limit, if there is no such flow either, new visitors are refused.
//!
//! On a long, fast path more can be in flight than the limit, without anything stalling. So the
//! less memory is left, the less a flow is given to send ([`spare`]): a flow that has much in
//! flight waits until its peer has acknowledged it, and small requests go on.
//!
//! [`decide`] knows no clock, no flows and no cores. Each core checks for itself, when it has
//! received something while memory is short, and a few times a second. It acts only if no other
//! core has a flow that has stalled longer. The memory held by flows is the allocator's count
//! ([`heap`]) without what the process held when it was ready, what lies in pools, and an allowance
//! for lanes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use qmux_config::MemoryLimit;
use qmux_proto::FlowError;

use super::CoreContext;
use super::event::{Event, yield_now};
use crate::buffer;
use crate::sys::{CORES_MAX, heap, memory};

/// How often each core checks, besides the checks after it has received something.
const LOOK: Duration = Duration::from_millis(200);

/// A flow must have stalled for this long to be ended while there is room left. Shorter stalls may
/// be caused by a lost packet on the visitor's path.
const STALLED_MIN: Duration = Duration::from_secs(1);

/// Flows that are ended before the next check when hardly any room is left. One turn of receiving
/// brings up to 256 KB, and a stalled flow holds at least a block of 16 KB.
const ENDED_AT_ONCE: usize = 16;

/// Checks in a row before other tasks of the core get more than a turn.
const LOOKS_IN_A_ROW: usize = 64;

/// Memory that an idle lane holds. It belongs to no flow, and is not counted.
const LANE_BYTES: usize = 32 << 10;

/// What a flow takes at a time while memory is short: one small block, which it holds until the
/// peer has acknowledged it.
const TAKEN_WHILE_SHORT_BYTES: usize = buffer::SMALL_BLOCK_BYTES;

/// What a flow takes at a time when hardly any memory is left. It is copied out of its block, so
/// that ten thousand flows together hold 20 MB.
const TAKEN_WHILE_OUT_BYTES: usize = buffer::COPIED_BYTES;

/// The limit where neither the configuration nor the system names one.
const FALLBACK_BYTES: u64 = 1 << 30;

/// How much memory is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Supply {
    /// More than a quarter of the limit.
    Ample,
    /// Less than a quarter of the limit.
    Short,
    /// Hardly any.
    Out,
    /// None.
    Over,
}

impl Supply {
    /// The supply under this limit, with this much held.
    pub(crate) fn of(held_bytes: usize, limit_bytes: usize) -> Supply {
        if held_bytes < limit_bytes / 4 * 3 {
            Supply::Ample
        } else if held_bytes < limit_bytes / 16 * 15 {
            Supply::Short
        } else if held_bytes < limit_bytes {
            Supply::Out
        } else {
            Supply::Over
        }
    }
}

/// What a core must do about a lack of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing.
    Rest,
    /// End this many flows, the most stalled first.
    End(usize),
    /// Refuse new visitors, because no flow stalls and no memory is left.
    Refuse,
}

/// Decides for one core. `own` is the longest stall of its flows, `others` the longest of all other
/// cores, as they last reported. If two cores have the same, both act. Above the limit no core
/// waits for others.
pub(crate) fn decide(supply: Supply, own: Option<Duration>, others: Option<Duration>) -> Order {
    let first = own.is_some() && own >= others;
    match supply {
        Supply::Short if first && own >= Some(STALLED_MIN) => Order::End(1),
        Supply::Out if first => Order::End(ENDED_AT_ONCE),
        Supply::Over if own.is_some() => Order::End(ENDED_AT_ONCE),
        Supply::Over if others.is_none() => Order::Refuse,
        // There is enough memory, or another core is to end a flow.
        Supply::Ample | Supply::Short | Supply::Out | Supply::Over => Order::Rest,
    }
}

/// Whether a new visitor is refused. `ordered` is whether [`Order::Refuse`] was the result of the
/// last check: as soon as there is memory again, visitors are let in without another one.
pub(crate) fn refuses(ordered: bool, supply: Supply) -> bool {
    ordered && supply == Supply::Over
}

/// Bytes that a flow may take to send, if its peer has yet to acknowledge this many. The result is
/// zero only if there are any: the peer's acknowledgement will let the flow go on.
pub(crate) fn spare(supply: Supply, holds_bytes: usize) -> usize {
    match supply {
        Supply::Ample => usize::MAX,
        Supply::Short if holds_bytes < TAKEN_WHILE_SHORT_BYTES => TAKEN_WHILE_SHORT_BYTES,
        Supply::Out | Supply::Over if holds_bytes == 0 => TAKEN_WHILE_OUT_BYTES,
        Supply::Short | Supply::Out | Supply::Over => 0,
    }
}

// ---- what the process shares ----

/// The memory that flows may hold; unlimited until it is set.
static LIMIT_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The memory that the process held when it was ready.
static BASE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The longest stall on each core in milliseconds, plus one; zero if nothing stalls.
static STALLS_MS: [CachePadded<AtomicU64>; CORES_MAX] =
    [const { CachePadded::new(AtomicU64::new(0)) }; CORES_MAX];

thread_local! {
    /// Wakes this core's check.
    static LOOK_NOW: RefCell<Option<Rc<Event>>> = const { RefCell::new(None) };
    static REFUSES: Cell<bool> = const { Cell::new(false) };
}

/// Sets the limit. What is held now does not count, because no flow holds it.
pub(crate) fn set_limit(limit: MemoryLimit) {
    BASE_BYTES.store(heap::held_bytes(), Ordering::Relaxed);
    change_limit(limit);
}

/// Changes the limit while there are flows.
pub(crate) fn change_limit(limit: MemoryLimit) {
    let bytes = match limit {
        MemoryLimit::Bytes(bytes) => bytes,
        MemoryLimit::None => u64::MAX,
        MemoryLimit::Auto => memory::allowed_bytes().unwrap_or(2 * FALLBACK_BYTES) / 2,
    };
    LIMIT_BYTES.store(
        usize::try_from(bytes).unwrap_or(usize::MAX),
        Ordering::Relaxed,
    );
    tracing::debug!(bytes, "flows may hold this much memory");
}

/// Bytes that flows may hold.
pub(crate) fn limit_bytes() -> usize {
    LIMIT_BYTES.load(Ordering::Relaxed)
}

/// Bytes that flows hold.
pub(crate) fn held_bytes() -> usize {
    heap::held_bytes().saturating_sub(BASE_BYTES.load(Ordering::Relaxed))
}

/// How much memory is left now.
pub(crate) fn supply() -> Supply {
    Supply::of(held_bytes(), limit_bytes())
}

/// Starts a check if memory is short. Must be called when the core has received something.
pub(crate) fn received() {
    if supply() > Supply::Ample {
        LOOK_NOW.with_borrow(|look| {
            if let Some(look) = look {
                look.set();
            }
        });
    }
}

/// Whether this core refuses new visitors, because there is no memory for them and nothing stalls.
pub(crate) fn refuses_newcomers() -> bool {
    refuses(REFUSES.get(), supply())
}

/// Takes an allowance out of the count for as long as a lane lives.
#[derive(Debug)]
pub(crate) struct LaneAllowance(());

impl LaneAllowance {
    /// The allowance of a new lane.
    pub(crate) fn new() -> LaneAllowance {
        heap::count(-heap::signed(LANE_BYTES));
        LaneAllowance(())
    }
}

impl Drop for LaneAllowance {
    fn drop(&mut self) {
        heap::count(heap::signed(LANE_BYTES));
    }
}

// ---- a core's look ----

/// Keeps the process within its limit, as far as this core's flows can, for as long as the core
/// runs.
pub(crate) async fn keep_within_limit(context: Rc<CoreContext>, flows: Rc<impl Stalling>) {
    let look_now = Rc::<Event>::default();
    LOOK_NOW.set(Some(Rc::clone(&look_now)));
    loop {
        // Whether the event was set or not, it is time to check.
        let _received = look_now.cuts_short(super::time::sleep(LOOK)).await;
        for _ in 0..LOOKS_IN_A_ROW {
            if !look(&context, &*flows, Instant::now()) {
                break;
            }
            // Flows that were told to end give up their memory in their own turn.
            yield_now().await;
        }
    }
}

/// A core's flows, as far as the memory limit is concerned.
pub(crate) trait Stalling {
    /// For how long the flow that has stalled longest has stalled, as far as is known.
    fn longest_stall(&self) -> Option<Duration>;

    /// Ends that flow; `reason` is what its far end is told. Returns false if no flow stalls.
    fn end_most_stalled(&self, reason: FlowError) -> bool;
}

/// Makes one check. Returns true if another one is due after what was done.
fn look(context: &CoreContext, flows: &impl Stalling, now: Instant) -> bool {
    let own = flows.longest_stall();
    publish(context.index, own);
    let supply = supply();
    if supply > Supply::Ample {
        buffer::release_free();
    }
    let others = longest_stall_of_others(context.index, context.cluster.cores());
    let order = decide(supply, own, others);
    REFUSES.set(order == Order::Refuse);
    let Order::End(count) = order else {
        return false;
    };
    let mut ended = 0;
    while ended < count && flows.end_most_stalled(FlowError::Stalled) {
        ended += 1;
    }
    publish(context.index, flows.longest_stall());
    if let Some(suppressed) = context.memory_log.pass(now) {
        tracing::warn!(
            ended,
            held_mib = held_bytes() >> 20,
            limit_mib = limit_bytes() >> 20,
            suppressed,
            "memory is short; the flows that took nothing for longest are reset"
        );
    }
    true
}

fn publish(core: usize, stall: Option<Duration>) {
    let ms = stall.map_or(0, |stall| {
        u64::try_from(stall.as_millis()).unwrap_or(u64::MAX - 1) + 1
    });
    if STALLS_MS[core].load(Ordering::Relaxed) != ms {
        STALLS_MS[core].store(ms, Ordering::Relaxed);
    }
}

fn longest_stall_of_others(core: usize, cores: usize) -> Option<Duration> {
    let stalls = STALLS_MS.iter().take(cores).enumerate();
    let others = stalls.filter(|(other, _)| *other != core);
    let longest = others.map(|(_, ms)| ms.load(Ordering::Relaxed)).max();
    longest
        .filter(|ms| *ms > 0)
        .map(|ms| Duration::from_millis(ms - 1))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
