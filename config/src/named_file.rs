//! A file that a key names, in messages.
//!
//! Whoever pastes a secret where the path of its file belongs must not find it in a log. A value
//! that names nothing is therefore repeated only if it is plainly a path.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use crate::section::Section;

/// The longest path that is repeated in messages, in bytes: the longest name of a file on Linux.
const SHOWN_BYTES_MAX: usize = 255;

/// What the names of the files end with that keys name.
const ENDINGS: [&str; 20] = [
    "bin", "cer", "cert", "conf", "crl", "crt", "der", "key", "keys", "list", "pass", "passwd",
    "password", "pem", "pw", "secret", "tkt", "tok", "token", "txt",
];

/// A file that a key names.
pub(crate) struct NamedFile {
    pub(crate) path: PathBuf,
    /// Whether its name may stand in messages.
    is_shown: bool,
    /// The key under which the text itself may stand, if there is one.
    twin: Option<&'static str>,
}

impl NamedFile {
    /// The file that `text` names, relative to the directory of the config file. It is noted as one
    /// that holds a part of the configuration.
    pub(crate) fn of(section: &Section<'_>, text: &str, twin: Option<&'static str>) -> NamedFile {
        let path = section.report().resolve(text);
        section.report().reads(&path);
        NamedFile {
            is_shown: path.exists() || is_plainly_a_path(text, &path),
            path,
            twin,
        }
    }

    /// Reports that `key`, whose value stands at `span`, names a file with which something is
    /// wrong. `why` goes on behind the path of the file.
    pub(crate) fn problem(&self, section: &Section<'_>, key: &str, span: &Range<usize>, why: &str) {
        if self.is_shown {
            section.problem_at(key, span, format!("{} {why}", self.path.display()));
            return;
        }
        let mut message = format!(
            "names a file that {why} (its name is not repeated here, because it may be what the \
             file is to hold"
        );
        if let Some(twin) = self.twin {
            message += &format!("; that may stand under {twin}");
        }
        message.push(')');
        section.unquoted_problem_at(key, span, message);
    }
}

/// Whether a value that names no file is a path and no secret: it has a directory that exists in
/// it, or ends like the name of a file does. Base64 has slashes, too, but no such directories.
fn is_plainly_a_path(text: &str, path: &Path) -> bool {
    if text.len() > SHOWN_BYTES_MAX || text.chars().any(char::is_control) {
        return false;
    }
    let ending = path.extension().and_then(|it| it.to_str());
    if ending.is_some_and(|it| ENDINGS.contains(&it.to_ascii_lowercase().as_str())) {
        return true;
    }
    let is_name = |it: &Component<'_>| matches!(it, Component::Normal(_) | Component::ParentDir);
    let names = Path::new(text).components().filter(is_name).count();
    // The last one is that of the file itself.
    path.ancestors()
        .skip(1)
        .take(names.saturating_sub(1))
        .any(Path::exists)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_secrets() {
        let base = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(base.path().join("certs")).expect("created");
        let is_path = |text: &str| is_plainly_a_path(text, &base.path().join(text));
        for text in [
            "server.key",
            "secrets/nas.token",
            "certs/none",
            "../none",
            "/etc/none/token",
            "certs/../none",
        ] {
            assert!(is_path(text), "{text}");
        }
        for text in [
            "hunter2",
            "correct horse battery staple",
            "0123456789abcdef0123456789abcdef",
            "8Kj2VnX4cWqkYhYVgcJ6Zq0sJvF1mB0aYw3cQm9pT1E=",
            "8Kj2VnX4cWqkYh/VgcJ6Zq0sJvF1mB0a/w3cQm9pT1E=",
            "/Kj2VnX4cWqkYh/VgcJ6Zq0sJvF1mB0a/w3cQm9pT1E=",
            "eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG",
            "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n.key",
        ] {
            assert!(!is_path(text), "{text}");
        }
    }
}
