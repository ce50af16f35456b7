//! Copies of memory, which the C library makes slowly on some machines.
//!
//! glibc before 2.39 copies 8 KB and more by `rep movsb` wherever the CPU calls that fast (ERMS).
//! On AMD's Zen 3 and 4 it is slow for most alignments, up to 20 times (glibc bug 30994, mended in
//! 2.39 by not using it on AMD), and what quiche copies out of packets is aligned as they come: it
//! was 27 % of a client's time in bulk, and is 9 % without. On Zen 5 it takes 1.6 to 1.9 times as
//! long. glibc can be told by a tunable, but reads these once, before `main`. So the program starts
//! itself once more, with the tunable in its environment, as the same process.

use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, id};

/// The variable that glibc reads (ld.so(8)); tunables are separated by colons.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// The tunable: the least number of bytes that are copied by `rep movsb`.
const TUNABLE: &str = "glibc.cpu.x86_rep_movsb_threshold";

/// A threshold that is never reached: more bytes than are ever copied at once.
const NEVER_BYTES: usize = 1 << 30;

/// Holds the number of the process that has started itself once more, so that it does not do so for
/// ever, should the tunable not reach it.
const STARTED_ANEW: &str = "QMUX_DP_STARTED_ANEW";

/// The first version of glibc that makes no use of `rep movsb` on AMD.
const MENDED: (u32, u32) = (2, 39);

/// Starts the program once more if copies would be slow otherwise; then this does not return. To be
/// called before the program has threads or open files.
pub(crate) fn make_fast() {
    let tunables = env::var_os(TUNABLES);
    let is_slow = has_slow_movsb() && glibc_version().is_some_and(|version| version < MENDED);
    if !is_slow
        || is_told(tunables.as_deref())
        || is_again(env::var_os(STARTED_ANEW).as_deref(), id())
        || !may_start_anew()
    {
        return;
    }
    // Without it the program is slower and right.
    let _not_started = start_anew(tunables);
    // What failed has undone that Rust's runtime ignores SIGPIPE.
    // SAFETY: no handler is set, so none can be wrong.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Whether the program that would start is this one, and the tunable would reach it. Not if it was
/// given to the dynamic loader as an argument, which is then the program; and not if it has
/// capabilities of its own (setcap(8)), for which glibc takes no tunables from anybody.
fn may_start_anew() -> bool {
    // SAFETY: the function reads a table that the kernel has made, and answers 0 for what is not in
    // it (getauxval(3)).
    let of_the_kernel = |kind| unsafe { libc::getauxval(kind) };
    of_the_kernel(libc::AT_SECURE) == 0 && of_the_kernel(libc::AT_BASE) != 0
}

fn start_anew(tunables: Option<OsString>) -> io::Result<Infallible> {
    let mut arguments = env::args_os();
    let mut program = Command::new(own_path()?);
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    let error = program
        .args(arguments)
        .env(TUNABLES, with_ours(tunables))
        .env(STARTED_ANEW, id().to_string())
        .exec();
    Err(error)
}

/// The path of this program, by which the process keeps its name: that is the last part of the path
/// that it was started with, which may be a link's. With /proc/self/exe it would be "exe".
fn own_path() -> io::Result<PathBuf> {
    let real = env::current_exe()?;
    let ours = fs::metadata(&real)?;
    let given = env::args_os().next().map(PathBuf::from);
    // A name without a directory was searched for.
    let given = given
        .filter(|path| path.components().count() > 1)
        .filter(|path| {
            let is_ours = |it: Metadata| (it.dev(), it.ino()) == (ours.dev(), ours.ino());
            fs::metadata(path).is_ok_and(is_ours)
        });
    Ok(given.unwrap_or(real))
}

/// Whether this process has started itself once more before. A child of it has another number.
fn is_again(started: Option<&OsStr>, process: u32) -> bool {
    started.is_some_and(|started| started == OsStr::new(&process.to_string()))
}

fn with_ours(tunables: Option<OsString>) -> OsString {
    let mut all = tunables.unwrap_or_default();
    if !all.is_empty() {
        all.push(":");
    }
    all.push(format!("{TUNABLE}={NEVER_BYTES}"));
    all
}

/// Whether somebody has told glibc already what to do.
fn is_told(tunables: Option<&OsStr>) -> bool {
    tunables.is_some_and(|all| all.to_string_lossy().contains(TUNABLE))
}

/// Whether the CPU is AMD's and calls `rep movsb` fast, as those since Zen 3 do.
#[cfg(target_arch = "x86_64")]
fn has_slow_movsb() -> bool {
    use std::arch::x86_64::__cpuid_count;
    /// Leaf 7, EBX (AMD64 Architecture Programmer's Manual, volume 3, appendix E).
    const ERMS: u32 = 1 << 9;
    #[allow(
        unused_unsafe,
        reason = "the function is safe in later versions of Rust"
    )]
    // SAFETY: every x86-64 has the instruction, and answers for each leaf up to the highest, which
    // leaf 0 tells.
    unsafe {
        let vendor = __cpuid_count(0, 0);
        let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        let is_amd = name == [*b"Auth", *b"enti", *b"cAMD"];
        is_amd && vendor.eax >= 7 && __cpuid_count(7, 0).ebx & ERMS != 0
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has_slow_movsb() -> bool {
    false
}

/// The version of glibc, if that is the C library.
#[cfg(target_env = "gnu")]
fn glibc_version() -> Option<(u32, u32)> {
    use std::ffi::CStr;
    // SAFETY: the function returns a string that lives as long as the program
    // (gnu_get_libc_version(3)).
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version_of(version.to_str().ok()?)
}

#[cfg(not(target_env = "gnu"))]
fn glibc_version() -> Option<(u32, u32)> {
    None
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let minor = rest.split(|it: char| !it.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_glibc_are_read() {
        assert_eq!(version_of("2.36"), Some((2, 36)));
        assert_eq!(version_of("2.39.9000"), Some((2, 39)));
        assert_eq!(version_of("2.4-debian"), Some((2, 4)));
        assert_eq!(version_of("unknown"), None);
        assert!(version_of("2.9") < Some(MENDED) && version_of("2.40") > Some(MENDED));
    }

    #[test]
    fn a_tunable_of_the_user_stays_and_ours_is_added_once() {
        let ours = with_ours(None);
        assert!(is_told(Some(&ours)) && !is_told(None));
        let users = OsString::from("glibc.malloc.check=1");
        assert!(!is_told(Some(&users)));
        let both = with_ours(Some(users)).into_string().expect("text");
        let wanted = format!("glibc.malloc.check=1:{TUNABLE}={NEVER_BYTES}");
        assert_eq!(both, wanted);
        assert!(is_told(Some(OsStr::new(&wanted))));
    }

    #[test]
    fn a_process_starts_itself_once_more_and_not_for_ever() {
        assert!(!is_again(None, 7));
        assert!(is_again(Some(OsStr::new("7")), 7));
        // A child finds its parent's number.
        assert!(!is_again(Some(OsStr::new("7")), 8));
    }
}
