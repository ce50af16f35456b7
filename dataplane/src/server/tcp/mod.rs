//! TCP on the server: a visitor's arrival, its route to a client, and its flow.

mod announced;
mod arrival;
mod carry;
pub(crate) mod opening;
pub(crate) mod visitor;
