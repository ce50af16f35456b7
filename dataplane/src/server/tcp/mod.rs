//! TCP on the server: a visitor's arrival, its route to a client, and its flow.

mod arrival;
mod carry;
mod header_wait;
pub(crate) mod opening;
mod refused;
pub(crate) mod visitor;
