//! Limits of this process, which the programs that it starts inherit.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Enough for tens of thousands of flows. Each has one end in a program of the tunnel and one here.
const OPEN_FILES_WANTED: u64 = 200_000;

/// Raises the limit of open files, beyond the hard limit where this process may (as root), else up to it. Whoever needs
/// more will be told so by the socket that cannot be opened.
pub fn raise_open_files() {
    let wanted = Rlimit {
        current: Some(OPEN_FILES_WANTED),
        maximum: Some(OPEN_FILES_WANTED),
    };
    let before = rustix::process::getrlimit(Resource::Nofile);
    let is_enough = before
        .current
        .is_none_or(|limit| limit >= OPEN_FILES_WANTED);
    if !is_enough && setrlimit(Resource::Nofile, wanted).is_err() {
        crate::process::raise_open_files_limit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getrlimit;

    #[test]
    fn the_limit_never_falls() {
        let before = getrlimit(Resource::Nofile).current;
        raise_open_files();
        let after = getrlimit(Resource::Nofile).current;
        assert!(after.is_none() || after >= before, "{before:?} {after:?}");
    }
}
