//! What the kernel says about a process (proc(5)), in seconds and bytes.

use procfs::process::{Process, Stat};
use procfs::{CurrentSI as _, KernelStats};
use serde::Serialize;

/// CPU time of a process, all of its threads together, also those that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CpuTime {
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
}

impl CpuTime {
    pub(crate) fn seconds(self) -> f64 {
        self.user_seconds + self.system_seconds
    }

    #[must_use]
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            user_seconds: self.user_seconds - earlier.user_seconds,
            system_seconds: self.system_seconds - earlier.system_seconds,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    /// The most so far, or since [`reset_peak`].
    pub(crate) peak_bytes: u64,
}

fn process(pid: u32) -> Option<Process> {
    Process::new(i32::try_from(pid).ok()?).ok()
}

fn stat(pid: u32) -> Option<Stat> {
    process(pid)?.stat().ok()
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// CPU time of a process; `None` if it is gone.
pub(crate) fn cpu_time(pid: u32) -> Option<CpuTime> {
    let stat = stat(pid)?;
    Some(CpuTime {
        user_seconds: seconds(stat.utime),
        system_seconds: seconds(stat.stime),
    })
}

/// CPU seconds of a process and of its children that have ended and been waited for.
pub(crate) fn cpu_seconds_with_children(pid: u32) -> Option<f64> {
    let stat = stat(pid)?;
    let children = stat.cutime.cast_unsigned() + stat.cstime.cast_unsigned();
    Some(seconds(stat.utime + stat.stime + children))
}

/// Memory of a process; `None` if it is gone.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let status = process(pid)?.status().ok()?;
    Some(Memory {
        resident_bytes: status.vmrss? * 1_024,
        peak_bytes: status.vmhwm? * 1_024,
    })
}

/// How many files a process has open; none if it is gone.
pub(crate) fn descriptors(pid: u32) -> usize {
    process(pid).map_or(0, |it| it.fd_count().unwrap_or(0))
}

/// The number of times that the threads of a process have gone to sleep, and so been woken again,
/// since they began. Threads that have ended are not counted. `None` if the process is gone.
pub(crate) fn wake_ups(pid: u32) -> Option<u64> {
    let tasks = process(pid)?.tasks().ok()?;
    let statuses = tasks.flatten().filter_map(|task| task.status().ok());
    Some(statuses.filter_map(|it| it.voluntary_ctxt_switches).sum())
}

/// Lets the peak of a process start again from its present memory. Only its owner may.
pub(crate) fn reset_peak(pid: u32) {
    // "Reset the peak resident set size", from the kernel's documentation of
    // `/proc/PID/clear_refs`.
    let _refused = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// CPU seconds that the whole machine has spent on anything; those that were stolen, and those of
/// guests, are not ours to explain.
pub(crate) fn machine_busy_seconds() -> Option<f64> {
    let all = KernelStats::current().ok()?.total;
    let interrupts = all.irq.unwrap_or(0) + all.softirq.unwrap_or(0);
    Some(seconds(all.user + all.nice + all.system + interrupts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there_and_one_that_never_was_is_not() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_some() && wake_ups(pid).is_some());
        assert!(cpu_seconds_with_children(pid).is_some());
        assert!(memory(pid).is_some_and(|memory| memory.peak_bytes >= memory.resident_bytes / 2));
        assert!(descriptors(pid) >= 3);
        assert!(machine_busy_seconds().is_some_and(|seconds| seconds > 0.0));
        assert!(cpu_time(u32::MAX).is_none() && descriptors(u32::MAX) == 0);
    }
}
