//! Named network namespaces that disappear with their owner.
//!
//! A name holds the process id of its owner and the time at which that process started, so that
//! whoever comes later can tell what a killed process left behind from what is in use. Owners in
//! another PID namespace that share `/run/netns` with this one would look dead; such a setup needs
//! a `/run/netns` of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use procfs::process::Process;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};

use super::error::LinkError;

/// Where `ip netns` keeps its names (ip-netns(8)).
const NAMES_DIR: &str = "/run/netns";

const NAME_PREFIX: &str = "qmux-link";

/// Where `ip` is when it is not on the `PATH`, as for users that are not root on Debian.
const IP_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Tells the networks of one process apart.
static NEXT_NUMBER: AtomicU32 = AtomicU32::new(0);

/// Finds out whether namespaces and TUN devices can be had.
pub(super) fn check_support() -> Result<(), LinkError> {
    const ROOT: &str =
        "run it as root, or in a container with --cap-add NET_ADMIN --cap-add SYS_ADMIN";
    let unsupported = |what: String, remedy| Err(LinkError::Unsupported { what, remedy });
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    let held = capabilities(None)
        .map_err(|error| LinkError::system("read the capabilities")(error.into()))?
        .effective;
    if !held.contains(needed) {
        return unsupported(
            "it needs CAP_NET_ADMIN and CAP_SYS_ADMIN, which this process does not have".into(),
            ROOT,
        );
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return unsupported(
            format!("/dev/net/tun cannot be opened ({error})"),
            "load the module tun, or give the container the device with --device /dev/net/tun",
        );
    }
    if ip_program().is_none() {
        return unsupported(
            "there is no program `ip`".into(),
            "install iproute2, which scripts/setup.sh does",
        );
    }
    Ok(())
}

fn ip_program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(IP_DIRS.map(PathBuf::from))
        .map(|dir| dir.join("ip"))
        .find(|candidate| candidate.is_file())
}

/// Runs `ip` with these arguments and returns what it prints.
///
/// # Errors
///
/// What it refused.
pub fn ip(arguments: &[&str]) -> Result<String, LinkError> {
    let command = format!("ip {}", arguments.join(" "));
    let output = ip_command()
        .args(arguments)
        .output()
        .map_err(LinkError::system(format!("run `{command}`")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LinkError::Ip {
        command,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The program `ip` without arguments.
pub(super) fn ip_command() -> Command {
    Command::new(ip_program().unwrap_or_else(|| PathBuf::from("ip")))
}

/// A network namespace. Dropping it ends the processes in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
}

impl Namespace {
    /// Two namespaces of one network, with names that nobody else uses.
    ///
    /// # Errors
    ///
    /// Without the rights or the kernel for it.
    pub fn pair() -> Result<[Self; 2], LinkError> {
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let owner = Owner::this_process()?;
        let name = |side| {
            format!(
                "{NAME_PREFIX}-{}-{}-{number}-{side}",
                owner.pid, owner.start
            )
        };
        Ok([Self::create(name("left"))?, Self::create(name("right"))?])
    }

    fn create(name: String) -> Result<Self, LinkError> {
        ip(&["netns", "add", &name]).map_err(|error| match error {
            LinkError::Ip { message, .. } => LinkError::Unsupported {
                what: format!("no network namespace can be made: {message}"),
                remedy: "a container needs to be privileged for it",
            },
            other => other,
        })?;
        match File::open(Path::new(NAMES_DIR).join(&name)) {
            Ok(handle) => Ok(Self { name, handle }),
            Err(source) => {
                remove(&name);
                Err(LinkError::system(format!("open the namespace {name}"))(
                    source,
                ))
            }
        }
    }

    /// For `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `action` on a thread in the namespace. Sockets made there stay in the namespace,
    /// wherever they are used.
    pub(super) fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        let entered = || {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)
                .map_err(LinkError::system(format!(
                    "enter the namespace {}",
                    self.name
                )))?;
            Ok(action())
        };
        thread::scope(|scope| {
            // A panic of the action is the caller's panic.
            scope
                .spawn(entered)
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what runs in a namespace of ours and removes its name. Errors have no one to go to and
/// nothing to be done about.
fn remove(name: &str) {
    let inside = ip(&["netns", "pids", name]).unwrap_or_default();
    for pid in inside.lines().filter_map(|line| line.trim().parse().ok()) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = ip(&["netns", "delete", name]);
}

/// Removes the namespaces whose owner is gone.
pub(super) fn remove_stale() {
    let Ok(names) = fs::read_dir(NAMES_DIR) else {
        return;
    };
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in names {
        if Owner::of(&name).is_some_and(|owner| !owner.lives()) {
            remove(&name);
        }
    }
}

/// A process, told apart from a later one with the same id by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    pid: u32,
    /// In clock ticks since the machine came up (proc_pid_stat(5)).
    start: u64,
}

impl Owner {
    fn this_process() -> Result<Self, LinkError> {
        let pid = std::process::id();
        let start = start_of(pid).ok_or_else(|| LinkError::Unsupported {
            what: "/proc/self/stat cannot be read".into(),
            remedy: "mount /proc",
        })?;
        Ok(Self { pid, start })
    }

    /// The owner of a namespace with this name, if it is one of ours.
    fn of(name: &str) -> Option<Self> {
        let mut parts = name
            .strip_prefix(NAME_PREFIX)?
            .strip_prefix('-')?
            .split('-');
        let pid = parts.next()?.parse().ok()?;
        let start = parts.next()?.parse().ok()?;
        Some(Self { pid, start })
    }

    fn lives(self) -> bool {
        start_of(self.pid) == Some(self.start)
    }
}

fn start_of(pid: u32) -> Option<u64> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    process.stat().ok().map(|stat| stat.starttime)
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner_and_whether_it_lives() {
        let me = Owner::this_process().unwrap();
        assert!(me.lives());
        let name = format!("qmux-link-{}-{}-0-left", me.pid, me.start);
        assert_eq!(Owner::of(&name), Some(me));
        let earlier_process_with_this_id = Owner {
            start: me.start - 1,
            ..me
        };
        assert!(!earlier_process_with_this_id.lives());
    }

    #[test]
    fn names_of_others_have_no_owner() {
        for name in [
            "blue",
            "qmux-link",
            "qmux-link-x-1-0-left",
            "qmux-linked-1-1",
        ] {
            assert_eq!(Owner::of(name), None, "{name}");
        }
    }
}
