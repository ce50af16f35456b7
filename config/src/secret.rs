//! A value that must not appear in logs.

use std::fmt;
use std::path::Path;

use toml::Spanned;

use crate::named_file::NamedFile;
use crate::section::Section;
use crate::tls_files::{EXPOSED, is_exposed};

/// The shortest token that is accepted, in bytes: 128 bits if every byte were random, the least
/// that resists offline guessing. QMux has the same limit.
pub const SECRET_BYTES_MIN: usize = 16;

/// The largest file with a secret, in bytes: a hundred times what anybody uses.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A shared secret. Neither `Debug` nor `Display` shows it; [`Secret::expose`] is the only way to
/// its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The form of a secret, for messages.
    pub(crate) const FORM: &'static str = "at least 16 bytes that nobody can guess, for example \
        from: openssl rand -base64 32";

    /// Reads the secret under `token`, or in the file that `token_file` names, if one of the two is
    /// there and it is long enough; with the place where it was found.
    pub(crate) fn read(section: &Section<'_>) -> Option<Spanned<Self>> {
        let (key, file_key) = ("token", "token_file");
        let text = section.string(key, Self::FORM);
        let file = section.filled_string(file_key, "the path of a file that holds the token");
        if let Some(file) = &file
            && section.has(key)
        {
            let message = format!("stands beside {key}; it must be one of them");
            section.problem_at(file_key, &file.span(), message);
            return None;
        }
        if let Some(file) = file {
            return Self::from_file(section, file_key, &file);
        }
        let text = text?;
        if text.get_ref().len() >= SECRET_BYTES_MIN {
            let secret = Self::new((*text.get_ref()).to_owned());
            return Some(Spanned::new(text.span(), secret));
        }
        let message = format!(
            "has {} bytes; it must be {}",
            text.get_ref().len(),
            Self::FORM
        );
        section.problem_at(key, &text.span(), message);
        None
    }

    /// Whether the section has a token, in whatever form.
    pub(crate) fn is_in(section: &Section<'_>) -> bool {
        // Both are asked for, so that neither is reported as unknown.
        let (text, file) = (section.has("token"), section.has("token_file"));
        text || file
    }

    fn from_file(
        section: &Section<'_>,
        key: &'static str,
        file: &Spanned<&str>,
    ) -> Option<Spanned<Self>> {
        let named = NamedFile::of(section, file.get_ref(), Some("token"));
        let path = &named.path;
        let problem = |message: String| named.problem(section, key, &file.span(), &message);
        let text = read_file(path).map_err(problem).ok()?;
        // An editor, or `echo`, ends the line, which nobody means to be a part of the secret.
        let secret = text.trim();
        if secret.len() < SECRET_BYTES_MIN {
            problem(format!(
                "has {} bytes; it must hold {}",
                secret.len(),
                Self::FORM
            ));
            return None;
        }
        if is_exposed(path) {
            let message = format!("{} {EXPOSED}", path.display());
            section
                .report()
                .warning(&section.key(key), &file.span(), &message);
        }
        Some(Spanned::new(file.span(), Self::new(secret.to_owned())))
    }

    /// Wraps a secret. Its length is not checked here: [`crate::Config`] does that, with a message
    /// that has a line.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The secret itself. The caller keeps it out of logs and messages.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Reads the text of a file with a secret; or returns what is wrong, as the end of a sentence that
/// begins with its path.
pub(crate) fn read_file(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("is larger than {} KiB", FILE_BYTES_MAX >> 10));
    }
    String::from_utf8(std::fs::read(path).map_err(cannot)?)
        .map_err(|_| "is not UTF-8 text".to_owned())
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(redacted)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("redacted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::new("correct horse battery".to_owned());
        let printed = format!("{secret} {secret:?} {:#?}", Some(&secret));
        assert!(!printed.contains("horse"), "{printed}");
        assert_eq!(secret.expose(), b"correct horse battery");
    }
}
