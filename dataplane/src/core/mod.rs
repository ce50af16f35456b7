//! Cores: one pinned thread each, with its own runtime, and mailboxes between them.
//!
//! A core shares nothing with the others except its mailbox, its counters, and the immutable state
//! that it was started with. `main` starts the cores, tells them to drain, and joins them.

pub(crate) mod busy_poll;
pub(crate) mod counters;
pub(crate) mod event;
pub(crate) mod histogram;

pub(crate) mod log_limit;
pub(crate) mod log_queue;
pub(crate) mod mailbox;
pub(crate) mod memory;
pub(crate) mod panics;
pub(crate) mod pause;
pub(crate) mod service_counters;
pub(crate) mod task;
pub(crate) mod time;
pub(crate) mod turn;
pub(crate) mod udp_activity;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam::utils::CachePadded;

use counters::CoreCounters;
use histogram::CoreHistograms;
use log_limit::LogLimit;
use turn::LongestTurn;
use udp_activity::UdpActivity;

/// What all cores know of each other. Mail is sent by [`mailbox`].
#[derive(Debug)]
pub(crate) struct Cluster {
    /// One set of counters per core, by index.
    pub(crate) counters: Vec<Arc<CoreCounters>>,
    /// One set of histograms per core, by index.
    pub(crate) histograms: Vec<Arc<CoreHistograms>>,
    /// The longest turn of each core, by index.
    pub(crate) turns: Vec<Arc<LongestTurn>>,
    /// Whether each core makes no progress, by index, as `main` has found out.
    pub(crate) stuck: Vec<AtomicBool>,
    /// Number of sockets of all cores that take TCP visitors.
    acceptors: AtomicUsize,
    /// Number of TCP flows of all cores, and of visitors that one core has mailed to another. It
    /// changes only when one begins or ends.
    tcp_flows: CachePadded<AtomicUsize>,
}

impl Cluster {
    /// The state of a process with this many cores.
    pub(crate) fn new(cores: usize) -> Cluster {
        Cluster {
            counters: (0..cores).map(|_| Arc::default()).collect(),
            histograms: (0..cores).map(|_| Arc::default()).collect(),
            turns: (0..cores).map(|_| Arc::default()).collect(),
            stuck: (0..cores).map(|_| AtomicBool::new(false)).collect(),
            acceptors: AtomicUsize::new(0),
            tcp_flows: CachePadded::default(),
        }
    }

    /// Whether no core takes TCP visitors any more. Then all that were handed to other cores are in
    /// the mailboxes.
    pub(crate) fn all_visitors_are_in(&self) -> bool {
        self.acceptors.load(Ordering::Acquire) == 0
    }

    /// Whether no core has a TCP flow and no visitor is on its way from one core to another. Once
    /// this and [`Self::all_visitors_are_in`] hold, they stay so on a server.
    pub(crate) fn all_tcp_flows_have_ended(&self) -> bool {
        self.tcp_flows.load(Ordering::Acquire) == 0
    }

    /// Number of cores.
    pub(crate) fn cores(&self) -> usize {
        self.counters.len()
    }
}

/// The state that the parts of one core share.
#[derive(Debug)]
pub(crate) struct CoreContext {
    /// Index of this core.
    pub(crate) index: usize,
    /// All cores.
    pub(crate) cluster: Arc<Cluster>,
    /// This core's counters.
    pub(crate) counters: Arc<CoreCounters>,
    /// This core's histograms.
    pub(crate) histograms: Arc<CoreHistograms>,
    /// TCP flows alive on this core.
    pub(crate) tcp_flows: Cell<usize>,
    /// Bounds the log lines about flows that end because memory is short.
    pub(crate) memory_log: LogLimit,
    /// Bounds the log lines about flows that take nothing.
    pub(crate) stall_log: LogLimit,
    /// Bounds the log lines about handshakes that failed.
    pub(crate) handshake_log: LogLimit,
    /// Bounds the log lines about lanes that end or cannot be established.
    pub(crate) connect_log: LogLimit,
    /// Bounds the log lines about clients and servers that come, go, or are replaced.
    pub(crate) lane_log: LogLimit,
    /// Bounds the log lines about services that cannot be reached.
    pub(crate) dial_log: LogLimit,
    /// Bounds the log lines about the health of services and of connected peers.
    pub(crate) health_log: LogLimit,
    /// Whether the process has been told to stop.
    pub(crate) draining: Cell<bool>,
    /// Whether `main` is to be told that the core cannot do its work any more.
    pub(crate) broken: Cell<bool>,
    /// The time at which UDP last passed, which the drain checks.
    pub(crate) udp_activity: UdpActivity,
}

impl CoreContext {
    /// The context of core `index`.
    pub(crate) fn new(index: usize, cluster: Arc<Cluster>, now: Instant) -> CoreContext {
        CoreContext {
            index,
            counters: Arc::clone(&cluster.counters[index]),
            histograms: Arc::clone(&cluster.histograms[index]),
            cluster,
            tcp_flows: Cell::new(0),
            memory_log: LogLimit::new(now),
            stall_log: LogLimit::new(now),
            handshake_log: LogLimit::new(now),
            connect_log: LogLimit::new(now),
            lane_log: LogLimit::new(now),
            dial_log: LogLimit::new(now),
            health_log: LogLimit::new(now),
            draining: Cell::new(false),
            broken: Cell::new(false),
            udp_activity: UdpActivity::default(),
        }
    }
}

/// Counts one socket that takes TCP visitors, for as long as it may bring one.
#[derive(Debug)]
pub(crate) struct AcceptorCount(Arc<Cluster>);

impl AcceptorCount {
    /// Counts a socket.
    pub(crate) fn new(cluster: &Arc<Cluster>) -> AcceptorCount {
        cluster.acceptors.fetch_add(1, Ordering::Relaxed);
        AcceptorCount(Arc::clone(cluster))
    }
}

impl Drop for AcceptorCount {
    fn drop(&mut self) {
        // The ordering makes what was mailed before visible to whoever reads the count.
        self.0.acceptors.fetch_sub(1, Ordering::Release);
    }
}

/// Counts one TCP flow of the process: one that a core has, or a visitor on its way from one core
/// to another.
#[derive(Debug)]
pub(crate) struct OneFlow(Arc<Cluster>);

impl OneFlow {
    /// Counts a visitor; to be called before the visitor is mailed.
    pub(crate) fn new(cluster: &Arc<Cluster>) -> OneFlow {
        cluster.tcp_flows.fetch_add(1, Ordering::Relaxed);
        OneFlow(Arc::clone(cluster))
    }
}

impl Drop for OneFlow {
    fn drop(&mut self) {
        self.0.tcp_flows.fetch_sub(1, Ordering::Release);
    }
}

/// Counts one TCP flow for as long as it lives.
#[derive(Debug)]
pub(crate) struct FlowCount {
    context: Rc<CoreContext>,
    _of_all: OneFlow,
}

impl FlowCount {
    /// Counts a flow of this core.
    pub(crate) fn new(context: &Rc<CoreContext>) -> FlowCount {
        context.tcp_flows.set(context.tcp_flows.get() + 1);
        FlowCount {
            context: Rc::clone(context),
            _of_all: OneFlow::new(&context.cluster),
        }
    }
}

impl Drop for FlowCount {
    fn drop(&mut self) {
        let flows = &self.context.tcp_flows;
        flows.set(flows.get() - 1);
    }
}
