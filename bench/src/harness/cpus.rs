//! Which CPUs there are, and on which of them what runs.
//!
//! A thread that wakes another on its own CPU is an order of magnitude faster than one that wakes
//! another on a CPU that sleeps, and the scheduler does now the one, now the other. Round trips are
//! therefore measured with both ends where they would be: visitor and service on different
//! machines, thus on different CPUs.

use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that the calling thread may run on.
pub fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// Keeps the calling thread, and threads that it starts from now on, on these CPUs. Does nothing if
/// there are none, or if the system refuses.
pub fn keep_to(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    if set.count() > 0 {
        // Refused where a CPU has just been taken away; then the scheduler decides.
        let _ = sched_setaffinity(None, &set);
    }
}

/// Runs something on a thread of its own that is kept to these CPUs.
pub fn run_on<T: Send>(cpus: &[usize], action: impl FnOnce() -> T + Send) -> T {
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

/// Who runs where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The server's CPUs; empty for all. The same holds for the others.
    pub server: Vec<usize>,
    /// The client's.
    pub client: Vec<usize>,
    /// Those of visitors that must not share one with the service.
    pub visitor: Vec<usize>,
    /// Those of the service for such visitors.
    pub service: Vec<usize>,
}

impl Layout {
    /// Server and client apart, with so many cores each, if there are enough CPUs. Visitors and the
    /// service have CPUs of their own if there are still more; else the visitor shares the
    /// server's, the service the client's.
    pub fn apart(allowed: &[usize], cores: usize) -> Self {
        let Some((tunnel, others)) = allowed.split_at_checked(2 * cores) else {
            let (visitor, service) = match allowed {
                [first, .., last] => (vec![*first], vec![*last]),
                _ => (Vec::new(), Vec::new()),
            };
            return Self {
                visitor,
                service,
                ..Self::default()
            };
        };
        let (server, client) = tunnel.split_at(cores);
        let (visitor, service) = match others {
            [visitor, service, ..] => (vec![*visitor], vec![*service]),
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
    fn sides_are_apart_where_there_is_room() {
        let layout = Layout::apart(&[0, 1], 1);
        assert_eq!((layout.server, layout.client), (vec![0], vec![1]));
        assert_eq!((layout.visitor, layout.service), (vec![0], vec![1]));
        let layout = Layout::apart(&[0, 1, 2, 3, 6, 7], 2);
        assert_eq!((layout.server, layout.client), (vec![0, 1], vec![2, 3]));
        assert_eq!((layout.visitor, layout.service), (vec![6], vec![7]));
    }

    #[test]
    fn with_few_cpus_the_programs_are_free() {
        let layout = Layout::apart(&[4, 5, 6], 2);
        assert!(layout.server.is_empty() && layout.client.is_empty());
        assert_eq!((layout.visitor, layout.service), (vec![4], vec![6]));
        assert_eq!(Layout::apart(&[0], 1), Layout::default());
    }

    #[test]
    fn a_thread_can_be_kept_on_a_cpu() {
        let before = allowed();
        let first = before[0];
        assert_eq!(run_on(&[first], allowed), [first]);
        assert_eq!(allowed(), before);
        assert_eq!(run_on(&[], allowed), before);
    }
}
