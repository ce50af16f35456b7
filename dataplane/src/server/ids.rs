//! By what the cores name doors and entrances to each other. None is used again: mail for one that is gone finds nobody.

/// A door: one `quic_addr`, with the same number on every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DoorId(pub(crate) u64);

/// An entrance: one `traffic_addr`, with the same number on every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EntranceId(pub(crate) u64);
