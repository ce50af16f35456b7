//! A certificate, a key or ticket keys: in a file of their own, or as text in the config file
//! itself.
//!
//! The difference matters to the user of the value: a file may be replaced while the program runs
//! and is worth watching, while a text changes only with the config file.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::pem::{self, read_pem};
use crate::ticket_keys::{TicketKey, parse_ticket_keys, read_ticket_keys};

/// The source of certificates or keys.
#[derive(Clone, PartialEq, Eq)]
pub enum FileOrText {
    /// A file, which may change while the program runs.
    File(PathBuf),
    /// A text in the config file. It may be a private key: neither `Debug` nor `Display` shows it.
    Text {
        /// The full name of the key that it stands under, as in `server.tls.server_key`, for
        /// messages.
        key: String,
        /// The text itself. The caller keeps it out of logs.
        text: String,
    },
}

impl FileOrText {
    /// The file to watch, if it is in a file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Text { .. } => None,
        }
    }

    /// The PEM text as bytes, read now if it is in a file; without a byte order mark.
    ///
    /// # Errors
    /// What is wrong with the file, as the end of a sentence that begins with its path.
    pub fn read_pem(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => read_pem(path),
            Self::Text { text, .. } => Ok(pem::without_mark(text.as_bytes()).to_vec()),
        }
    }

    /// The session ticket keys, read now if they are in a file.
    ///
    /// # Errors
    /// What is wrong with the file, as the end of a sentence that begins with its path.
    pub fn read_ticket_keys(&self) -> Result<Vec<TicketKey>, String> {
        match self {
            Self::File(path) => read_ticket_keys(path),
            Self::Text { text, .. } => parse_ticket_keys(text.as_bytes()),
        }
    }
}

impl From<PathBuf> for FileOrText {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for FileOrText {
    /// Writes the path of the file, or the name of the key that the text stands under.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Text { key, .. } => write!(f, "{key} of the config file"),
        }
    }
}

impl fmt::Debug for FileOrText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text { key, .. } => f
                .debug_struct("Text")
                .field("key", key)
                .finish_non_exhaustive(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_never_prints_itself() {
        let source = FileOrText::Text {
            key: "client.tls.client_key".to_owned(),
            text: "\u{feff}-----BEGIN PRIVATE KEY-----".to_owned(),
        };
        let printed = format!("{source} {source:?}");
        assert!(!printed.contains("BEGIN"), "{printed}");
        assert!(printed.contains("client.tls.client_key"), "{printed}");
        assert_eq!(source.file(), None);
        assert_eq!(
            source.read_pem().as_deref(),
            Ok(b"-----BEGIN PRIVATE KEY-----".as_slice()),
            "without the byte order mark"
        );
    }
}
