//! The scheduler's slice of a core's thread: how long it may run before threads that wait for the
//! same CPU have their turn.
//!
//! Since Linux 6.12 a thread may ask for a slice of its own (`sched_runtime` of an ordinary thread,
//! sched_setattr(2)). It gets no more CPU time by that, and needs no privilege. But where it has
//! used less than its share, it runs as soon as it is woken, before whoever runs there with a
//! longer slice has used that up: a message waits less beside threads that are always busy. Older
//! kernels take the call and do as before.

use std::io;
use std::mem::size_of;
use std::time::Duration;

/// The slice that a core's thread asks for. Ordinary ones have 0.7 ms with one CPU, and 2.8 ms from
/// eight on; the kernel takes 0.1 ms at least. Shorter ones gained nothing.
const SLICE: Duration = Duration::from_micros(500);

/// Asks for a short slice for the calling thread, unless it has one as short, or a real-time policy
/// or that of idle times, which somebody has chosen for it. Its priority stays.
///
/// # Errors
/// If the system refuses, for example by a filter for system calls.
pub(crate) fn shorten() -> io::Result<()> {
    let mut wanted = of_this_thread()?;
    let is_ordinary = i32::try_from(wanted.sched_policy)
        .is_ok_and(|policy| matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH));
    let slice = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    let has_as_short = (1..=slice).contains(&wanted.sched_runtime);
    if !is_ordinary || has_as_short {
        return Ok(());
    }
    wanted.sched_runtime = slice;
    // SAFETY: the kernel reads as many bytes as `wanted.size` says, which are all of it.
    result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) })
}

/// What the scheduler knows of the calling thread.
fn of_this_thread() -> io::Result<libc::sched_attr> {
    const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes SIZE bytes at most.
    result(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, SIZE, 0) })?;
    Ok(attributes)
}

fn result(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, whose slice may change.
    fn elsewhere<T: Send>(what: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(what).join().expect("no panic"))
    }

    fn set(change: impl FnOnce(&mut libc::sched_attr)) -> libc::sched_attr {
        let mut attributes = of_this_thread().expect("known");
        change(&mut attributes);
        // SAFETY: as in `shorten`.
        let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        result(set).expect("allowed");
        of_this_thread().expect("known")
    }

    #[test]
    fn a_slice_becomes_short_and_nothing_else_changes() {
        elsewhere(|| {
            let before = set(|attributes| attributes.sched_nice += 1);
            shorten().expect("allowed");
            let after = of_this_thread().expect("known");
            // Kernels that have no slices of threads' own tell none.
            let told = if before.sched_runtime == 0 {
                0
            } else {
                500_000
            };
            assert_eq!(after.sched_runtime, told);
            assert_eq!(after.sched_nice, before.sched_nice);
            assert_eq!(after.sched_policy, before.sched_policy);
            assert_eq!(after.sched_flags, before.sched_flags);
        });
    }

    #[test]
    fn a_shorter_slice_and_a_chosen_policy_stay() {
        elsewhere(|| {
            let before = set(|attributes| attributes.sched_runtime = 200_000);
            shorten().expect("allowed");
            let after = of_this_thread().expect("known");
            assert_eq!(after.sched_runtime, before.sched_runtime);
        });
        elsewhere(|| {
            let before = set(|attributes| attributes.sched_policy = libc::SCHED_IDLE as u32);
            shorten().expect("allowed");
            let after = of_this_thread().expect("known");
            assert_eq!(after.sched_policy, before.sched_policy);
            assert_eq!(after.sched_runtime, before.sched_runtime);
        });
    }
}
