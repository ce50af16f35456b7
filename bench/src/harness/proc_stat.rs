//! What the kernel says about a process, read from `/proc` (proc(5)).

use std::fs;

use serde::Serialize;

/// CPU time of a process, all of its threads together, also those that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CpuTime {
    /// Seconds in user space.
    pub user_seconds: f64,
    /// Seconds in the kernel on behalf of the process.
    pub system_seconds: f64,
}

impl CpuTime {
    /// Both together.
    pub fn seconds(self) -> f64 {
        self.user_seconds + self.system_seconds
    }

    /// What was used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user_seconds: self.user_seconds - earlier.user_seconds,
            system_seconds: self.system_seconds - earlier.system_seconds,
        }
    }
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes in memory now.
    pub resident_bytes: u64,
    /// The most so far, or since [`reset_peak`].
    pub peak_bytes: u64,
}

/// CPU time of a process; `None` if it is gone.
pub fn cpu_time(pid: u32) -> Option<CpuTime> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_cpu_time(&stat, OWN, ticks_per_second())
}

/// CPU time of a process and of its children that have ended and been waited for.
pub fn cpu_time_with_children(pid: u32) -> Option<CpuTime> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (own, children) = (
        parse_cpu_time(&stat, OWN, ticks_per_second())?,
        parse_cpu_time(&stat, CHILDREN, ticks_per_second())?,
    );
    Some(CpuTime {
        user_seconds: own.user_seconds + children.user_seconds,
        system_seconds: own.system_seconds + children.system_seconds,
    })
}

/// Memory of a process; `None` if it is gone.
pub fn memory(pid: u32) -> Option<Memory> {
    parse_memory(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// How often the threads of a process have gone to sleep, and so been woken again, since they
/// began. Threads that have ended are not counted. `None` if it is gone.
pub fn wake_ups(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_task = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        parse_wake_ups(&status)
    };
    Some(tasks.flatten().filter_map(of_task).sum())
}

fn parse_wake_ups(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let switches = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    switches.trim().parse().ok()
}

/// Lets the peak of a process start again from its present memory. Only its owner may; `false` if refused.
pub fn reset_peak(pid: u32) -> bool {
    /// "Reset the peak resident set size", from the kernel's documentation of `/proc/PID/clear_refs`.
    const RESET_PEAK: &str = "5";
    fs::write(format!("/proc/{pid}/clear_refs"), RESET_PEAK).is_ok()
}

/// CPU seconds that the whole machine has spent on anything.
pub fn machine_busy_seconds() -> Option<f64> {
    parse_machine_busy(&fs::read_to_string("/proc/stat").ok()?, ticks_per_second())
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// Where utime and cutime stand among the fields that follow the command's name.
const OWN: usize = 11;
const CHILDREN: usize = 13;

fn parse_cpu_time(stat: &str, first: usize, ticks_per_second: f64) -> Option<CpuTime> {
    // The name of the command is in parentheses and may hold spaces and parentheses itself.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(first);
    let mut seconds = || Some(times.next()?.parse::<f64>().ok()? / ticks_per_second);
    Some(CpuTime {
        user_seconds: seconds()?,
        system_seconds: seconds()?,
    })
}

fn parse_memory(status: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1_024)
    };
    Some(Memory {
        resident_bytes: bytes("VmRSS:")?,
        peak_bytes: bytes("VmHWM:")?,
    })
}

fn parse_machine_busy(stat: &str, ticks_per_second: f64) -> Option<f64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<f64> = line
        .split_whitespace()
        .map_while(|time| time.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; steal and guests are not ours to explain.
    let &[user, nice, system, _idle, _iowait, irq, softirq, ..] = times.as_slice() else {
        return None;
    };
    Some((user + nice + system + irq + softirq) / ticks_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4242 (a (b) c d) S 1 4242 4242 0 -1 4194560 9000 8 0 0 250 125 40 20 20 0 \
                        4 0 5000 1000000 2000 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1";

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let time = parse_cpu_time(STAT, OWN, 100.0).expect("times");
        assert_eq!((time.user_seconds, time.system_seconds), (2.5, 1.25));
        assert_eq!(time.seconds(), 3.75);
    }

    #[test]
    fn so_is_that_of_children() {
        let time = parse_cpu_time(STAT, CHILDREN, 100.0).expect("times");
        assert_eq!((time.user_seconds, time.system_seconds), (0.4, 0.2));
    }

    #[test]
    fn a_cut_line_is_nothing() {
        assert_eq!(parse_cpu_time("4242 (a) S 1 2", OWN, 100.0), None);
        assert_eq!(parse_cpu_time("", OWN, 100.0), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status =
            "Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\nThreads:\t1\n";
        let memory = parse_memory(status).expect("memory");
        assert_eq!(
            (memory.resident_bytes, memory.peak_bytes),
            (1 << 20, 2 << 20)
        );
        assert_eq!(parse_memory("Name:\tkernel thread\n"), None);
    }

    #[test]
    fn only_switches_that_the_process_wanted_are_wake_ups() {
        let status = "Threads:\t1\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(parse_wake_ups(status), Some(150));
        let others = "nonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(parse_wake_ups(others), None);
    }

    #[test]
    fn a_machine_is_busy_when_it_does_not_wait() {
        let stat = "cpu  100 20 30 9000 500 4 6 77 0 0\ncpu0 1 2 3\n";
        assert_eq!(parse_machine_busy(stat, 100.0), Some(1.6));
        assert_eq!(parse_machine_busy("intr 1 2", 100.0), None);
    }

    #[test]
    fn this_process_is_there() {
        let pid = std::process::id();
        assert!(cpu_time(pid).is_some() && wake_ups(pid).is_some());
        assert!(cpu_time_with_children(pid).is_some());
        assert!(memory(pid).is_some_and(|memory| memory.peak_bytes >= memory.resident_bytes / 2));
        assert!(machine_busy_seconds().is_some_and(|seconds| seconds > 0.0));
    }
}
