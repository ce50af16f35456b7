//! A value that must not appear in logs.

use std::fmt;

use crate::section::Section;

/// Shortest token that is accepted, in bytes: 128 bits if every byte were random, the least that
/// resists guessing offline. QMux has the same limit.
pub const SECRET_BYTES_MIN: usize = 16;

/// A shared secret. Neither `Debug` nor `Display` shows it; [`Secret::expose`] is the only way to
/// its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What a secret must be, for messages.
    pub(crate) const FORM: &'static str = "at least 16 bytes that nobody can guess, for example \
        from: openssl rand -base64 32";

    /// The secret under `key`, if it is there and long enough.
    pub(crate) fn read(section: &Section<'_>, key: &'static str) -> Option<Self> {
        let text = section.string(key, Self::FORM)?;
        if text.get_ref().len() >= SECRET_BYTES_MIN {
            return Some(Self::new((*text.get_ref()).to_owned()));
        }
        let message = format!(
            "has {} bytes; it must be {}",
            text.get_ref().len(),
            Self::FORM
        );
        section.problem_at(key, &text.span(), message);
        None
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
