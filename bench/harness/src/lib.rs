//! What measurements and end-to-end tests both stand on: programs that cannot outlive who started
//! them, ports that are free, the counters that programs log.
//!
//! Nothing here knows how a tunnel works: it speaks only contracts (command lines, log lines,
//! sockets). Everything returns an error; what a failure means is for the caller to say.

#![forbid(unsafe_code)]

pub mod counters;
mod error;
mod launch;
pub mod ports;
mod program;

pub use error::Error;
pub use launch::{Launch, Where, find, own_directory};
pub use program::{Ended, Program, Source, says_ready};
