//! Scenarios through the kernel's sockets and lanes in memory, of what both ends share.

mod batching;
mod encoding;
pub(crate) mod support;
