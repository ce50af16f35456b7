//! How much memory this process may use: that of the machine, or of its control groups.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted: version 2, or version 1's controller of memory.
const MOUNTS: [(&str, &str, &str); 3] = [
    ("", "/sys/fs/cgroup", "memory.max"),
    ("memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("", "/sys/fs/cgroup/unified", "memory.max"),
];

/// Number of bytes that this process may use; `None` if it cannot be found out.
pub(crate) fn allowed_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    allowed_by(&groups, &machine, |path| fs::read_to_string(path).ok())
}

/// The least of what the machine has and what the control groups allow; `groups` is in the format
/// of cgroups(7), `machine` in that of proc_meminfo(5).
fn allowed_by(groups: &str, machine: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let total = machine
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kilobytes| kilobytes * 1024);
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let path = fields.next().unwrap_or_default().to_owned();
        MOUNTS
            .into_iter()
            .filter(move |(name, ..)| controllers.split(',').any(|of| of == *name))
            .flat_map(move |(_, mount, file)| files(mount, &path, file))
    });
    // "max" is not a number, and stands for no limit.
    let limits = limits.filter_map(|file| read(&file)?.trim().parse::<u64>().ok());
    limits.chain(total).min()
}

/// The limits of a group and of all above it. A container may see its own group as the root,
/// whatever the path says.
fn files(mount: &str, path: &str, file: &str) -> Vec<PathBuf> {
    let mount = Path::new(mount);
    let mut group = mount.join(path.trim_start_matches('/'));
    let mut files = Vec::new();
    while group.starts_with(mount) {
        files.push(group.join(file));
        if !group.pop() {
            break;
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "MemTotal:       24684084 kB\nMemFree: 1 kB\n";

    fn allowed(groups: &str, limits: &[(&str, &str)]) -> Option<u64> {
        allowed_by(groups, MACHINE, |path| {
            let found = limits.iter().find(|(file, _)| Path::new(file) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_narrowest_group_counts_in_both_versions() {
        let whole = Some(24_684_084 * 1024);
        assert_eq!(allowed("0::/\n", &[]), whole);
        let max = ("/sys/fs/cgroup/a/b/memory.max", "max\n");
        let outer = ("/sys/fs/cgroup/a/memory.max", "268435456\n");
        assert_eq!(allowed("0::/a/b\n", &[max]), whole);
        assert_eq!(allowed("0::/a/b\n", &[max, outer]), Some(256 << 20));
        let first = [(
            "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
            "134217728\n",
        )];
        assert_eq!(allowed("9:cpu,memory:/x\n0::/\n", &first), Some(128 << 20));
        let namespaced = [("/sys/fs/cgroup/memory.max", "1048576\n")];
        assert_eq!(allowed("0::/not/here\n", &namespaced), Some(1 << 20));
        assert_eq!(allowed_by("", "", |_| None), None);
    }
}
