//! Whether the files that a configuration names have changed: certificates, keys, tokens, lists.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Tells a file from one that was put in its place: device, number, length, and both times (`None`
/// if there is no file). A link stands for its target.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    ))
}

/// Looks in a row that may find files changing before they are read nevertheless: a list to which
/// something adds a line each second must not keep out the next certificate.
const RESTLESS_LOOKS_MAX: u32 = 10;

/// A file, and its state.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The stamp of the file when it was read.
    used: Stamp,
    /// The stamp of the file at the last check.
    seen: Stamp,
}

/// Files that are looked at again and again.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    files: Vec<File>,
    /// Whether what the last look found could not be used; then every look tries again.
    unusable: bool,
    /// Whether the files may have changed since they were read: they were read a little before
    /// their stamps were taken, or what was read was not used.
    doubtful: bool,
    /// Looks in a row that found the files changing.
    restless: u32,
    /// Files that have changed and were read, but not used so far, because something is wrong with
    /// them or with another part of the configuration.
    unused: BTreeSet<PathBuf>,
}

/// The result of a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// There is nothing to do.
    AsBefore,
    /// Some files are changing, or have just changed. Half of a file may be valid as well, so they
    /// are used when they rest.
    Restless,
    /// The files are to be read, because these have changed.
    Read(Vec<PathBuf>),
    /// The files are to be read, because some have been changing for long.
    ReadAnyway {
        files: Vec<PathBuf>,
        /// A file that keeps changing, if that is to be logged: each time when it has lasted for
        /// twice as long.
        news: Option<PathBuf>,
    },
}

impl Watched {
    /// Watches these files from now on, which have just been read. New ones among them are read
    /// once more at the next look.
    pub(super) fn watch(&mut self, files: &[PathBuf]) {
        let before = std::mem::take(&mut self.files);
        let mut known: HashMap<PathBuf, File> =
            before.into_iter().map(|it| (it.path.clone(), it)).collect();
        for path in files {
            let file = known.remove(path).unwrap_or_else(|| {
                self.doubtful = true;
                let now = stamp(path);
                File {
                    path: path.clone(),
                    used: now,
                    seen: now,
                }
            });
            self.files.push(file);
        }
        self.unusable = false;
        self.unused.clear();
    }

    /// Those of `files` that have changed since what was in them was used last, and that have been
    /// read since.
    pub(super) fn unused(&self, files: &[PathBuf]) -> impl Iterator<Item = &Path> {
        let unused = self.unused.iter().map(PathBuf::as_path);
        unused.filter(|unused| files.iter().any(|file| file == unused))
    }

    /// Notes that the files are about to be read: a change after this is found at the next look.
    pub(super) fn read_now(&mut self) {
        for file in &mut self.files {
            file.seen = stamp(&file.path);
        }
        let _noted = self.changed();
        self.doubtful = false;
    }

    /// Notes that nobody has used what was read: it is read again at the next look, changed or not.
    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Looks at the files. If they are to be read, this counts as the beginning of that.
    pub(super) fn look(&mut self) -> Look {
        let mut restless = None;
        for file in &mut self.files {
            let now = stamp(&file.path);
            if std::mem::replace(&mut file.seen, now) != now {
                restless.get_or_insert_with(|| file.path.clone());
            }
        }
        if let Some(path) = restless {
            self.restless = self.restless.saturating_add(1);
            if !self.restless.is_multiple_of(RESTLESS_LOOKS_MAX) {
                return Look::Restless;
            }
            let is_news = (self.restless / RESTLESS_LOOKS_MAX).is_power_of_two();
            return Look::ReadAnyway {
                files: self.changed(),
                news: is_news.then_some(path),
            };
        }
        self.restless = 0;
        let changed = self.changed();
        let doubtful = std::mem::take(&mut self.doubtful);
        match doubtful || self.unusable || !changed.is_empty() {
            true => Look::Read(changed),
            false => Look::AsBefore,
        }
    }

    /// The files that are not as they were when they were read; they are about to be read.
    fn changed(&mut self) -> Vec<PathBuf> {
        let changed = self.files.iter_mut().filter(|it| it.used != it.seen);
        let changed = changed.map(|it| {
            it.used = it.seen;
            it.path.clone()
        });
        let changed: Vec<_> = changed.collect();
        self.unused.extend(changed.iter().cloned());
        changed
    }

    /// Notes that the files cannot be used as they are. Returns true if that is news.
    pub(super) fn unusable(&mut self) -> bool {
        !std::mem::replace(&mut self.unusable, true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_behind_another_link_is_read_once_when_it_rests() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "one").expect("written");
        fs::write(path("b"), "two").expect("written");
        std::os::unix::fs::symlink(path("a"), path("link")).expect("a link");
        let mut watched = Watched::default();
        watched.watch(&[path("link"), path("missing")]);
        assert_eq!(
            watched.look(),
            Look::Read(Vec::new()),
            "once after the start"
        );
        assert_eq!(watched.look(), Look::AsBefore);
        std::os::unix::fs::symlink(path("b"), path("new")).expect("a link");
        fs::rename(path("new"), path("link")).expect("swapped");
        let mut is_read_once = |name: &str| {
            assert_eq!(watched.look(), Look::Restless);
            assert_eq!(watched.look(), Look::Read(vec![path(name)]));
            assert_eq!(watched.look(), Look::AsBefore);
        };
        is_read_once("link");
        fs::write(path("b"), "longer").expect("written");
        is_read_once("link");
        fs::write(path("missing"), "there").expect("written");
        is_read_once("missing");
    }

    #[test]
    fn a_file_that_is_always_being_written_is_read_from_time_to_time_and_keeps_no_other_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("list"), dir.path().join("other"));
        let mut watched = Watched::default();
        watched.watch(&[path.clone(), other.clone()]);
        let _first = watched.look();
        fs::write(&other, "has changed, and rests").expect("written");
        let (mut said, mut read) = (0, Vec::new());
        for line in 1..=4 * RESTLESS_LOOKS_MAX as usize {
            fs::write(&path, "10.0.0.0/8\n".repeat(line)).expect("written");
            match watched.look() {
                Look::Restless => {}
                Look::ReadAnyway { files, news } => {
                    said += usize::from(news == Some(path.clone()));
                    read.push(files);
                }
                other => panic!("line {line}: {other:?}"),
            }
        }
        assert_eq!(said, 3, "the first, second and fourth time");
        let alone = vec![path.clone()];
        let both = vec![path.clone(), other];
        assert_eq!(read, [both, alone.clone(), alone.clone(), alone]);
        fs::write(&path, "the last of it").expect("written");
        assert_eq!(watched.look(), Look::Restless);
        assert_eq!(watched.look(), Look::Read(vec![path]));
    }

    #[test]
    fn what_was_read_in_vain_is_read_again_and_what_was_used_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("list");
        let mut watched = Watched::default();
        watched.watch(std::slice::from_ref(&path));
        let _first = watched.look();
        fs::write(&path, "changed").expect("written");
        watched.read_now();
        assert_eq!(watched.look(), Look::AsBefore);
        watched.doubt();
        assert_eq!(watched.look(), Look::Read(Vec::new()));
        assert_eq!(watched.look(), Look::AsBefore);
    }

    #[test]
    fn other_files_are_watched_too_without_forgetting_what_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, other) = (dir.path().join("list"), dir.path().join("other"));
        let mut watched = Watched::default();
        watched.watch(std::slice::from_ref(&path));
        let _first = watched.look();
        fs::write(&path, "changed").expect("written");
        watched.watch(&[path.clone(), other]);
        assert_eq!(watched.look(), Look::Restless);
        assert_eq!(watched.look(), Look::Read(vec![path]));
    }

    #[test]
    fn unusable_files_are_news_once_and_are_read_until_they_are_usable() {
        let mut watched = Watched::default();
        assert!(watched.unusable() && !watched.unusable());
        assert_eq!(watched.look(), Look::Read(Vec::new()));
        assert_eq!(watched.look(), Look::Read(Vec::new()));
        watched.watch(&[]);
        assert_eq!(watched.look(), Look::AsBefore);
    }
}
