//! UDP on the server: a core's traffic socket of one entrance, and the flows of its visitors.
//!
//! [`TrafficSocket`] owns the socket and the [`table`] of flows, [`LaneFlows`] what a client sends and says through
//! one lane, [`UdpRoutes`] knows the clients and the other cores, [`failover`] decides where a flow begins and goes
//! on. A lane counts its flows' ids, so that several sockets can share it. All of it lives on one core. No borrow of a
//! `RefCell` is held across an `await` or a call to another module.

mod failover;
#[cfg(test)]
mod handover_tests;
mod lane;
mod routes;
mod table;
mod traffic;

pub(crate) use lane::LaneFlows;
pub(crate) use routes::UdpRoutes;
pub(crate) use traffic::{ForwardedUdp, TrafficSocket};
