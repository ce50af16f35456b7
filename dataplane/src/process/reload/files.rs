//! Whether the files that a configuration names have changed: certificates, keys, tokens, lists.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What tells a file from one that was put in its place: device, number, length, and both times
/// (`None`: it is not there). A link stands for what it leads to.
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

/// Files that are looked at again and again.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    files: Vec<(PathBuf, Stamp)>,
    /// What was found at the last look could not be used: it is tried again at each.
    unusable: bool,
    /// They were read a little before their stamps were taken, and may have changed in between.
    doubtful: bool,
}

impl Watched {
    /// From now on it is these, which have just been read. They are read once more at the next look.
    pub(super) fn watch(&mut self, files: &[PathBuf]) {
        let same = files.iter().eq(self.files.iter().map(|(file, _)| file));
        if !same {
            self.files = files
                .iter()
                .map(|file| (file.clone(), stamp(file)))
                .collect();
            self.doubtful = true;
        }
        self.unusable = false;
    }

    /// Whether they are to be read again although none has changed since.
    pub(super) fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubtful)
    }

    /// The files that have changed since the last look.
    pub(super) fn look(&mut self) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        // Before they are read: what changes after this is found at the next look.
        for (file, last) in &mut self.files {
            let now = stamp(file);
            if std::mem::replace(last, now) != now {
                changed.push(file.clone());
            }
        }
        changed
    }

    /// Whether they are to be tried again although none has changed.
    pub(super) fn is_unusable(&self) -> bool {
        self.unusable
    }

    /// They cannot be used as they are. True if that is news.
    pub(super) fn unusable(&mut self) -> bool {
        !std::mem::replace(&mut self.unusable, true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_behind_another_link_has_changed_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "one").expect("written");
        fs::write(path("b"), "two").expect("written");
        std::os::unix::fs::symlink(path("a"), path("link")).expect("a link");
        let mut watched = Watched::default();
        watched.watch(&[path("link"), path("missing")]);
        assert!(watched.take_doubt() && !watched.take_doubt());
        assert_eq!(watched.look(), [] as [PathBuf; 0]);
        std::os::unix::fs::symlink(path("b"), path("new")).expect("a link");
        fs::rename(path("new"), path("link")).expect("swapped");
        assert_eq!(watched.look(), [path("link")]);
        fs::write(path("b"), "longer").expect("written");
        assert_eq!(watched.look(), [path("link")]);
        fs::write(path("missing"), "there").expect("written");
        assert_eq!(watched.look(), [path("missing")]);
        assert_eq!(watched.look(), [] as [PathBuf; 0]);
    }

    #[test]
    fn unusable_files_are_news_once() {
        let mut watched = Watched::default();
        assert!(watched.unusable() && !watched.unusable() && watched.is_unusable());
        watched.watch(&[]);
        assert!(!watched.is_unusable());
    }
}
