//! What a program sets up for itself as a process: how many CPUs it uses, how many files it may
//! open.

use std::num::NonZeroUsize;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The CPUs that this process may run on; 1 if the system does not tell.
pub(crate) fn cpus() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Raises the limit of open files as far as the process may: each TCP flow is one. Returns the
/// limit, `None` for none.
pub(crate) fn raise_open_files_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        // The limit stays as it is; whoever needs more will be told so by the socket that cannot be
        // opened.
        Err(_) => limit.current,
    }
}
