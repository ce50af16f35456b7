//! The clients of a service, and the choice among them. No I/O; time comes in as an argument.
//!
//! [`registry`] is the one structure that cores share; [`balance`] is the rule of choice, [`route`] the search for a
//! client and a lane of it, [`lanes`] the lanes of one core.

pub(crate) mod balance;
mod blame;
mod head_start;
pub(crate) mod lanes;
pub(crate) mod registry;
pub(crate) mod route;
#[cfg(test)]
mod simulation;
mod udp_refusals;
pub(crate) mod views;
