//! Which servers there are: one per address that a configured name resolves to, with what all
//! cores of the client know of each.

pub(crate) mod demand;
#[cfg(test)]
mod demand_tests;
pub(crate) mod roster;
pub(crate) mod server;
pub(crate) mod transport;
pub(crate) mod twins;
