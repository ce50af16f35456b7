//! Writes certificates and keys into files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::Generated;

/// The files that [`write()`] makes, in the order in which it returns them.
pub const FILE_NAMES: [&str; 6] = [
    "ca.crt",
    "ca.key",
    "server.crt",
    "server.key",
    "client.crt",
    "client.key",
];

/// Mode of a key file: only its owner may read and write it.
#[cfg(unix)]
const KEY_MODE: u32 = 0o600;

/// Why certificates were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Some of the files exist already; nothing was written.
    #[error(
        "{} already there: {}; nothing was written",
        if .0.len() == 1 { "this file is" } else { "these files are" },
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Exists(Vec<PathBuf>),
    /// The system refused; new files were removed again.
    #[error("{} cannot be written: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Writes the six files into `dir`, which is created if need be, and returns their paths.
///
/// Key files are readable by their owner alone from the moment they exist. With `force`, each file
/// is replaced as a whole: whoever reads it meanwhile sees the old or the new one.
///
/// # Errors
/// Without `force`, any of the files exists already; or the system refuses.
pub fn write(certs: &Generated, dir: &Path, force: bool) -> Result<Vec<PathBuf>, WriteError> {
    let contents = [
        &certs.ca_cert_pem,
        &certs.ca_key_pem,
        &certs.server_cert_pem,
        &certs.server_key_pem,
        &certs.client_cert_pem,
        &certs.client_key_pem,
    ];
    let paths: Vec<PathBuf> = FILE_NAMES.iter().map(|name| dir.join(name)).collect();
    if !force {
        let existing: Vec<PathBuf> = paths
            .iter()
            .filter(|path| path.symlink_metadata().is_ok())
            .cloned()
            .collect();
        if !existing.is_empty() {
            return Err(WriteError::Exists(existing));
        }
    }
    fs::create_dir_all(dir).map_err(|error| WriteError::Io {
        path: dir.to_owned(),
        error,
    })?;

    // All files are written under temporary names first, so that a full disk leaves the old files
    // in place.
    let staged: Vec<PathBuf> = paths.iter().map(|path| staging_name(path)).collect();
    let result = stage_all(&staged, &contents).and_then(|()| publish_all(&staged, &paths, force));
    for path in &staged {
        // If everything went well, the temporary file is gone already.
        let _ = fs::remove_file(path);
    }
    result.map(|()| paths)
}

fn stage_all(staged: &[PathBuf], contents: &[&String]) -> Result<(), WriteError> {
    for (path, content) in staged.iter().zip(contents) {
        stage(path, content).map_err(|error| WriteError::Io {
            path: path.clone(),
            error,
        })?;
    }
    Ok(())
}

fn stage(path: &Path, content: &str) -> io::Result<()> {
    let is_key = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().contains(".key."));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = create_new(path, is_key)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

fn create_new(path: &Path, is_key: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if is_key {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(KEY_MODE);
    }
    options.open(path)
}

fn publish_all(staged: &[PathBuf], paths: &[PathBuf], force: bool) -> Result<(), WriteError> {
    for (index, (from, to)) in staged.iter().zip(paths).enumerate() {
        // A hard link, unlike a rename, fails if somebody else has made the file meanwhile.
        let published = if force {
            fs::rename(from, to)
        } else {
            fs::hard_link(from, to)
        };
        if let Err(error) = published {
            if !force {
                for new in &paths[..index] {
                    let _ = fs::remove_file(new);
                }
            }
            return Err(match error.kind() {
                io::ErrorKind::AlreadyExists => WriteError::Exists(vec![to.clone()]),
                _ => WriteError::Io {
                    path: to.clone(),
                    error,
                },
            });
        }
    }
    Ok(())
}

fn staging_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}
