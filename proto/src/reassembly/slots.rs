//! Values with a number that stays the same as long as they exist. Numbers are reused.

/// The number of a value.
pub(super) type Slot = u32;

#[derive(Debug)]
pub(super) struct Slots<T> {
    values: Vec<Option<T>>,
    free: Vec<Slot>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self {
            values: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Slot {
        if let Some(slot) = self.free.pop() {
            self.values[slot as usize] = Some(value);
            return slot;
        }
        let slot = Slot::try_from(self.values.len()).expect("limits are far below 2^32");
        self.values.push(Some(value));
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> T {
        let value = self.values[slot as usize]
            .take()
            .expect("the slot is in use");
        self.free.push(slot);
        value
    }

    pub(super) fn get(&self, slot: Slot) -> &T {
        self.values[slot as usize]
            .as_ref()
            .expect("the slot is in use")
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> &mut T {
        self.values[slot as usize]
            .as_mut()
            .expect("the slot is in use")
    }
}
