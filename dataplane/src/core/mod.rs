//! Cores: one pinned thread each, with its own runtime; mailboxes between them.
//!
//! A core shares nothing with the others but what is listed here: its mailbox, its counters, and the immutable state
//! that it was started with. `main` starts the cores, tells them to drain, and joins them.

pub(crate) mod mailbox;
pub(crate) mod runtime;

use std::cell::Cell;
use std::sync::Arc;

use crate::log_limit::LogLimit;
use crate::metrics::CoreCounters;
use mailbox::Mailbox;

/// Cores of one process: the index is one byte of a connection id (`qmux_proto::cid`).
pub(crate) const CORES_MAX: usize = 256;

/// What all cores know of each other.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// One mailbox per core, by index.
    pub(crate) mailboxes: Vec<Mailbox>,
    /// One set of counters per core, by index.
    pub(crate) counters: Vec<Arc<CoreCounters>>,
}

impl Cluster {
    /// Number of cores.
    pub(crate) fn cores(&self) -> usize {
        self.mailboxes.len()
    }
}

/// What the parts of one core share.
#[derive(Debug)]
pub(crate) struct CoreContext {
    /// Index of this core.
    pub(crate) index: usize,
    /// All cores.
    pub(crate) cluster: Arc<Cluster>,
    /// This core's counters.
    pub(crate) counters: Arc<CoreCounters>,
    /// TCP flows alive on this core; draining waits for them.
    pub(crate) tcp_flows: Cell<usize>,
    /// Bounds the log lines about handshakes that failed.
    pub(crate) handshake_log: LogLimit,
    /// Bounds the log lines about lanes that end or cannot be had.
    pub(crate) connect_log: LogLimit,
    /// Bounds the log lines about services that cannot be reached.
    pub(crate) dial_log: LogLimit,
    /// True once the process has been told to stop.
    pub(crate) draining: Cell<bool>,
}

/// Counts one TCP flow for as long as it lives.
#[derive(Debug)]
pub(crate) struct FlowCount(std::rc::Rc<CoreContext>);

impl FlowCount {
    /// Counts a flow of this core.
    pub(crate) fn new(context: &std::rc::Rc<CoreContext>) -> FlowCount {
        context.tcp_flows.set(context.tcp_flows.get() + 1);
        FlowCount(std::rc::Rc::clone(context))
    }
}

impl Drop for FlowCount {
    fn drop(&mut self) {
        self.0.tcp_flows.set(self.0.tcp_flows.get() - 1);
    }
}
