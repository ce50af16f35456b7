//! TCP on the server: a visitor's way to a client, and its flow until the service answers.

pub(crate) mod opening;
pub(crate) mod visitor;
