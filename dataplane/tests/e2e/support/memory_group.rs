//! Control groups with a memory limit, of version 1 or 2, whichever this machine has.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::wait;

/// Where groups of each version are made, the file with the limit, and the one that counts kills.
const VERSIONS: [(&str, &str, &str); 3] = [
    ("/sys/fs/cgroup", "memory.max", "memory.events"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.oom_control",
    ),
    ("/sys/fs/cgroup/unified", "memory.max", "memory.events"),
];

/// A group of its own. Removed when dropped; by then its processes have ended.
pub(crate) struct MemoryGroup {
    path: PathBuf,
    kills: &'static str,
}

impl MemoryGroup {
    /// A group whose processes together may use this many bytes; `None` if this machine does not
    /// let us make one.
    pub(crate) fn with_limit(bytes: u64) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::SeqCst);
        let name = format!("qmux-e2e-{}-{number}", std::process::id());
        VERSIONS.into_iter().find_map(|(mount, limit, kills)| {
            let path = Path::new(mount).join(&name);
            fs::create_dir(&path).ok()?;
            let group = Self { path, kills };
            // Writing would make a file where there is none, if this is no group with a limit.
            let limit = group.path.join(limit);
            (limit.exists() && fs::write(limit, bytes.to_string()).is_ok()).then_some(group)
        })
    }

    /// The file that takes the ids of processes that join.
    pub(crate) fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// How many of its processes the kernel has killed because they used too much; `None` if this
    /// kernel does not count them.
    pub(crate) fn kills(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(self.kills)).expect("the group's counters");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.map(|count| count.trim().parse().expect("a number"))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = || fs::remove_dir(&self.path).is_ok() || !self.path.exists();
        if std::thread::panicking() {
            let _stays = removed();
        } else {
            // io_uring ends with its process, or a moment later.
            wait::until_true("the control group is empty", removed);
        }
    }
}
