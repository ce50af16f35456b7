//! Names of services, and patterns that match several of them.

use std::fmt;

use crate::section::Section;

/// The longest name of a service, in bytes: the label of a metric and the column of a table.
pub const SERVICE_NAME_BYTES_MAX: usize = 64;

/// The form of a name, for messages.
pub(crate) const NAME_FORM: &str = "1 to 64 of A-Z a-z 0-9 . _ -";
/// The form of a pattern, for messages.
const PATTERN_FORM: &str =
    "at most 64 of A-Z a-z 0-9 . _ - and *, which stands for any characters, or none";

/// Reads the name under `key`, which must be there.
pub(crate) fn read<'a>(section: &Section<'a>, key: &'static str) -> Option<toml::Spanned<&'a str>> {
    section.require(key, NAME_FORM);
    let name = section.string(key, NAME_FORM)?;
    if is_name(name.get_ref()) {
        return Some(name);
    }
    let message = format!("{:?} is no name; it must be {NAME_FORM}", name.get_ref());
    section.problem_at(key, &name.span(), message);
    None
}

pub(crate) fn is_name(text: &str) -> bool {
    (1..=SERVICE_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// A pattern for names of services, in which `*` stands for any characters, or none. The empty
/// pattern matches the service without a name.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServicePattern(String);

impl ServicePattern {
    /// Reads a pattern; or returns what it must be, for a message.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let is_valid = text.len() <= SERVICE_NAME_BYTES_MAX
            && text.bytes().all(|byte| is_name_byte(byte) || byte == b'*');
        if is_valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is no pattern; it must be {PATTERN_FORM}"))
        }
    }

    /// Whether it matches the service of this name.
    #[must_use]
    pub fn matches(&self, service: &str) -> bool {
        let mut parts = self.0.split('*');
        let (Some(first), Some(last)) = (parts.next(), parts.next_back()) else {
            return self.0 == service;
        };
        let Some(rest) = service.strip_prefix(first) else {
            return false;
        };
        let Some(mut rest) = rest.strip_suffix(last) else {
            return false;
        };
        // Each part is matched as early as possible, which leaves the most room for the parts after
        // it.
        for part in parts {
            let Some(at) = rest.find(part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        true
    }

    /// The pattern as in dp.toml.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ServicePattern {
    /// Writes it as in dp.toml.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        ServicePattern::parse(pattern)
            .expect("a pattern")
            .matches(name)
    }

    #[test]
    fn a_pattern_stands_for_the_names_that_it_describes() {
        for (pattern, name) in [
            ("web", "web"),
            ("", ""),
            ("*", ""),
            ("*", "web"),
            ("ssh-*", "ssh-"),
            ("ssh-*", "ssh-a"),
            ("*-web", "a-web"),
            ("a*b*c", "abc"),
            ("a*b*c", "a1b2b3c"),
            ("**", "x"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("web", "web2"),
            ("web", "Web"),
            ("", "web"),
            ("ssh-*", "ssh"),
            ("*-web", "-webs"),
            ("a*b*c", "ac"),
            ("a*a", "a"),
            ("a.c", "abc"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn names_and_patterns_have_few_characters() {
        let longest = "x".repeat(SERVICE_NAME_BYTES_MAX);
        for name in ["a", "A.b_c-9", &longest] {
            assert!(is_name(name), "{name}");
            assert!(ServicePattern::parse(name).is_ok(), "{name}");
        }
        for name in ["", "a b", "ä", "a/b", "*", &format!("{longest}x")] {
            assert!(!is_name(name), "{name}");
        }
        assert!(ServicePattern::parse("[ab]").is_err());
    }

    /// The meaning of `*`, without any thought of speed.
    fn slow(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|skip| slow(rest, &name[skip..])),
            Some((byte, rest)) => name.first() == Some(byte) && slow(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_means_what_its_definition_says(
            pattern in "[ab*]{0,8}", name in "[ab]{0,10}"
        ) {
            prop_assert_eq!(matches(&pattern, &name), slow(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
