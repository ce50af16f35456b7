//! The format of a client's file of sessions: one session a line, a digest at the end.
//!
//! Anybody may have written to the file: whatever it contains, reading it ends with sessions or
//! with nothing. Nothing of it is ever shown.

use std::net::SocketAddr;

use boring::base64;
use boring::sha::sha256;

/// The first line of the file; a file of another version is not read.
const HEADER: &str = "qmux-dp sessions 1";

/// Bytes of the digest of the certificates that a session was made with.
pub const SESSION_IDENTITY_BYTES: usize = 32;

/// One session of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct SavedSession {
    /// Host and port of the server, as configured.
    pub address: String,
    /// The name that the server's certificate must have.
    pub name: String,
    /// A digest of the certificates that the session was made with.
    pub identity: [u8; SESSION_IDENTITY_BYTES],
    /// The address that gave the session.
    pub peer: SocketAddr,
    /// The time at which it expires, in seconds since 1970.
    pub expires_at: u64,
    /// The session itself, a secret.
    pub session: Vec<u8>,
}

impl std::fmt::Debug for SavedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SavedSession({} from {})", self.name, self.peer)
    }
}

/// The content of a file, in the order given. Sessions that would not be read back are left out.
pub fn encode_sessions<'a>(sessions: impl IntoIterator<Item = &'a SavedSession>) -> String {
    let mut text = String::new();
    for saved in sessions {
        let (address, name) = (&saved.address, &saved.name);
        if [address, name]
            .iter()
            .any(|it| it.contains(char::is_control))
        {
            continue;
        }
        let (peer, expires_at) = (saved.peer, saved.expires_at);
        let identity = base64::encode_block(&saved.identity);
        let session = base64::encode_block(&saved.session);
        text.push_str(&format!(
            "{address}\t{name}\t{identity}\t{peer}\t{expires_at}\t{session}\n"
        ));
    }
    sealed_sessions(&text)
}

/// A file whose lines between the first and the last are `lines`.
pub fn sealed_sessions(lines: &str) -> String {
    let body = format!("{HEADER}\n{lines}");
    let digest = base64::encode_block(&sha256(body.as_bytes()));
    body + "end " + &digest + "\n"
}

/// The sessions of a file's content; `None` if it is damaged, or of another program or version.
pub fn decode_sessions(bytes: &[u8]) -> Option<Vec<SavedSession>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let body = text.strip_suffix('\n')?;
    let (body, last) = body.split_at(body.rfind('\n')? + 1);
    let digest = base64::encode_block(&sha256(body.as_bytes()));
    if last.strip_prefix("end ")? != digest {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != HEADER {
        return None;
    }
    lines.map(line).collect()
}

fn line(line: &str) -> Option<SavedSession> {
    let mut fields = line.split('\t');
    let saved = SavedSession {
        address: fields.next()?.to_owned(),
        name: fields.next()?.to_owned(),
        identity: base64::decode_block(fields.next()?).ok()?.try_into().ok()?,
        peer: fields.next()?.parse().ok()?,
        expires_at: fields.next()?.parse().ok()?,
        session: base64::decode_block(fields.next()?).ok()?,
    };
    fields.next().is_none().then_some(saved)
}
