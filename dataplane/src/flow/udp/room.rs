//! Giving memory of a table back when most of its entries have gone: a flood of strangers must
//! leave nothing behind, or one that goes from port to port would leave it at every port.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

/// A table that has room for fewer entries keeps its memory.
pub(crate) const CAPACITY_KEPT: usize = 256;

/// Gives memory back after an entry has been removed, if the table has become much too large. A
/// table is halved at most when three quarters of it are empty, so this costs little on the whole.
pub(crate) fn give_back<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    let capacity = table.capacity();
    if capacity > CAPACITY_KEPT && table.len() < capacity / 4 {
        table.shrink_to(capacity / 2);
    }
}
