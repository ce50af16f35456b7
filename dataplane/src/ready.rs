//! What the process as a whole is at: starting, ready, draining. Said once per role in the log and once for all to the
//! service manager; the admin endpoint asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts down the roles that are not ready yet, and keeps what readiness depends on later.
#[derive(Debug)]
pub(crate) struct Readiness {
    missing: AtomicUsize,
    listening: AtomicBool,
    draining: AtomicBool,
    client_lanes: AtomicUsize,
}

impl Readiness {
    /// For `roles` roles, at least 1.
    pub(crate) fn new(roles: usize) -> Readiness {
        Readiness {
            missing: AtomicUsize::new(roles),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            client_lanes: AtomicUsize::new(0),
        }
    }

    /// One role is ready; each calls this once. The last one tells the service manager (sd_notify(3)).
    pub(crate) fn role_ready(&self, role: &'static str) {
        tracing::info!(role, "ready");
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1
            && let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready])
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }

    /// Whether every role has become ready once.
    pub(crate) fn is_started(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// The server role: every listener is bound and served by every core.
    pub(crate) fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether that was said.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }

    /// The process was told to stop.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether it was.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The client role: a lane is registered until the result is dropped.
    pub(crate) fn lane_registered(self: &Arc<Self>) -> RegisteredLane {
        self.client_lanes.fetch_add(1, Ordering::AcqRel);
        RegisteredLane(Arc::clone(self))
    }

    /// Lanes of the client role that are registered now.
    pub(crate) fn client_lanes(&self) -> usize {
        self.client_lanes.load(Ordering::Acquire)
    }
}

/// A registered lane of the client role, for as long as it lives.
#[derive(Debug)]
pub(crate) struct RegisteredLane(Arc<Readiness>);

impl Drop for RegisteredLane {
    fn drop(&mut self) {
        self.0.client_lanes.fetch_sub(1, Ordering::AcqRel);
    }
}
