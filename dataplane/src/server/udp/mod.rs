//! UDP on the server: a core's traffic socket of one listener, and the flows of its visitors.
//!
//! [`TrafficSocket`] owns the socket and the [`table`] of flows, [`LaneFlows`] what its client sends and says through
//! one lane, [`failover`] decides where a flow begins and goes on. All of it lives on one core. No borrow of a
//! `RefCell` is held across an `await` or a call to another module.

mod failover;
#[cfg(test)]
mod handover_tests;
mod lane;
mod table;
mod traffic;

pub(crate) use lane::LaneFlows;
pub(crate) use traffic::{ForwardedUdp, RouteUdp, TrafficSocket, UdpRoute, Wish};
