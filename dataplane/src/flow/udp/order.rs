//! Lists of slab keys, each in an order of its own. A key leaves from anywhere in constant time,
//! because the links lie beside the values: one [`Links`] serves any number of lists, as long as
//! each key is in one of them.

/// Neighbours of every key.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    older: Option<usize>,
    newer: Option<usize>,
}

/// The ends of one list.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct List {
    oldest: Option<usize>,
    newest: Option<usize>,
    len: usize,
}

impl List {
    pub(super) fn oldest(&self) -> Option<usize> {
        self.oldest
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Links {
    /// Gives back the memory of keys that are not less than `keys`; none of them is in a list.
    pub(super) fn shrink_to(&mut self, keys: usize) {
        self.0.truncate(keys);
        self.0.shrink_to_fit();
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.0.capacity()
    }

    /// Adds a key that is in no list of these links, as the newest.
    pub(super) fn push(&mut self, list: &mut List, key: usize) {
        if key >= self.0.len() {
            self.0.resize(key + 1, Link::default());
        }
        self.0[key] = Link {
            older: list.newest,
            newer: None,
        };
        match list.newest {
            Some(newest) => self.0[newest].newer = Some(key),
            None => list.oldest = Some(key),
        }
        list.newest = Some(key);
        list.len += 1;
    }

    /// Takes a key out of its list.
    pub(super) fn remove(&mut self, list: &mut List, key: usize) {
        let Link { older, newer } = self.0[key];
        match older {
            Some(older) => self.0[older].newer = newer,
            None => list.oldest = newer,
        }
        match newer {
            Some(newer) => self.0[newer].older = older,
            None => list.newest = older,
        }
        list.len -= 1;
    }

    /// Makes a key of the list its newest.
    pub(super) fn renew(&mut self, list: &mut List, key: usize) {
        if list.newest != Some(key) {
            self.remove(list, key);
            self.push(list, key);
        }
    }
}
