//! Writes a text to a file or to standard output.

use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The users who may read a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Those whom the umask allows.
    Usual,
    /// Only the owner, because the text contains a secret.
    Owner,
}

/// Writes `text` to a file, which must not exist unless `force` is set. The file appears as a whole
/// or not at all; its directory is made if need be.
pub(crate) fn to_file(
    path: &Path,
    text: &str,
    readers: Readers,
    force: bool,
) -> Result<(), Failure> {
    write(path, text, readers, force, " (--force replaces it)")
}

/// Writes `text` like [`to_file`] to a file that is never replaced; `way_out` says what to do if it
/// exists.
pub(crate) fn to_new_file(
    path: &Path,
    text: &str,
    readers: Readers,
    way_out: &str,
) -> Result<(), Failure> {
    write(path, text, readers, false, way_out)
}

/// Replaces the content of a file by `text`: whoever reads it sees the old text or the new one, and
/// the file's mode stays.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    // The target of the path is replaced, so that a link stays a link.
    let failed = |error| Failure::Write {
        path: path.to_owned(),
        error,
    };
    let path = &fs::canonicalize(path).map_err(failed)?;
    let rights = fs::metadata(path).map_err(failed)?.permissions();
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".qmux-ctl-")
        .permissions(permissions(Readers::Owner))
        .tempfile_in(dir)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(rights).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path)
        .map(drop)
        .map_err(|error| failed(error.error))
}

fn write(
    path: &Path,
    text: &str,
    readers: Readers,
    force: bool,
    way_out: &str,
) -> Result<(), Failure> {
    let failed = |error| Failure::Write {
        path: path.to_owned(),
        error,
    };
    let exists = || {
        Failure::Input(format!(
            "{} is already there; nothing was written{way_out}",
            path.display()
        ))
    };
    // This is reported before any work is done; the system decides when the file is made.
    if !force && path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    if path.is_dir() {
        return Err(Failure::Input(format!(
            "{} is a directory, not a file",
            path.display()
        )));
    }
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&dir).map_err(|error| Failure::Write {
        path: dir.clone(),
        error,
    })?;
    let mut file = tempfile::Builder::new()
        .prefix(".qmux-ctl-")
        .permissions(permissions(readers))
        .tempfile_in(dir)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let persisted = if force {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    match persisted {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(exists()),
        Err(error) => Err(failed(error.error)),
    }
}

#[cfg(unix)]
fn permissions(readers: Readers) -> Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    Permissions::from_mode(match readers {
        Readers::Usual => 0o666,
        Readers::Owner => 0o600,
    })
}

/// Writes `text` to standard output. The reader may stop early, as `head` does.
pub(crate) fn to_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Write {
            path: PathBuf::from("standard output"),
            error,
        }),
        _ => Ok(()),
    }
}

/// Writes one line to standard error. There is nobody to tell if that is closed or full.
pub(crate) fn to_stderr(line: impl Display) {
    let _lost = writeln!(io::stderr(), "{line}");
}
