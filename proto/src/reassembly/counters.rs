//! The counters of a reassembler.

/// Totals since the reassembler was made. Every packet that was started ends in exactly one of
/// `completed`, `expired`, `evicted`, `forgotten` and `broken`; every fragment that was not used is
/// in one of `duplicates`, `late` and `refused`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets given back whole.
    pub completed: u64,
    /// Fragments that were duplicates.
    pub duplicates: u64,
    /// Fragments of packets that were already completed or given up.
    pub late: u64,
    /// Packets given up because their fragments took too long.
    pub expired: u64,
    /// Packets given up because a limit was reached.
    pub evicted: u64,
    /// Packets given up because their flow ended.
    pub forgotten: u64,
    /// Packets given up because a fragment contradicted the others.
    pub broken: u64,
    /// Fragments that cannot be, or that contradicted the others of their packet.
    pub refused: u64,
}
