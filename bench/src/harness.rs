//! Everything around a measurement: tunnels set up, resources counted, the machine described.
//!
//! Nothing here generates load (module `load` does) or presents results (module `report` does).
//! Whatever is started here is ended with the value that holds it, and by the kernel should this
//! process die.

pub mod admin;
pub mod callgrind;
pub mod calls;
pub mod cleanup;
pub mod cpus;
pub mod iperf3;
pub mod limits;
pub mod machine;
pub mod meter;
mod nginx;
pub mod place;
pub mod proc_stat;
mod rathole;
pub mod redis;
pub mod requests;
pub mod server;
pub mod site;
pub mod spec;
pub mod strace;
pub mod tunnel;
pub mod wrk;

pub use qmux_harness::Error as BenchError;
