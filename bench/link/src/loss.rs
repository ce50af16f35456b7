//! Which packets get lost.

use rand::{Rng, RngExt};

use super::profile::Loss;

/// Decides which packets of one direction get lost.
#[derive(Debug)]
pub(super) struct LossProcess {
    loss: Loss,
    /// Whether the link is in a burst of loss.
    bad: bool,
}

impl LossProcess {
    /// Begins with a good link, outside of a burst.
    pub(super) fn new(loss: Loss) -> Self {
        Self { loss, bad: false }
    }

    /// Whether the next packet gets lost.
    pub(super) fn takes_next(&mut self, rng: &mut impl Rng) -> bool {
        match self.loss {
            Loss::None => false,
            Loss::Random { p } => rng.random_bool(p),
            Loss::Bursts {
                p_enter,
                p_leave,
                p_loss,
            } => {
                let p_turn = if self.bad { p_leave } else { p_enter };
                self.bad ^= rng.random_bool(p_turn);
                self.bad && rng.random_bool(p_loss)
            }
        }
    }
}
