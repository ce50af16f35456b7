//! The admin endpoint's listening socket: TCP, or a Unix socket that only its owner may use.
//!
//! A Unix socket outlives its process as a file. A socket that nobody listens at is replaced; one
//! that somebody listens at belongs to another process, and is an error. The new socket is bound
//! under another name, gets its mode, listens, and is then moved to its place. So other users can
//! connect to it at no time, and the place is never empty.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use qmux_config::{Admin, AdminListen};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::process::bind::cannot;
use crate::process::exit::Failure;
use crate::sys::bind::{probe_free, tcp_alone};

/// The key that configures it.
const KEY: &str = "admin.listen";

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A bound socket.
#[derive(Debug)]
pub(crate) enum AdminSocket {
    /// A socket at a TCP address.
    Tcp(TcpListener),
    /// A socket at a path.
    Unix(UnixListener),
}

/// Binds the admin endpoint's socket.
///
/// # Errors
/// The key, the address and the reason.
pub(crate) fn bind(admin: &Admin) -> Result<AdminSocket, Failure> {
    match &admin.listen {
        AdminListen::Tcp(address) => probe_free(*address, true)
            .and_then(|()| tcp_alone(*address))
            .map(AdminSocket::Tcp)
            .map_err(|error| named(&cannot(*address, true, &error))),
        AdminListen::Unix(path) => {
            check_place(path, KEY)?;
            let bound = bind_unix(path, Type::STREAM).map_err(|error| cannot_unix(path, &error))?;
            Ok(AdminSocket::Unix(bound.into()))
        }
    }
}

/// Finds out whether [`bind`] would work, and changes nothing.
///
/// # Errors
/// Those of [`bind`].
pub(crate) fn probe(admin: &Admin) -> Result<(), Failure> {
    match &admin.listen {
        AdminListen::Tcp(address) => {
            probe_free(*address, true).map_err(|error| named(&cannot(*address, true, &error)))
        }
        AdminListen::Unix(path) => {
            check_place(path, KEY)?;
            let directory = fs::metadata(directory_of(path));
            directory
                .map(drop)
                .map_err(|error| cannot_unix(path, &error))
        }
    }
}

fn named(failure: &Failure) -> Failure {
    Failure::of_key(KEY, failure)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn cannot_unix(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "; its directory must be there",
        io::ErrorKind::PermissionDenied => "; its directory must be writable for this user",
        _ => "",
    };
    let path = path.display();
    Failure::of_key(KEY, format!("cannot bind unix:{path}: {error}{hint}"))
}

/// Checks whether a socket may be put at `path`: there is nothing, or a socket that nobody listens
/// at.
///
/// # Errors
/// If something else is there. The message names it; `key` is the key that configures the path.
pub(in crate::process) fn check_place(path: &Path, key: &str) -> Result<(), Failure> {
    check_kind(path, key)?;
    if is_live(path) {
        let shown = path.display();
        let why = "another program (or another qmux-dp) listens there";
        let why = format!("cannot bind unix:{shown}: {why}");
        return Err(Failure::of_key(key, why));
    }
    Ok(())
}

/// Checks like [`check_place`], whether or not somebody listens at a socket that is there.
///
/// # Errors
/// If something else is there. The message names it.
pub(in crate::process) fn check_kind(path: &Path, key: &str) -> Result<(), Failure> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(()); // What else is wrong with it, binding says.
    };
    if metadata.file_type().is_socket() {
        return Ok(());
    }
    let shown = path.display();
    let why = format!("{shown} is there and is no socket; it must be a path that is free");
    Err(Failure::of_key(key, why))
}

/// Whether somebody listens. This does not wait: a full queue also shows that somebody does.
fn is_live(path: &Path) -> bool {
    let connect = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match connect() {
        Ok(()) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        ),
    }
}

/// Binds a socket that listens at `path` and that only this user may use.
///
/// # Errors
/// Those of the system.
pub(in crate::process) fn bind_unix(path: &Path, kind: Type) -> io::Result<Socket> {
    let (socket, beside) = bind_beside(path, kind)?;
    beside.move_to_place()?;
    Ok(socket)
}

/// Binds a socket for `path` under another name, so that nobody finds it until it is moved to its
/// place.
///
/// # Errors
/// Those of the system.
pub(in crate::process) fn bind_beside(path: &Path, kind: Type) -> io::Result<(Socket, Beside)> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    let name = beside(path);
    // There may be one of an earlier process with the same number that did not get further.
    let _none = fs::remove_file(&name);
    socket.bind(&SockAddr::unix(&name)?)?;
    let beside = Beside {
        name,
        place: path.to_owned(),
    };
    fs::set_permissions(&beside.name, Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((socket, beside))
}

/// The name of a socket that is not at its place yet; the name is removed when this is dropped.
#[derive(Debug)]
pub(in crate::process) struct Beside {
    name: PathBuf,
    place: PathBuf,
}

impl Beside {
    /// Moves the socket to its place, whatever socket was there before.
    ///
    /// # Errors
    /// Those of rename(2).
    pub(in crate::process) fn move_to_place(self) -> io::Result<()> {
        fs::rename(&self.name, &self.place)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // If it was moved it is not there.
        let _moved = fs::remove_file(&self.name);
    }
}

/// A name in the same directory that is no longer than the path's, which is known to fit.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(format!(".{}", std::process::id() % 10_000_000));
    let own = path.file_name().map_or(0, OsStr::len);
    if own < name.len() {
        name = OsString::from(".".repeat(own.saturating_sub(1)) + "~");
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn admin(path: &Path) -> Admin {
        Admin {
            listen: AdminListen::Unix(path.to_owned()),
        }
    }

    fn refusal(result: Result<AdminSocket, Failure>) -> String {
        result.expect_err("refused").to_string()
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        let first = bind(&admin(&path)).expect("bound");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        assert!(refusal(bind(&admin(&path))).contains("listens there"));
        assert!(probe(&admin(&path)).is_err());
        drop(first);
        assert!(path.exists(), "it is stale now");
        probe(&admin(&path)).expect("free");
        let _second = bind(&admin(&path)).expect("replaced");
        assert!(UnixStream::connect(&path).is_ok());
        let files = fs::read_dir(dir.path()).expect("a directory").count();
        assert_eq!(files, 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notes");
        fs::write(&path, "mine").expect("written");
        assert!(refusal(bind(&admin(&path))).contains("is no socket"));
        assert_eq!(fs::read_to_string(&path).expect("there"), "mine");
        let nowhere = dir.path().join("missing/admin.sock");
        let refusal = refusal(bind(&admin(&nowhere)));
        assert!(refusal.contains("its directory must be there"), "{refusal}");
    }
}
