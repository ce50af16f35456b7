//! What measurements are made of: what is around them, load generators, goals and reports.
//!
//! Nothing here belongs to qmux-dp itself, and nothing knows how a tunnel works inside. A crate
//! each beside this one are the link emulator, the harness that end-to-end tests share, UDP in
//! batches, and `quinn-dp`, the same tunnel on another stack.

#![forbid(unsafe_code)]

mod commands;
mod goals;
pub mod harness;
pub mod load;
mod report;
mod stats;

pub use commands::main;
