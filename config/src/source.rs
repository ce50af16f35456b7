//! The text of a config file: the position of a byte in it, and which lines may be shown.

use std::ops::Range;
use std::path::Path;

use crate::keys::KEYS;
use crate::suggest;

/// The longest line that a message quotes, in characters: a longer one would hide the message
/// itself.
const EXCERPT_CHARS_MAX: usize = 160;

/// A config file's text together with its name.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) path: &'a Path,
    pub(crate) text: &'a str,
}

/// A place in a file; both numbers start at 1, the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl<'a> Source<'a> {
    /// The position of the byte at `offset`. An offset past the end or inside a character counts as
    /// the one before it.
    pub(crate) fn position(&self, offset: usize) -> Position {
        let before = self.before(offset);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The positions of bytes, which are given in ascending order; all of them in one pass.
    pub(crate) fn positions(&self, offsets: impl Iterator<Item = usize>) -> Vec<Position> {
        let (mut line, mut column, mut at) = (1, 1, 0);
        let positions = offsets.map(|offset| {
            let until = self.before(offset).len().max(at);
            for character in self.text[at..until].chars() {
                (line, column) = match character {
                    '\n' => (line + 1, 1),
                    _ => (line, column + 1),
                };
            }
            at = until;
            Position { line, column }
        });
        positions.collect()
    }

    /// The line around `span` with a caret under it; `None` if quoting it could show a secret.
    pub(crate) fn excerpt(&self, span: &Range<usize>) -> Option<String> {
        let start = self.before(span.start).len();
        let line_start = self.text[..start]
            .rfind('\n')
            .map_or(0, |newline| newline + 1);
        let line = self.text[line_start..].lines().next()?.trim_end();
        if line.chars().count() > EXCERPT_CHARS_MAX || !is_harmless(line) {
            return None;
        }
        let indent: String = self.text[line_start..start]
            .chars()
            .map(|character| if character == '\t' { '\t' } else { ' ' })
            .collect();
        let end = self
            .before(span.end)
            .len()
            .clamp(start, line_start + line.len().max(start - line_start));
        let carets = self.text[start..end].chars().count().max(1);
        Some(format!("{line}\n{indent}{}", "^".repeat(carets)))
    }

    fn before(&self, offset: usize) -> &'a str {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        &self.text[..end]
    }
}

/// Keys that are called like secrets and hold none.
const WITHOUT_SECRETS: [&str; 5] = [
    "accept_proxy_from",
    "proxy_protocol",
    "proxy_protocol_udp",
    "session_ticket_encryption_key_rotation_interval",
    "session_ticket_encryption_key_rotation_overlap",
];

/// Whether a line may be quoted. It must be a header, or assign to a key that is a known one or
/// nearly one: everything else may be the middle of a value, such as a line of a private key that
/// ends in `=`, or a secret under a key that nobody knows.
fn is_harmless(line: &str) -> bool {
    // What has an @ or is a URL may be that of a proxy with a password in it, under whatever key.
    !line.contains('@') && !line.contains("://") && begins_as_known(line) && !may_hold_secret(line)
}

/// Whether the line begins with the name of a known key, or with the header of a known section, or
/// with something so near to it that it was meant.
fn begins_as_known(line: &str) -> bool {
    let is_known = |part: &str| {
        let parts = KEYS.iter().flat_map(|full| full.split('.'));
        suggest::nearest(part, parts).is_some()
    };
    let bare = |name: &str| {
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let mut parts = name.split('.').map(str::trim);
        parts.all(|part| !part.is_empty() && part.bytes().all(is_bare) && is_known(part))
    };
    let line = line.trim();
    if let Some(header) = line.strip_prefix('[') {
        let name = header.strip_prefix('[').unwrap_or(header);
        let end = name.find([']', '#']).unwrap_or(name.len());
        let behind = name[end..].trim_start_matches(']').trim_start();
        // What else stands there is a value without its line.
        return bare(&name[..end]) && (behind.is_empty() || behind.starts_with('#'));
    }
    line.split_once('=').is_some_and(|(name, _)| bare(name))
}

/// Whether a line assigns to a key that is called, or nearly called, a token, a key or a proxy,
/// whose URL may have a password, or has such a word outside of quotes, where a separator may be
/// missing. Misspelled keys count: the message about `tokne = "…"` must not print what follows.
fn may_hold_secret(line: &str) -> bool {
    let is_separator =
        |character: char| !(character.is_alphanumeric() || matches!(character, '_' | '-'));
    // In TOML a key stands before a =, in YAML and JSON before a colon.
    let mut parts: Vec<&str> = line.split(['=', ':']).collect();
    parts.pop();
    let mut assigned = parts.iter().map(|before| {
        let mut words = before.rsplit(is_separator);
        words.find(|word| !word.is_empty()).unwrap_or_default()
    });
    let outside_quotes = line.split(['"', '\'']).step_by(2);
    let mut bare = outside_quotes.flat_map(|part| part.split(is_separator));
    gives_auth_no_table(line) || assigned.any(names_secret) || bare.any(names_secret)
}

/// Whether the line gives `auth`, which is a table, a value that is none: it may be the token.
fn gives_auth_no_table(line: &str) -> bool {
    line.split_once('=').is_some_and(|(name, value)| {
        name.trim().ends_with("auth") && !value.trim_start().starts_with('{')
    })
}

/// Whether a key of this name may hold a secret.
fn names_secret(name: &str) -> bool {
    const SECRET_LIKE: f64 = 0.6;
    let name = name.to_lowercase();
    let has = |word| name.contains(word);
    let is_like = |word| strsim::normalized_damerau_levenshtein(&name, word) >= SECRET_LIKE;
    !WITHOUT_SECRETS.contains(&name.as_str())
        && (["secret", "pass", "tok", "key", "prox"]
            .into_iter()
            .any(has)
            || ["token", "proxy"].into_iter().any(is_like))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source<'_> {
        Source {
            path: Path::new("dp.toml"),
            text,
        }
    }

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a = 1\nü = \"x\"\n";
        assert_eq!(source(text).position(0), Position { line: 1, column: 1 });
        assert_eq!(source(text).position(6), Position { line: 2, column: 1 });
        assert_eq!(source(text).position(8), Position { line: 2, column: 2 });
        assert_eq!(
            source(text).position(7),
            Position { line: 2, column: 1 },
            "inside a character"
        );
        assert_eq!(
            source(text).position(999),
            Position { line: 3, column: 1 },
            "past the end"
        );
    }

    #[test]
    fn an_excerpt_points_at_the_value() {
        let text = "[server]\n  load_balancer = \"magic\"\n";
        let start = text.find("\"magic").expect("is there");
        let excerpt = source(text).excerpt(&(start..start + 7));
        assert_eq!(
            excerpt.as_deref(),
            Some("  load_balancer = \"magic\"\n                  ^^^^^^^")
        );
    }

    #[test]
    fn a_line_that_may_hold_a_secret_is_not_quoted() {
        for line in [
            "token = \"hunter2\"",
            "tokne = \"hunter2\"",
            "tken=\"hunter2\"",
            "auth = { method = \"token\", token = \"hunter2\" }",
            "\"token\" = \"hunter2\"",
            "Token= 'hunter2",
            "server_key = 'hunter2'",
            "sever_key = 'hunter2'",
            "proxy = \"https://me:hunter2@proxy.example:3128\"",
            "proxy = \"http://me:hunter2\"",
            "prxy = \"me:hunter2@proxy.example:3128\"",
            "https_proxy = \"http://me:hunter2\"",
            "address = \"http://me:hunter2@proxy.example:3128\"",
            "pw = \"hunter2\"",
            "hunter2",
            "auth = \"hunter2\"",
            "client.auth = 'hunter2'",
            "auth = { token: \"hunter2\" }",
            "auth = { \"token\": \"hunter2\" }",
            "auth = { method = \"token\", token \"hunter2\" }",
            "clients = [{ name = \"nas\", token: \"hunter2\" }]",
            "[client.auth] token: \"hunter2\"",
            "[client.auth] \"hunter2\"",
            "session_ticket_encryption_keys = \"hunter2\"",
            "client_key_pem = \"hunter2\"",
            "address = \"http://me:hunter2\"",
        ] {
            assert_eq!(source(line).excerpt(&(0..1)), None, "{line}");
        }
    }

    #[test]
    fn a_line_that_may_be_the_middle_of_a_value_is_not_quoted() {
        for line in [
            "8Kj2VnX4cWqkYhYVgcJ6Zq0sJvF1mB0aYw3cQm9pT1E=",
            "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQ==",
            "gSbYp0b==",
            "a+b/c=",
            "[\"hunter2\", \"hunter3\"],",
            "[hunter2",
            "\"abcdef=\",",
        ] {
            assert_eq!(source(line).excerpt(&(0..1)), None, "{line}");
        }
    }

    #[test]
    fn lines_of_known_keys_and_sections_are_quoted_misspelled_or_not() {
        for line in [
            "method = \"token\"",
            "drain_timout = \"30s\"",
            "[[server.services]] # the first",
            "[servr",
            "client.lanes = 0",
            "proxy_protocol = \"v3\"",
            "accept_proxy_from = []",
            "[client.auth] # the first",
            "session_ticket_encryption_key_rotation_interval = 0",
            "auth = { method = \"magic\" }",
            "host = \"127.0.0.1:80\"",
        ] {
            assert!(source(line).excerpt(&(0..1)).is_some(), "{line}");
        }
    }
}
