//! Everything around a measurement: tunnels set up, resources counted, the machine described.
//!
//! Nothing here generates load (module `load` does) or presents results (module `report` does).
//! Whatever is started here is ended with the value that holds it, and by the kernel should this
//! process die.

pub(crate) mod admin;
pub(crate) mod callgrind;
pub(crate) mod cleanup;
pub(crate) mod cpus;
pub(crate) mod iperf3;
pub(crate) mod machine;
pub mod meter;
pub mod place;
pub(crate) mod proc_stat;
mod rathole;
pub(crate) mod requests;
pub(crate) mod site;
pub(crate) mod spec;
pub mod strace;
pub mod tunnel;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

pub(crate) fn make(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}

/// What a mutex holds, whoever panicked with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
