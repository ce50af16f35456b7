//! Why a fragment was not used.

use thiserror::Error;

/// Why a fragment was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DropReason {
    /// The fragment is a duplicate.
    #[error("the fragment is there already")]
    Duplicate,
    /// The packet was already completed or given up.
    #[error("the packet was already completed or given up")]
    Late,
    /// No packet can have such a fragment: index, count or length is impossible.
    #[error("no packet can have such a fragment")]
    Invalid,
    /// Count or length contradicts the other fragments; the packet is given up.
    #[error("the fragment contradicts the others of its packet")]
    Inconsistent,
    /// The packet would be larger than any UDP packet; it is given up.
    #[error("the packet would be larger than a UDP packet can be")]
    TooLarge,
}
