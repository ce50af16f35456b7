//! Flows: one visitor's TCP connection or UDP source, carried by a lane.

pub(crate) mod bandwidth;
mod ended;
pub(crate) mod fill;
pub(crate) mod role;
pub(crate) mod tcp;
pub(crate) mod udp;
pub(crate) mod watch;
