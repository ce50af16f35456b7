//! Limits of this process, which the programs that it starts inherit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Enough for tens of thousands of flows. Each has one end in a program of the tunnel and one here.
const OPEN_FILES_WANTED: u64 = 200_000;

/// Raises the limit of open files, beyond the hard limit where this process may (as root), else up
/// to it. Whoever needs more will be told so by the socket that cannot be opened.
pub fn raise_open_files() {
    let before = getrlimit(Resource::Nofile);
    if before.current.is_none_or(|it| it >= OPEN_FILES_WANTED) {
        return;
    }
    for limit in [Some(OPEN_FILES_WANTED), before.maximum] {
        let raised = Rlimit {
            current: limit,
            maximum: limit,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_never_falls() {
        let before = getrlimit(Resource::Nofile).current;
        raise_open_files();
        let after = getrlimit(Resource::Nofile).current;
        assert!(after.is_none() || after >= before, "{before:?} {after:?}");
    }
}
