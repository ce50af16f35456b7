//! The clients of a door and of each of its services, and the choice among them. No I/O; time comes in as an argument.
//!
//! [`registry`] has the clients of a door, [`client`] is one of them, [`service`] has those of one service: cores share
//! these. [`membership`] is a lane's claim on its client; [`balance`] is the rule of choice, [`route`] the search for a
//! client and a lane of it, [`lanes`] the lanes of one core.

pub(crate) mod balance;
mod blame;
pub(crate) mod client;
#[cfg(test)]
pub(crate) mod fixture;
mod head_start;
pub(crate) mod lanes;
pub(crate) mod membership;
pub(crate) mod registry;
pub(crate) mod route;
pub(crate) mod service;
#[cfg(test)]
mod simulation;
mod udp_refusals;
pub(crate) mod views;
