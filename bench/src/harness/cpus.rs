//! Which CPUs there are, and on which of them what runs; and how many files may be open.
//!
//! A thread that wakes another on its own CPU is an order of magnitude faster than one that wakes
//! another on a CPU that sleeps, and the scheduler does now the one, now the other. Round trips are
//! therefore measured with both ends where they would be: visitor and service on different
//! machines, thus on different CPUs.

use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Open files for tens of thousands of flows. Each flow has one end in a program of the tunnel and
/// one here.
const OPEN_FILES_WANTED: u64 = 200_000;

/// Raises the limit of open files, beyond the hard limit where this process may (as root), else up
/// to it. Whoever needs more will be told so by the socket that cannot be opened.
pub(crate) fn raise_open_files() {
    let before = getrlimit(Resource::Nofile);
    if before.current.is_none_or(|it| it >= OPEN_FILES_WANTED) {
        return;
    }
    for limit in [Some(OPEN_FILES_WANTED), before.maximum] {
        let raised = Rlimit {
            current: limit,
            maximum: limit,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return;
        }
    }
}

pub(crate) fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return Vec::new();
    };
    let all = 0..CpuSet::MAX_CPU;
    all.filter(|cpu| set.is_set(*cpu)).collect()
}

/// Keeps the calling thread, and threads that it starts from now on, on these CPUs. Does nothing if
/// there are none, or if the system refuses.
pub(crate) fn keep_to(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    if set.count() > 0 {
        // This fails if a CPU has just been taken away; then the scheduler decides.
        let _ = sched_setaffinity(None, &set);
    }
}

/// Runs something on a thread of its own that is kept to these CPUs.
pub(crate) fn run_on<T: Send>(cpus: &[usize], action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            keep_to(cpus);
            action()
        });
        // A panic of the action is the caller's.
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The CPUs of each program; an empty list stands for all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) server: Vec<usize>,
    pub(crate) client: Vec<usize>,
    /// The CPUs of visitors that must not share one with the service.
    pub(crate) visitor: Vec<usize>,
    /// The CPUs of the service for such visitors.
    pub(crate) service: Vec<usize>,
}

impl Layout {
    /// Server and client apart, with this many cores each, if there are enough CPUs. Visitors and
    /// the service have CPUs of their own if there are still more; else the visitor shares the
    /// server's, the service the client's.
    pub(crate) fn apart(allowed: &[usize], cores: usize) -> Self {
        let (tunnel, others) = allowed.split_at_checked(2 * cores).unwrap_or_default();
        let (server, client) = tunnel.split_at(tunnel.len() / 2);
        let (visitor, service) = match (tunnel, others, allowed) {
            ([], _, [first, .., last]) => (vec![*first], vec![*last]),
            (_, [visitor, service, ..], _) => (vec![*visitor], vec![*service]),
            _ => (server.to_vec(), client.to_vec()),
        };
        Self {
            server: server.to_vec(),
            client: client.to_vec(),
            visitor,
            service,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_apart_where_there_is_room_else_the_programs_are_free() {
        for (allowed, cores, wanted) in [
            (&[0, 1][..], 1, [&[0][..], &[1], &[0], &[1]]),
            (&[0, 1, 2, 3, 6, 7], 2, [&[0, 1], &[2, 3], &[6], &[7]]),
            (&[4, 5, 6], 2, [&[], &[], &[4], &[6]]),
            (&[0], 1, [&[], &[], &[], &[]]),
        ] {
            let Layout {
                server,
                client,
                visitor,
                service,
            } = Layout::apart(allowed, cores);
            assert_eq!([&server, &client, &visitor, &service], wanted);
        }
    }

    #[test]
    fn a_thread_can_be_kept_on_a_cpu() {
        let before = allowed();
        let first = before[0];
        assert_eq!(run_on(&[first], allowed), [first]);
        assert_eq!(allowed(), before);
        assert_eq!(run_on(&[], allowed), before);
    }

    #[test]
    fn the_limit_of_open_files_never_falls() {
        let before = getrlimit(Resource::Nofile).current;
        raise_open_files();
        let after = getrlimit(Resource::Nofile).current;
        assert!(after.is_none() || after >= before, "{before:?} {after:?}");
    }
}
