//! Readiness: said once per role in the log, and to the service manager once for all.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts down the roles that are not ready yet.
#[derive(Debug)]
pub(crate) struct Readiness {
    missing: AtomicUsize,
}

impl Readiness {
    /// For `roles` roles, at least 1.
    pub(crate) fn new(roles: usize) -> Readiness {
        Readiness {
            missing: AtomicUsize::new(roles),
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
}
