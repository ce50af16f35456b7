//! The numbers by which cores refer to doors and entrances in their mail. No number is used twice:
//! mail for a door that is gone is dropped.

/// The number of a door, where clients of some services connect; the same on every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DoorId(pub(crate) u64);

/// The number of an entrance, which is one port of one service; the same on every core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EntranceId(pub(crate) u64);
