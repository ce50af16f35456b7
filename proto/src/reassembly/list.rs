//! Lists of slots in the order in which they were added, oldest first. A slot leaves from anywhere
//! in constant time, because the links lie beside the values: one [`Links`] serves any number of
//! lists, as long as each slot is in one of them.

use super::slots::Slot;

/// Neighbours of every slot.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    older: Option<Slot>,
    newer: Option<Slot>,
}

/// The ends of one list.
#[derive(Debug, Default)]
pub(super) struct List {
    oldest: Option<Slot>,
    newest: Option<Slot>,
    len: usize,
}

impl List {
    pub(super) fn oldest(&self) -> Option<Slot> {
        self.oldest
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Links {
    /// The slot that was added to the list of `slot` next after it.
    pub(super) fn newer(&self, slot: Slot) -> Option<Slot> {
        self.0[slot as usize].newer
    }

    pub(super) fn push(&mut self, list: &mut List, slot: Slot) {
        let index = slot as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, Link::default());
        }
        self.0[index] = Link {
            older: list.newest,
            newer: None,
        };
        match list.newest {
            Some(newest) => self.0[newest as usize].newer = Some(slot),
            None => list.oldest = Some(slot),
        }
        list.newest = Some(slot);
        list.len += 1;
    }

    pub(super) fn remove(&mut self, list: &mut List, slot: Slot) {
        let Link { older, newer } = self.0[slot as usize];
        match older {
            Some(older) => self.0[older as usize].newer = newer,
            None => list.oldest = newer,
        }
        match newer {
            Some(newer) => self.0[newer as usize].older = older,
            None => list.newest = older,
        }
        list.len -= 1;
    }
}
