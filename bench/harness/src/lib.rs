//! The parts that measurements and end-to-end tests share: programs that cannot outlive the process
//! that started them, ports that are free, the counters that programs log.
//!
//! Nothing here knows how a tunnel works: this crate uses only contracts (command lines, log lines,
//! sockets). Every function returns its error, and the caller decides what a failure means.

#![forbid(unsafe_code)]

pub mod counters;
mod error;
mod launch;
pub mod ports;
mod program;

pub use error::Error;
pub use launch::{Launch, Where, find, own_directory};
pub use program::{Ended, Program, Source, says_ready};
