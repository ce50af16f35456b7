//! What a table gives back of its memory when most of what was in it has gone: a flood of strangers
//! must leave nothing behind, or one that goes from port to port would leave it at every port.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};

/// A table that has room for fewer keeps it.
pub(crate) const CAPACITY_KEPT: usize = 256;

/// To be called when something has been taken out. A table is halved at most when three quarters of
/// it have gone, so this costs little in the end.
pub(crate) fn give_back<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    let capacity = table.capacity();
    if capacity > CAPACITY_KEPT && table.len() < capacity / 4 {
        table.shrink_to(capacity / 2);
    }
}
