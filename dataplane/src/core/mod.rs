//! Cores: one pinned thread each, with its own runtime; mailboxes between them.

/// Cores of one process: the index is one byte of a connection id (`qmux_proto::cid`).
pub(crate) const CORES_MAX: usize = 256;
