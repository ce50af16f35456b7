//! What a service demands of its visitors before they cost it anything: one gate for each service,
//! which all cores ask. It is asked when a visitor comes, TCP or UDP, and never for its bytes.

mod refusals;

use std::net::IpAddr;

use qmux_config::Bounds;

pub(crate) use refusals::{Refusal, RefusalCounters};

/// The gate of one service.
#[derive(Debug)]
pub(crate) struct Gate {
    bounds: Bounds,
    /// Of each core.
    refusals: Vec<RefusalCounters>,
}

impl Gate {
    /// Of a service with these bounds.
    pub(crate) fn new(bounds: &Bounds, cores: usize) -> Gate {
        Gate {
            bounds: bounds.clone(),
            refusals: (0..cores).map(|_| RefusalCounters::default()).collect(),
        }
    }

    /// What each core has refused.
    pub(crate) fn refusals(&self) -> &[RefusalCounters] {
        &self.refusals
    }

    /// Whether a visitor may come in that has come to `core`.
    ///
    /// # Errors
    /// Why not; it has been counted.
    pub(crate) fn admit(&self, core: usize, visitor: IpAddr) -> Result<(), Refusal> {
        let judged = self.judge(visitor);
        if let Err(refusal) = judged {
            refusal.counter(&self.refusals[core]).increment();
        }
        judged
    }

    fn judge(&self, visitor: IpAddr) -> Result<(), Refusal> {
        if self.bounds.denies(visitor) {
            return Err(Refusal::Denied);
        }
        if self.bounds.does_not_allow(visitor) {
            return Err(Refusal::NotAllowed);
        }
        Ok(())
    }
}
