//! The process: it starts the cores and their roles, tells them to drain, watches them, and reports
//! their state.
//!
//! It stands on top of the roles, and is the only layer that knows both of them. `main` runs
//! [`run`], each core's thread [`thread`].

pub(crate) mod access_log;
pub(crate) mod admin;
pub(crate) mod bind;
mod certificates;
pub(crate) mod check;
pub(crate) mod exit;
pub(crate) mod handover;
pub(crate) mod log_level;
pub(crate) mod logging;
mod mail;
mod progress;
pub(crate) mod reload;
pub(crate) mod run;
mod signals;
pub(crate) mod status;
mod thread;
#[cfg(test)]
mod udp_tests;
mod warnings;
mod watch;
