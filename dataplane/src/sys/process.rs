//! The resources of the machine that this process uses.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Bytes of a host's name that are used: Linux allows no more (gethostname(2)).
const HOST_NAME_BYTES_MAX: usize = 64;

/// The numbers that the kernel has about this process; `None` where it does not tell.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Usage {
    /// Resident memory in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_files: Option<u64>,
    /// The most file descriptors that may be open; `None` also if there is no limit.
    pub(crate) open_files_max: Option<u64>,
}

/// Asks the kernel.
pub(crate) fn usage() -> Usage {
    Usage {
        resident_bytes: resident_bytes(),
        open_files: open_files(),
        open_files_max: getrlimit(Resource::Nofile).current,
    }
}

/// The host's name as far as it is made of letters, digits, dots and dashes; `client` if it has
/// none.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    plain_name(&name)
}

fn plain_name(name: &str) -> String {
    let plain: String = name
        .trim()
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-'))
        .take(HOST_NAME_BYTES_MAX)
        .collect();
    if plain.is_empty() {
        "client".into()
    } else {
        plain
    }
}

/// CPU time of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// `VmRSS` of proc(5), which is in kB.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Number of open files. Since Linux 6.2 it is the size of the folder; before that, entries are
/// counted.
fn open_files() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        0 => fs::read_dir(FOLDER).ok().map(|files| files.count() as u64),
        known => Some(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_made_of_what_ids_and_logs_can_carry() {
        assert_eq!(plain_name("web-7.example.com\n"), "web-7.example.com");
        assert_eq!(plain_name("a b\u{e9}\"c"), "abc");
        assert_eq!(plain_name("(none)"), "none");
        assert_eq!(plain_name("\n"), "client");
        assert_eq!(plain_name(&"x".repeat(1_000)).len(), HOST_NAME_BYTES_MAX);
    }
}
