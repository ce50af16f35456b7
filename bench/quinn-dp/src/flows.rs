//! Counters of open flows, for balancing and for draining.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use qmux_proto::LaneError;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::warn;

/// How many flows are open.
#[derive(Debug, Default)]
pub(crate) struct FlowCount {
    open: AtomicUsize,
    none_left: Notify,
}

impl FlowCount {
    pub(crate) fn get(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a flow until the guard is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> OpenFlow {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenFlow(Arc::clone(self))
    }

    /// Waits until no flow is open, at most for `limit`. Returns what lanes end with then.
    pub(crate) async fn drain(&self, limit: Duration) -> LaneError {
        if self.drained(limit).await {
            return LaneError::Shutdown;
        }
        let left = self.get();
        warn!(
            left,
            "the drain timeout is over: the flows that are left are reset"
        );
        LaneError::Draining
    }

    /// Waits until no flow is open, at most for `limit`. Whether none is.
    pub(crate) async fn drained(&self, limit: Duration) -> bool {
        let none_left = async {
            loop {
                let notified = self.none_left.notified();
                if self.get() == 0 {
                    return;
                }
                notified.await;
            }
        };
        timeout(limit, none_left).await.is_ok()
    }
}

/// A flow that is counted.
#[derive(Debug)]
pub(crate) struct OpenFlow(Arc<FlowCount>);

impl Drop for OpenFlow {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}
