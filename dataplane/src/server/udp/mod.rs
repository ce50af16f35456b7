//! UDP on the server: a core's traffic socket of one entrance, and the flows of its visitors.
//!
//! [`traffic::TrafficSocket`] owns the socket and the [`table`] of flows, [`lane::LaneFlows`] what a client sends and says through
//! one lane, [`routes::UdpRoutes`] knows the clients and the other cores, [`failover`] decides where a flow begins and goes
//! on. A lane counts its flows' ids, so that several sockets can share it. All of it lives on one core. No borrow of a
//! `RefCell` is held across an `await` or a call to another module.

mod budget;
mod failover;
mod flow;
pub(crate) mod forwarded;
#[cfg(test)]
mod handover_tests;
pub(crate) mod lane;
pub(crate) mod routes;
mod table;
pub(crate) mod traffic;
