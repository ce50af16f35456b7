//! The file of session tickets: read and replaced as a whole. The format of its text is known to
//! `qmux-config`.

use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use qmux_config::{SavedSession, decode_sessions, encode_sessions};
use tempfile::NamedTempFile;

use super::{Identity, SERVERS_MAX, Saved, TICKETS_MAX, Ticket, TicketServer};

/// The name of the file in the state directory.
pub(super) const NAME: &str = "sessions";

/// The largest file that is read: as many servers as there may be, with as many tickets as they may
/// have, of 4 KB each, in base64. Some kilobytes are usual.
const FILE_BYTES_MAX: u64 = 96 << 20;

const _: () = assert!((SERVERS_MAX * TICKETS_MAX * 4_096 * 4 / 3) as u64 <= FILE_BYTES_MAX);

/// The bit by which everybody may write to a directory (`S_IWOTH`).
const MODE_ALL_WRITE: u32 = 0o002;

/// Makes the directory if need be, for its owner alone.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Checks whether [`make_dir`] and [`replace`] would work. Leaves nothing behind.
///
/// # Errors
/// The reason why they would not.
pub(super) fn probe(dir: &Path) -> io::Result<()> {
    for place in dir.ancestors() {
        let place = if place.as_os_str().is_empty() {
            Path::new(".")
        } else {
            place
        };
        match std::fs::metadata(place) {
            Ok(metadata) if !metadata.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
            Ok(_) if place == dir => {
                if dir.join(NAME).is_dir() {
                    return Err(io::Error::other(format!("{NAME} in it is a directory")));
                }
                return temporary(dir).map(drop);
            }
            // The directory would have to be made there.
            Ok(_) => return tempfile::tempdir_in(place).map(drop),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// What is dangerous about the directory, if anything. This is not an error, because in a container
/// there may be nobody else.
pub(super) fn danger(dir: &Path) -> Option<&'static str> {
    let open_to_all = std::fs::metadata(dir).is_ok_and(|it| it.mode() & MODE_ALL_WRITE != 0);
    open_to_all.then_some(
        "everybody on this machine may write to it, and could give this client sessions of a server that is none of its own: make its mode 700",
    )
}

/// The content of the file.
pub(super) fn encode(saved: &[Saved]) -> String {
    let mut lines: Vec<(u64, SavedSession)> = Vec::new();
    for (server, identity, tickets) in saved {
        lines.extend(tickets.iter().map(|ticket| {
            let line = SavedSession {
                address: server.address.clone(),
                name: server.name.clone(),
                identity: *identity,
                peer: ticket.peer,
                expires_at: ticket.expires_at,
                session: ticket.session.to_vec(),
            };
            (ticket.number, line)
        }));
    }
    // The lines are sorted by age over all servers, oldest first, which is the order when they are
    // read back.
    lines.sort_by_key(|(number, _)| *number);
    encode_sessions(lines.iter().map(|(_, line)| line))
}

/// Replaces the file by `text`, readable by its owner alone.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut file = temporary(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// A file in `dir` that is removed when dropped. Its mode is 0600.
fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".sessions-")
        .tempfile_in(dir)
}

/// The tickets of the file; none if there is no file.
///
/// # Errors
/// The reason why nothing of it is used, without showing any of it.
pub(super) fn load(path: &Path) -> Result<Vec<(TicketServer, Identity, Ticket)>, String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err("it is too large".into());
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    decode(&bytes).ok_or_else(|| "it is damaged, or of another program or version".into())
}

pub(super) fn decode(bytes: &[u8]) -> Option<Vec<(TicketServer, Identity, Ticket)>> {
    let saved = decode_sessions(bytes)?.into_iter();
    let sessions = saved.map(|saved| {
        let server = TicketServer {
            address: saved.address,
            name: saved.name,
        };
        let ticket = Ticket {
            session: saved.session.into(),
            peer: saved.peer,
            expires_at: saved.expires_at,
            number: 0,
        };
        (server, saved.identity, ticket)
    });
    Some(sessions.collect())
}
