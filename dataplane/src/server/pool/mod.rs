//! The clients of a door and of each of its services, and the choice among them. It does no I/O;
//! time comes in as an argument.
//!
//! Shared by cores: [`registry`] holds the clients of a door, [`client`] is one of them,
//! [`service`] holds the clients of one service. [`membership`] ties a lane to its client.
//! [`balance`] is the rule of choice, [`route`] the search for a client and one of its lanes, and
//! [`lanes`] the table of lanes of one core.

pub(crate) mod balance;
pub(crate) mod client;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod lanes;
pub(crate) mod membership;
mod passive_health;
pub(crate) mod registry;
pub(crate) mod route;
pub(crate) mod service;
#[cfg(test)]
mod simulation;
mod slow_start;
pub(crate) mod views;
