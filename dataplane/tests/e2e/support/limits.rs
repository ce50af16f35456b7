//! Limits of the test process itself.

use std::sync::Once;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A thousand visitors and their service share this process: two sockets each, and some more.
const OPEN_FILES_NEEDED: u64 = 4096;

/// Raises the soft limit of open files to the hard limit, once.
pub(crate) fn raise_open_files() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        let maximum = limit.maximum;
        assert!(
            maximum.is_none_or(|maximum| maximum >= OPEN_FILES_NEEDED),
            "these tests need {OPEN_FILES_NEEDED} open files, and the hard limit is {maximum:?}"
        );
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .expect("a soft limit may be raised to the hard limit");
    });
}
