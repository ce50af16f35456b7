//! The servers: one for each address that a configured name resolves to, and what all cores of the
//! client know of each.

pub(crate) mod demand;
#[cfg(test)]
mod demand_tests;
pub(crate) mod roster;
pub(crate) mod same_server;
pub(crate) mod server;
pub(crate) mod stand_in;
pub(crate) mod take_up;
pub(crate) mod transport;
