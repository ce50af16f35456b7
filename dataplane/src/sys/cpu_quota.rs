//! The quota of CPU time that the control groups of this process set: cgroups(7), version 2's
//! `cpu.max` and version 1's `cpu.cfs_quota_us`.

use std::fs;
use std::path::{Path, PathBuf};

/// CPU time per time that the strictest control group allows; `None` without such a limit.
pub(crate) fn cpus() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    strictest(&folders(&groups, &mounts))
}

/// The smallest number of cores that can use all of it.
pub(crate) fn cores_for(cpus: f64) -> usize {
    // A sensible quota is far from the limits of both types, and the cast saturates.
    (cpus.ceil() as usize).max(1)
}

/// The mount points of the hierarchies that limit CPU time, each with the group's path in it.
fn folders(groups: &str, mounts: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let wanted = |kind: &str, options: &str| {
            if controllers.is_empty() {
                kind == "cgroup2"
            } else {
                kind == "cgroup"
                    && controllers.split(',').any(|name| name == "cpu")
                    && options.split(',').any(|name| name == "cpu")
            }
        };
        let mount = mounts.lines().find_map(|line| mount_point(line, wanted));
        if let Some((point, root)) = mount {
            // In a container without a namespace for control groups, the mount shows only a part.
            let inside = Path::new(group).strip_prefix(root);
            let inside = inside.unwrap_or(Path::new(group));
            folders.push((point.into(), relative(inside)));
        }
    }
    folders
}

/// The mount point and the root of a line of `mountinfo` (proc_pid_mountinfo(5)), if the mount's
/// type and options are `wanted`.
fn mount_point(line: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<(&str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    wanted(kind, options).then_some((point, root))
}

fn relative(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)))
        .collect()
}

/// The smallest quota of the groups and of those above them.
fn strictest(folders: &[(PathBuf, PathBuf)]) -> Option<f64> {
    let each = folders.iter().flat_map(|(mount, group)| {
        let of_groups = group
            .ancestors()
            .map(|group| allowed_in(&mount.join(group)));
        of_groups.collect::<Vec<_>>()
    });
    each.flatten().reduce(f64::min)
}

fn allowed_in(folder: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    if let Some(text) = read("cpu.max") {
        let mut words = text.split_whitespace();
        return share(words.next()?, words.next()?);
    }
    share(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
}

/// Reads a quota; `max` and −1 stand for no limit.
fn share(quota: &str, period: &str) -> Option<f64> {
    let quota: f64 = quota.trim().parse().ok()?;
    let period: f64 = period.trim().parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 30 0:22 / /proc rw,nosuid - proc proc rw\n\
        35 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        36 30 0:31 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        37 30 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn both_versions_hierarchies_are_found() {
        let groups = "5:memory:/docker/abc\n4:cpu,cpuacct:/a/b\n0::/user.slice\n";
        let expected = [
            ("/sys/fs/cgroup/cpu,cpuacct", "a/b"),
            ("/sys/fs/cgroup/unified", "user.slice"),
        ];
        let expected = expected.map(|(mount, group)| (mount.into(), group.into()));
        assert_eq!(folders(groups, MOUNTS), expected);
        assert_eq!(folders("", ""), []);
        assert_eq!(folders("nonsense\n0::", "nonsense"), []);
    }

    #[test]
    fn a_group_that_is_the_root_of_its_mount_is_not_looked_for_below_it() {
        let mounts = "35 30 0:30 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let found = folders("4:cpu:/docker/abc\n", mounts);
        assert_eq!(found, [("/sys/fs/cgroup/cpu".into(), PathBuf::new())]);
    }

    #[test]
    fn the_strictest_of_a_group_and_those_above_it_counts() {
        let dir = tempfile::tempdir().expect("directory");
        let inner = dir.path().join("outer/inner");
        fs::create_dir_all(&inner).expect("made");
        let group = [(dir.path().to_owned(), PathBuf::from("outer/inner"))];
        assert_eq!(strictest(&group), None);
        fs::write(inner.join("cpu.max"), "max 100000\n").expect("written");
        assert_eq!(strictest(&group), None);
        fs::write(dir.path().join("outer/cpu.max"), "50000 100000\n").expect("written");
        assert_eq!(strictest(&group), Some(0.5));
        fs::write(inner.join("cpu.max"), "250000 100000\n").expect("written");
        assert_eq!(strictest(&group), Some(0.5));
    }

    #[test]
    fn version_1_is_read_from_two_files() {
        let dir = tempfile::tempdir().expect("directory");
        let group = [(dir.path().to_owned(), PathBuf::new())];
        fs::write(dir.path().join("cpu.cfs_period_us"), "100000\n").expect("written");
        fs::write(dir.path().join("cpu.cfs_quota_us"), "-1\n").expect("written");
        assert_eq!(strictest(&group), None);
        fs::write(dir.path().join("cpu.cfs_quota_us"), "150000\n").expect("written");
        assert_eq!(strictest(&group), Some(1.5));
    }

    #[test]
    fn half_a_cpu_is_one_core_and_one_and_a_half_are_two() {
        for (cpus, cores) in [(0.01, 1), (0.5, 1), (1.0, 1), (1.5, 2), (2.0, 2), (7.01, 8)] {
            assert_eq!(cores_for(cpus), cores, "{cpus}");
        }
    }
}
