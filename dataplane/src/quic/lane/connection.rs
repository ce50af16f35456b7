//! The connection of a lane, in a cell that remembers whether a panic has interrupted a change.
//!
//! quiche is not made for being used after that. So the lane is given up then, and its connection
//! is not used any more; a panic elsewhere costs only a flow.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};

use super::Connection;

/// The connection of one lane.
pub(in crate::quic) struct ConnectionCell {
    connection: RefCell<Connection>,
    interrupted: Cell<bool>,
}

impl ConnectionCell {
    pub(super) fn new(connection: Connection) -> ConnectionCell {
        ConnectionCell {
            connection: RefCell::new(connection),
            interrupted: Cell::new(false),
        }
    }

    /// Borrows the connection to look at it.
    pub(in crate::quic) fn borrow(&self) -> Ref<'_, Connection> {
        self.connection.borrow()
    }

    /// Borrows the connection to change it.
    pub(in crate::quic) fn borrow_mut(&self) -> Change<'_> {
        Change {
            connection: self.connection.borrow_mut(),
            interrupted: &self.interrupted,
            cleans_up: std::thread::panicking(),
        }
    }

    /// Whether a change did not come to its end.
    pub(in crate::quic) fn was_interrupted(&self) -> bool {
        self.interrupted.get()
    }
}

/// A change under way.
pub(in crate::quic) struct Change<'a> {
    connection: RefMut<'a, Connection>,
    interrupted: &'a Cell<bool>,
    /// Whether it was begun because of a panic.
    cleans_up: bool,
}

impl Deref for Change<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.cleans_up && std::thread::panicking() {
            self.interrupted.set(true);
        }
    }
}
