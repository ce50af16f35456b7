//! CPUs: which ones the process may run on, and pinning a core's thread to one.

/// Number of CPUs that this process may run on (its affinity mask), at least 1.
pub(crate) fn allowed_count() -> usize {
    core_affinity::get_core_ids().map_or(1, |ids| ids.len().max(1))
}

/// Pins the calling thread to the `index`-th allowed CPU, counted around when there are more cores than CPUs, and from the
/// last one back if `from_end`.
/// Returns the CPU's number, or `None` if the system refused.
pub(crate) fn pin_current_thread(index: usize, from_end: bool) -> Option<usize> {
    let ids = core_affinity::get_core_ids()?;
    let index = index.checked_rem(ids.len())?;
    let id = *ids.get(if from_end {
        ids.len() - 1 - index
    } else {
        index
    })?;
    core_affinity::set_for_current(id).then_some(id.id)
}
