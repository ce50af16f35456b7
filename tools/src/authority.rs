//! The CA in a directory that `qmux-ctl certs` has made, or that looks like one.

use std::fs;
use std::path::Path;

use qmux_config::certs::{Authority, AuthorityError};

use crate::failure::Failure;

/// The largest certificate or key file, in bytes: a hundred times what one takes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The CA of `ca.crt` and `ca.key` in `dir`.
pub(crate) fn load(dir: &Path) -> Result<Authority, Failure> {
    let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    let pem = |path: &Path| {
        read(path).map_err(|message| {
            Failure::Input(format!(
                "{} {message}; a directory with a CA comes from: qmux-ctl certs --server-name NAME",
                path.display()
            ))
        })
    };
    let (cert_pem, key_pem) = (pem(&cert)?, pem(&key)?);
    Authority::from_pem(&cert_pem, &key_pem).map_err(|error| match error {
        AuthorityError::NoKey | AuthorityError::OtherKey => refused(&key, &error),
        _ => refused(&cert, &error),
    })
}

/// The CA's refusal as a failure about a file.
pub(crate) fn refused(path: &Path, error: &AuthorityError) -> Failure {
    match error {
        AuthorityError::Library(_) | AuthorityError::Boring(_) => {
            Failure::Internal(format!("{}: {error}", path.display()))
        }
        AuthorityError::Days(_) => Failure::Input(error.to_string()),
        _ => Failure::Input(format!("{} {error}", path.display())),
    }
}

/// Reads a file's text; or returns what is wrong, as the end of a sentence that begins with its
/// path.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    })?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} KiB", FILE_BYTES_MAX >> 10));
    }
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// A client's name, which becomes the common name of a certificate and the name of a file.
pub(crate) fn client_name(text: &str) -> Result<String, String> {
    const FORM: &str = "1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot or hyphen";
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_valid = (1..=64).contains(&text.len())
        && text.bytes().all(is_plain)
        && !text.starts_with(['.', '-']);
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(format!("it must be {FORM}"))
    }
}
