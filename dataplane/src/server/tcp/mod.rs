//! TCP on the server: a visitor's way to a client, and its flow until the service answers.

mod announced;
mod arrival;
mod carry;
pub(crate) mod opening;
pub(crate) mod visitor;
