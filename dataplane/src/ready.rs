//! The state of the whole process: starting, ready, draining. It is logged once per role, and the
//! service manager is told once for all roles; the admin endpoint asks for it.

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
    /// The state of a process with this many roles, at least 1.
    pub(crate) fn new(roles: usize) -> Readiness {
        Readiness {
            missing: AtomicUsize::new(roles),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            client_lanes: AtomicUsize::new(0),
        }
    }

    /// Notes that a role is ready; each role calls this once. The last one tells the service
    /// manager (sd_notify(3)).
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

    /// Notes that the server role listens: every listener is bound and served by every core.
    pub(crate) fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether the server role listens.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }

    /// Notes that the process was told to stop.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether the process was told to stop.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Notes that the client role has a registered lane, until the result is dropped.
    pub(crate) fn lane_registered(self: &Arc<Self>) -> RegisteredLane {
        self.client_lanes.fetch_add(1, Ordering::AcqRel);
        RegisteredLane(Arc::clone(self))
    }

    /// Number of lanes of the client role that are registered now.
    pub(crate) fn client_lanes(&self) -> usize {
        self.client_lanes.load(Ordering::Acquire)
    }
}

/// Stands for a registered lane of the client role, for as long as that lives.
#[derive(Debug)]
pub(crate) struct RegisteredLane(Arc<Readiness>);

impl Drop for RegisteredLane {
    fn drop(&mut self) {
        self.0.client_lanes.fetch_sub(1, Ordering::AcqRel);
    }
}
