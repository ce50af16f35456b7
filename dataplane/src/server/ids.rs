//! By what the cores name doors and entrances to each other. None is used again: mail for one that is gone finds nobody.

/// A door: where clients of some services come in, with the same number on every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DoorId(pub(crate) u64);

/// An entrance: one port of one service, with the same number on every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EntranceId(pub(crate) u64);
