//! The servers: one for each address that a configured name resolves to, and what all cores of the
//! client know of each.

pub(crate) mod demand;
#[cfg(test)]
mod demand_tests;
pub(crate) mod roster;
pub(crate) mod server;
pub(crate) mod transport;
pub(crate) mod twins;
