//! CPUs: how many cores are useful, and which CPU each core's thread is pinned to.
//!
//! Processes do not know of each other, so none may take fixed CPUs: two clients of one host would
//! share one while others are idle. A process looks where the threads of other processes of this
//! program are pinned, and takes the CPUs with the fewest of them. Under a quota of CPU time
//! nothing is pinned: there are then more CPUs than the process may use, and it shares them with
//! processes that it cannot see but the system's scheduler can.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use core_affinity::CoreId;

use super::cpu_quota;

/// The beginning of the names of cores' threads.
pub(crate) const CORE_THREAD: &str = "core-";

/// The CPUs that this process may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Allowed {
    /// Number of CPUs of its affinity mask, at least 1.
    pub(crate) cpus: usize,
    /// CPU time per time that its control groups allow, if that is less.
    pub(crate) quota: Option<f64>,
}

impl Allowed {
    /// Asks the system.
    pub(crate) fn now() -> Allowed {
        let cpus = core_affinity::get_core_ids().map_or(1, |ids| ids.len().max(1));
        Allowed {
            cpus,
            quota: cpu_quota::cpus().filter(|quota| *quota < cpus as f64),
        }
    }

    /// Number of cores that can use all of it.
    pub(crate) fn cores(self) -> usize {
        self.quota.map_or(self.cpus, |quota| {
            cpu_quota::cores_for(quota).min(self.cpus)
        })
    }
}

/// The CPU of each core's thread, counted around when there are more cores than CPUs; `None` if the
/// scheduler is to choose.
pub(crate) fn places(cores: usize, allowed: Allowed, from_end: bool) -> Vec<Option<usize>> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let mut cpus: Vec<usize> = ids.iter().map(|id| id.id).collect();
    if allowed.quota.is_some() || cpus.is_empty() {
        return vec![None; cores];
    }
    if from_end {
        cpus.reverse();
    }
    // If all CPUs are used, the other processes make no difference.
    let taken = if cores < cpus.len() {
        taken_by_others(Path::new("/proc"))
    } else {
        HashMap::new()
    };
    // A random number is used instead of the process id, because in containers every process is the
    // first one.
    let first = usize::from(rand::random::<u16>());
    let order = order(&cpus, first, &taken);
    order.into_iter().cycle().take(cores).map(Some).collect()
}

/// Pins the calling thread. Returns false if the system refuses.
pub(crate) fn pin_current_thread(cpu: usize) -> bool {
    core_affinity::set_for_current(CoreId { id: cpu })
}

/// Orders `cpus` by preference: those that the fewest threads have `taken` first, and among them in
/// their order from the `first` one on. Processes that start at the same moment, or do not see each
/// other, begin at different ones.
fn order(cpus: &[usize], first: usize, taken: &HashMap<usize, usize>) -> Vec<usize> {
    let mut order = cpus.to_vec();
    let first = first.checked_rem(order.len()).unwrap_or_default();
    order.rotate_left(first);
    order.sort_by_key(|cpu| taken.get(cpu).copied().unwrap_or_default());
    order
}

/// How many cores' threads of other processes of this program are pinned to each CPU. What cannot
/// be read is ignored.
fn taken_by_others(proc: &Path) -> HashMap<usize, usize> {
    let mut taken = HashMap::new();
    let name = |process: &Path| fs::read_to_string(process.join("comm")).ok();
    let Some(ours) = name(&proc.join("self")) else {
        return taken;
    };
    let own_id = std::process::id().to_string();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let is_process = process
            .file_name()
            .to_str()
            .is_some_and(|id| id.bytes().all(|digit| digit.is_ascii_digit()) && id != own_id);
        if !is_process || name(&process.path()).as_ref() != Some(&ours) {
            continue;
        }
        let threads = fs::read_dir(process.path().join("task"));
        for thread in threads.into_iter().flatten().flatten() {
            let status = fs::read_to_string(thread.path().join("status"));
            if let Some(cpu) = status.ok().as_deref().and_then(pinned_core) {
                *taken.entry(cpu).or_default() += 1;
            }
        }
    }
    taken
}

/// The only CPU of a core's thread, by its `status` (proc_pid_status(5)).
fn pinned_core(status: &str) -> Option<usize> {
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::trim)
    };
    value("Name:")?.strip_prefix(CORE_THREAD)?;
    // A list or a range of CPUs is not a number.
    value("Cpus_allowed_list:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_nobody_has_taken_come_first_then_those_with_the_fewest() {
        let taken = HashMap::from([(0, 2), (1, 1), (3, 1)]);
        assert_eq!(order(&[0, 1, 2, 3], 0, &taken), [2, 1, 3, 0]);
        assert_eq!(order(&[0, 1, 2, 3], 3, &taken), [2, 3, 1, 0]);
        assert_eq!(order(&[3, 2, 1, 0], 0, &taken), [2, 3, 1, 0]);
        assert_eq!(order(&[], 7, &taken), [0_usize; 0]);
    }

    #[test]
    fn processes_that_do_not_see_each_other_begin_at_different_cpus() {
        let nobody = HashMap::new();
        let first = |pid| order(&[0, 1, 2, 3], pid, &nobody)[0];
        assert_eq!([4_000, 4_001, 4_002, 4_003].map(first), [0, 1, 2, 3]);
    }

    #[test]
    fn each_cpu_is_used_once_before_any_is_used_twice() {
        let allowed = Allowed::now();
        if allowed.quota.is_some() {
            return;
        }
        let mut places = places(2 * allowed.cpus, allowed, false);
        let second = places.split_off(allowed.cpus);
        assert_eq!(places, second);
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), allowed.cpus);
    }

    #[test]
    fn a_quota_is_a_bound_for_cores_and_leaves_them_to_the_scheduler() {
        let allowed = |cpus, quota| Allowed { cpus, quota };
        assert_eq!(allowed(4, None).cores(), 4);
        assert_eq!(allowed(4, Some(0.5)).cores(), 1);
        assert_eq!(allowed(4, Some(2.5)).cores(), 3);
        assert_eq!(places(2, allowed(4, Some(2.0)), false), [None, None]);
    }

    #[test]
    fn only_cores_that_are_pinned_to_one_cpu_count() {
        let status = |name: &str, cpus: &str| {
            pinned_core(&format!(
                "Name:\t{name}\nState:\tS\nCpus_allowed_list:\t{cpus}\n"
            ))
        };
        assert_eq!(status("core-0", "3"), Some(3));
        assert_eq!(status("core-0", "0-3"), None);
        assert_eq!(status("core-0", "0,3"), None);
        assert_eq!(status("admin", "3"), None);
        assert_eq!(pinned_core(""), None);
    }
}
