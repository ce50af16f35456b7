//! UDP on the server: the traffic sockets of a core, and the flows of their visitors.
//!
//! [`traffic::TrafficSocket`] owns a socket and its [`table`] of flows. [`lane::LaneFlows`] handles
//! what a client sends and says through one lane. [`routes::UdpRoutes`] knows the clients and the
//! other cores. [`failover`] decides where a flow begins and goes on. A lane counts its flows' ids,
//! so that several sockets can share it. All of this lives on one core. No borrow of a `RefCell` is
//! held across an `await` or a call to another module.

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
